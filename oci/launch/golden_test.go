package launch

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

// goldenPrograms are compiled without anything of them existing.
var goldenPrograms = map[string]func() (*Program, error){
	"minimal": func() (*Program, error) {
		return Compile(&specs.Spec{
			Root:    &specs.Root{Path: "rootfs"},
			Process: &specs.Process{Args: []string{"/init"}, Cwd: "/"},
			Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}},
		}, Options{ID: "minimal", Bundle: "/bundle"})
	},
	"ordinary": func() (*Program, error) {
		return Compile(testSpec("/rootfs", "true"), Options{
			ID: "ordinary", Rootfs: &Overlay{Lower: []string{"/l1", "/l2"}, Upper: "/u", Work: "/w"},
			CgroupDir: "/sys/fs/cgroup/pod/ctr",
		})
	},
	"cgroup-v1": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts = append(s.Mounts[5:6:6], specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"ro", "nosuid"}})
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		return Compile(s, Options{ID: "cgroup-v1", CgroupJoin: []string{
			"/sys/fs/cgroup/memory/pod/tasks", "/sys/fs/cgroup/cpu,cpuacct/pod/tasks", "/sys/fs/cgroup/systemd/pod/tasks", "/sys/fs/cgroup/unified/pod/cgroup.procs",
		}})
	},
	"seccomp-without-no-new-privs": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
		s.Process.NoNewPrivileges = false
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"reboot"}, Action: specs.ActErrno}}}
		return Compile(s, Options{ID: "seccomp"})
	},
	"seccomp-listener": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/run/agent", Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}
		return Compile(s, Options{ID: "seccomp", Listener: true})
	},
	"mount-label": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Linux.ReadonlyPaths = nil
		s.Linux.MaskedPaths = []string{"/proc/acpi"}
		s.Linux.MountLabel, s.Process.SelinuxLabel = "u:r:t:s0:c1,c2", "u:r:p:s0:c1,c2"
		s.Mounts = append(s.Mounts, tmpfs("/own", `context="u:r:o:s0:c3,c4"`))
		return Compile(s, Options{ID: "mount-label", Rootfs: &Overlay{Lower: []string{"/l1"}, Upper: "/u", Work: "/w", Options: []string{"volatile"}}})
	},
	"terminal": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 24, Width: 80}
		s.Process.User.UID = 7
		return Compile(s, Options{ID: "terminal"})
	},
	"binds": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Root.Readonly = true
		s.Linux.RootfsPropagation = "rslave"
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Mounts = []specs.Mount{
			bind("/a", "/a", "ro"), bind("b", "/b", "rro", "rprivate"), bind("/c", "/c", "rshared", "noexec"),
			{Destination: "/d", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "noatime", "shared"}},
		}
		return Compile(s, Options{ID: "binds", Bundle: "/bundle"})
	},
	"tmpfs": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
		s.Mounts = []specs.Mount{
			tmpfs("/run", "tmpcopyup", "nodev", "ro", "mode=755"), tmpfs("/tmp", "size=1m"), tmpfs("/tmp", "remount", "ro", "size=2m"),
		}
		return Compile(s, Options{ID: "tmpfs"})
	},
	"process": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = s.Mounts[:1], nil, nil
		umask, adj := uint32(0o77), -500
		s.Process.User = specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3, 4}, Umask: &umask}
		s.Process.OOMScoreAdj = &adj
		s.Process.ApparmorProfile, s.Process.SelinuxLabel = "cri", "u:r:t:s0"
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}
		s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
		s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
		s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "9"}
		s.Process.Cwd, s.Domainname = "/work/dir", "example.org"
		return Compile(s, Options{ID: "process"})
	},
	"devices": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
		uid := uint32(5)
		mode := os.FileMode(0o600)
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}, {Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, UID: &uid, FileMode: &mode},
			{Path: "/pipe", Type: "p"}, {Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
		}
		return Compile(s, Options{ID: "devices"})
	},
	"user-namespace": func() (*Program, error) {
		s := withUserns(testSpec("/rootfs", "true"))
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}
		return Compile(s, Options{ID: "user-namespace"})
	},
	"joined-namespaces": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = s.Mounts[:1], nil, nil
		s.Hostname = ""
		for i := range s.Linux.Namespaces {
			if ns := &s.Linux.Namespaces[i]; ns.Type != specs.MountNamespace && ns.Type != specs.CgroupNamespace {
				ns.Path = "/run/ns/" + string(ns.Type)
			}
		}
		return Compile(s, Options{ID: "joined-namespaces"})
	},
	"joined-user-namespace": func() (*Program, error) {
		s := withUserns(testSpec("/rootfs", "true"))
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = s.Mounts[:1], nil, nil
		s.Linux.Namespaces[6].Path = "/run/ns/user"
		s.Linux.Namespaces[1].Path = "/run/ns/net"
		return Compile(s, Options{ID: "joined-user-namespace"})
	},
	"shared-mounts": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = s.Mounts[:1], nil, nil
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.MountNamespace })
		return Compile(s, Options{ID: "shared-mounts", SharedMounts: true})
	},
	"no-pivot": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = s.Mounts[:1], nil, nil
		return Compile(s, Options{ID: "no-pivot", NoPivot: true})
	},
	"idmapped": func() (*Program, error) {
		s := withUserns(testSpec("/rootfs", "true"))
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Mounts = []specs.Mount{bind("/a", "/a", "ridmap"), {Destination: "/b", Source: "/b", Options: []string{"bind"}, UIDMappings: s.Linux.UIDMappings, GIDMappings: s.Linux.GIDMappings}}
		return Compile(s, Options{ID: "idmapped", Rootfs: &Overlay{Lower: []string{"/l"}, Upper: "/d/u", Work: "/d/w", IDMapped: true}})
	},
	"idmapped-without-userns": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}}
		s.Mounts = []specs.Mount{tmpfs("/tmp"), bind("/a", "/a", "ridmap"), bind("/b", "/b", "ro")}
		for i := range s.Mounts[1:] {
			s.Mounts[1+i].UIDMappings, s.Mounts[1+i].GIDMappings = maps, maps
		}
		return Compile(s, Options{ID: "idmapped-without-userns"})
	},
	"hooks": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = s.Mounts[:1], nil, nil
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/hook"}}, StartContainer: []specs.Hook{{Path: "/hook"}}}
		return Compile(s, Options{ID: "hooks", Hooks: true, Bundle: "/bundle"})
	},
	"time-and-memory": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = s.Mounts[:1], nil, nil
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 5}, "boottime": {Secs: -5, Nanosecs: 7}}
		s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0-1", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
		return Compile(s, Options{ID: "time-and-memory"})
	},
	"exec-in-shared-mounts": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		s.Linux.Namespaces = s.Linux.Namespaces[:1]
		s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "0-3"}
		return CompileExec(s, s.Process, ExecOptions{ID: "exec", Pid: 4711})
	},
	"exec": func() (*Program, error) {
		s := testSpec("/rootfs", "true")
		return CompileExec(s, s.Process, ExecOptions{ID: "exec", Pid: 4711, CgroupJoin: []string{"/sys/fs/cgroup/memory/x/tasks"}})
	},
	"exec-terminal": func() (*Program, error) {
		s := withUserns(testSpec("/rootfs", "true"))
		s.Process.Terminal = true
		return CompileExec(s, s.Process, ExecOptions{ID: "exec", Pid: 4711, CgroupDir: "/sys/fs/cgroup/x"})
	},
	"pause": func() (*Program, error) {
		return CompilePause(&specs.Spec{Hostname: "pod", Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace, Path: "/run/ns/uts"},
		}}}, Options{ID: "pause"})
	},
}

// TestGolden shows what the kernel will be asked to do. Read the difference
// before you rewrite it with -update.
func TestGolden(t *testing.T) {
	for name, compile := range goldenPrograms {
		p, err := compile()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		file := filepath.Join("testdata", name+".golden")
		got := p.String()
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs from %s:\n%s", name, file, got)
		}
	}
}

func TestEncoding(t *testing.T) {
	var q Program // of each, in the memory of those before
	for name, compile := range goldenPrograms {
		p, err := compile()
		if err != nil {
			t.Fatal(err)
		}
		b, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if err := q.UnmarshalBinary(b); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again, err := q.MarshalBinary(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: encoded differently: %v", name, err)
		}
		if p.String() != q.String() || p.ID() != q.ID() || p.Terminal() != q.Terminal() || p.owner != q.owner {
			t.Errorf("%s: decoded differently: %s", name, q.String())
		}
		for _, n := range []int{0, 1, len(b) / 2, len(b) - 1} {
			if err := q.UnmarshalBinary(b[:n]); err == nil {
				t.Errorf("%s: decoded from %d of %d bytes", name, n, len(b))
			}
		}
	}
}

// FuzzDecode decodes anything. What decodes must be printable, and stay within
// its bounds when it is laid out for a child.
func FuzzDecode(f *testing.F) {
	for _, compile := range goldenPrograms {
		p, err := compile()
		if err != nil {
			f.Fatal(err)
		}
		b, err := p.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Program
		if p.UnmarshalBinary(b) != nil {
			return
		}
		_ = p.String()
		for i := range p.ops {
			p.ops[i].raw(0)
		}
		again, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		text := p.String()
		if err := p.UnmarshalBinary(again); err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if p.String() != text {
			t.Fatalf("encoded again:\n%s\nbefore:\n%s", p.String(), text)
		}
	})
}
