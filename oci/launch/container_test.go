package launch

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// expectOutput runs a container and compares what it prints.
func expectOutput(t *testing.T, spec *specs.Spec, opt Options, want string) {
	t.Helper()
	out, status := run(t, spec, opt)
	if out != want || status.ExitStatus() != 0 {
		t.Errorf("status %#x, output %q, want %q", status, out, want)
	}
}

// expectError launches a container that must fail, and checks that the error
// says where.
func expectError(t *testing.T, spec *specs.Spec, opt Options, want string) error {
	t.Helper()
	opt.ID = "box"
	p, err := Compile(spec, opt)
	if err == nil {
		_, _, err = execute(t, p)
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	return err
}

func TestIdentity(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "id -u; id -g; id -G; umask; pwd; grep -E '^(Cap|NoNew)' /proc/self/status")
	umask := uint32(0o027)
	spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8}, Umask: &umask}
	spec.Process.Cwd = "/made/for/me"
	spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding:    []string{"CAP_KILL", "CAP_NET_RAW", "CAP_CHOWN"},
		Permitted:   []string{"CAP_KILL", "CAP_NET_RAW", "CAP_SYS_RESOURCE"},
		Effective:   []string{"CAP_KILL"},
		Inheritable: []string{"CAP_NET_RAW"},
		Ambient:     []string{"CAP_NET_RAW"},
	}
	// Ambient NET_RAW (13) alone survives the execve of another user.
	expectOutput(t, spec, Options{}, `1000
1001
1001 7 8
0027
/made/for/me
CapInh:	0000000000002000
CapPrm:	0000000000002000
CapEff:	0000000000002000
CapBnd:	0000000000002021
CapAmb:	0000000000002000
NoNewPrivs:	1
`)
}

// TestWorkingDirectoryOfRoot is one that the user may not enter.
func TestWorkingDirectoryOfRoot(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	if err := os.Mkdir(filepath.Join(root, "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, nnp := range []bool{true, false} {
		spec := testSpec(root, "pwd; id -u")
		spec.Process.Cwd, spec.Process.User.UID, spec.Process.NoNewPrivileges = "/root", 1000, nnp
		expectOutput(t, spec, Options{}, "/root\n1000\n")
	}
}

// TestSignals starts a container from a process that ignores some.
func TestSignals(t *testing.T) {
	needRoot(t)
	signal.Ignore(unix.SIGHUP, unix.SIGUSR1)
	defer signal.Reset(unix.SIGHUP, unix.SIGUSR1)
	spec := testSpec(rootfs(t), "")
	spec.Process.Args = []string{"grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"}
	expectOutput(t, spec, Options{}, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n")
}

// TestAllCapabilities asks for more than the host may have to give.
func TestAllCapabilities(t *testing.T) {
	needRoot(t)
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	spec := testSpec(rootfs(t), "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status")
	all := Capabilities()
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Permitted: all, Effective: all}
	var want strings.Builder
	for _, line := range strings.SplitAfter(string(own), "\n") {
		if strings.HasPrefix(line, "CapBnd:") {
			_, mask, _ := strings.Cut(line, "\t")
			fmt.Fprintf(&want, "CapPrm:\t%sCapEff:\t%sCapBnd:\t%s", mask, mask, mask)
		}
	}
	expectOutput(t, spec, Options{}, want.String())
}

func TestLimits(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; id -u")
	spec.Process.Rlimits = []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 99}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, {Type: "RLIMIT_FSIZE", Soft: 0, Hard: 0},
	}
	adj := 500
	spec.Process.OOMScoreAdj = &adj
	spec.Linux.Sysctl = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80"}
	spec.Process.Args[2] += "; cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start"
	expectOutput(t, spec, Options{}, "77\n99\n0\n500\n0\n1\n80\n")
}

func TestOomScoreAdjWithoutPrivilege(t *testing.T) {
	needRoot(t)
	spec := testSpec(rootfs(t), "exit 0")
	adj := -1000
	spec.Process.OOMScoreAdj = &adj
	p, err := Compile(spec, Options{ID: "box"})
	if err != nil {
		t.Fatal(err)
	}
	c := forkOnly(t, p)
	defer c.Pidfd.Close()
	status, _ := os.ReadFile("/proc/self/status")
	if !strings.Contains(string(status), "CapEff:\t000001ff") || strings.Contains(string(status), "CapEff:\t000001ffffffffff") {
		t.Log("this host has CAP_SYS_RESOURCE")
	} else if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "oom_score_adj") {
		t.Errorf("warnings: %q", c.Warnings)
	}
	if err := c.Start(); err != nil {
		t.Error(err)
	}
	unix.Wait4(c.Pid, nil, 0, nil)
}

func TestErrorsNameTheStep(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	if err := os.WriteFile(filepath.Join(root, "data"), []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "script"), []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "interpreted"), []byte("#!/no/such\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*specs.Spec)
		want   string
		errno  error
	}{
		{"no interpreter", func(s *specs.Spec) {
			s.Process.Args, s.Process.Env = []string{"interpreted"}, []string{"PATH=/:/bin"}
		}, `exec: "interpreted": no such file or directory`, unix.ENOENT},
		{"no such command", func(s *specs.Spec) { s.Process.Args = []string{"foo"} }, `exec: "foo": executable file not found in $PATH`, unix.ENOENT},
		{"command is not executable", func(s *specs.Spec) {
			s.Process.Args, s.Process.Env = []string{"data"}, []string{"PATH=/nowhere:relative:/:/bin"}
		}, `exec: "data": permission denied`, unix.EACCES},
		{"no path", func(s *specs.Spec) {
			s.Process.Args, s.Process.Env = []string{"foo"}, []string{"PATH="}
		}, `exec: "foo": executable file not found in $PATH`, unix.ENOENT},
		{"no such file", func(s *specs.Spec) { s.Process.Args = []string{"/foo"} }, `exec: "/foo": no such file or directory`, unix.ENOENT},
		{"not executable", func(s *specs.Spec) { s.Process.Args = []string{"/data"} }, `exec: "/data": permission denied`, unix.EACCES},
		{"directory", func(s *specs.Spec) { s.Process.Args = []string{"/bin"} }, `exec: "/bin": permission denied`, unix.EACCES},
		{"no format", func(s *specs.Spec) { s.Process.Args = []string{"/script"} }, `exec: "/script": exec format error`, unix.ENOEXEC},
		{"no source", func(s *specs.Spec) { s.Mounts = append(s.Mounts, bind("/no/such", "/data2")) }, "mount /data2: /no/such: no such file or directory", unix.ENOENT},
		{"file over directory", func(s *specs.Spec) { s.Mounts = append(s.Mounts, bind("/bin/busybox", "/tmp")) }, "mount /tmp: invalid argument (one of", unix.EINVAL},
		{"unknown file system", func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nofs"}) }, "mount /x: no such device", unix.ENODEV},
		{"unknown option", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"colour=red"}})
		}, "mount /x: option colour=red: invalid argument", unix.EINVAL},
		{"hard limit", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}}
		}, "process.rlimits[0]: set RLIMIT_NOFILE", unix.EPERM},
		{"foreign sysctl", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no_such": "1"} }, "set sysctl net.no_such", unix.ENOENT},
		{"cwd is a file", func(s *specs.Spec) { s.Process.Cwd = "/data" }, "working directory /data: not a directory", unix.ENOTDIR},
		{"namespace of another kind", func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/proc/self/ns/uts" }, "join network namespace: invalid argument", unix.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := testSpec(root, "true")
			c.change(spec)
			if err := expectError(t, spec, Options{}, c.want); !errors.Is(err, c.errno) {
				t.Errorf("%v is not %v", err, c.errno)
			}
		})
	}
}

func bind(source, destination string, options ...string) specs.Mount {
	return specs.Mount{Destination: destination, Source: source, Type: "bind", Options: append([]string{"rbind"}, options...)}
}

// TestRefused has what cannot be done, by the name of the field.
func TestRefused(t *testing.T) {
	for want, change := range map[string]func(*specs.Spec){
		"process.args":                                func(s *specs.Spec) { s.Process.Args = nil },
		"process.cwd":                                 func(s *specs.Spec) { s.Process.Cwd = "tmp" },
		"process.env[0]":                              func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} },
		"process.rlimits[0].type":                     func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"process.rlimits[0].soft":                     func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 1}} },
		"process.capabilities.effective[14]":          func(s *specs.Spec) { s.Process.Capabilities.Effective = append(defaultCaps[:14:14], "CAP_FLY") },
		"process.scheduler.policy":                    func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "X"} },
		"process.ioPriority":                          func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "X"} },
		"process.terminal":                            func(s *specs.Spec) { s.Process.Terminal, s.Mounts = true, nil },
		"root.path":                                   func(s *specs.Spec) { s.Root = nil },
		"mounts[6].destination":                       func(s *specs.Spec) { s.Mounts = append(s.Mounts, bind("/x", "/")) },
		"mounts[6].destination: /proc/sys":            func(s *specs.Spec) { s.Mounts = append(s.Mounts, bind("/x", "/proc/sys")) },
		"mounts[6].source":                            func(s *specs.Spec) { s.Mounts = append(s.Mounts, bind("", "/x")) },
		"mounts[6].type":                              func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x"}) },
		"linux.namespaces[6]":                         func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) },
		"linux.namespaces: a container needs a mount": func(s *specs.Spec) { s.Linux.Namespaces = nil },
		"linux.uidMappings": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		},
		"linux.devices[0].type":               func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "q"}} },
		"linux.devices[0].path":               func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "x", Type: "c"}} },
		`linux.sysctl["kernel.core_pattern"]`: func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|/x"} },
		`linux.sysctl["net.ipv4/../../x"]`:    func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4/../../x": "1"} },
		"linux.timeOffsets:":                  func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} },
		`linux.timeOffsets["x"]`: func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"x": {}}
		},
		"linux.memoryPolicy.nodes": func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "3-1"}
		},
		"linux.intelRdt":        func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} },
		"linux.netDevices: not": func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"a": {}} },
		"linux.personality.flags": func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"X"}}
		},
		"linux.rootfsPropagation": func(s *specs.Spec) { s.Linux.RootfsPropagation = "x" },
		"linux.seccomp.listenerPath": func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/x"}
		},
		"linux.seccomp.defaultAction": func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} },
		"hooks.startContainer":        func(s *specs.Spec) { s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{}}} },
		"hooks.poststart":             func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststart: []specs.Hook{{}}} },
		"hooks.poststop":              func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{}}} },
		"hostname: needs":             func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[4:] },
	} {
		spec := testSpec("/rootfs", "true")
		spec.Process.Capabilities = &specs.LinuxCapabilities{}
		change(spec)
		if _, err := Compile(spec, Options{ID: "box"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestSeccomp(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	profile := defaultProfile(t)
	profile.Syscalls = append([]specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActKillProcess}}, profile.Syscalls...)
	for i := range profile.Syscalls[1:] { // which allow mkdir, and may not contradict
		s := &profile.Syscalls[i+1]
		var names []string
		for _, n := range s.Names {
			if n != "mkdir" && n != "mkdirat" {
				names = append(names, n)
			}
		}
		s.Names = names
	}
	for _, nnp := range []bool{true, false} {
		spec := testSpec(root, "grep Seccomp: /proc/self/status; busybox mkdir /x; echo $?; hostname x; id -u")
		spec.Process.NoNewPrivileges = nnp
		spec.Process.User.UID = 1000
		spec.Linux.Seccomp = profile
		out, _ := run(t, spec, Options{})
		const sigsys = "159"
		want := "Seccomp:\t2\n"
		if !strings.HasPrefix(out, want) || !strings.Contains(out, sigsys+"\n") || !strings.HasSuffix(out, "1000\n") {
			t.Errorf("no_new_privs %v: output %q", nnp, out)
		}
	}
}

func TestMounts(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := testSpec(rootfs(t), `
cat /data/file /one/file
touch /data/new 2>&1
touch /rw/new && echo written
touch /scratch/x && cat /scratch/x
touch /etc/x 2>&1
grep -E ' /(data|rw|scratch) ' /proc/self/mountinfo | while read a b c d e f g; do echo $e ${f%,*atime}; done`)
	spec.Root.Readonly = true
	spec.Mounts = append(spec.Mounts,
		bind(host, "/data", "ro", "nosuid", "nodev"),
		bind(filepath.Join(host, "file"), "/one/file", "rprivate"),
		bind(host, "/rw", "rw"),
		specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec", "size=1m", "mode=700"}},
	)
	expectOutput(t, spec, Options{}, `from the host
from the host
touch: /data/new: Read-only file system
written
touch: /etc/x: Read-only file system
/data ro,nosuid,nodev
/rw rw
/scratch rw,noexec
`)
}

// Mounts are listed in the order of the specification: on Linux 6.8 and later, which
// sorts them by number, as before.
func TestMountsAreListedInOrder(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	spec := testSpec(rootfs(t), "cut -d' ' -f5 /proc/self/mountinfo | grep ^/in-")
	mapped := bind(host, "/in-5")
	mapped.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}}
	mapped.GIDMappings = mapped.UIDMappings
	spec.Mounts = append(spec.Mounts, bind(host, "/in-1"), tmpfs("/in-2"), bind("/bin/busybox", "/in-3"), tmpfs("/in-1/in-4"), mapped, bind(host, "/in-6"))
	expectOutput(t, spec, Options{}, "/in-1\n/in-2\n/in-3\n/in-1/in-4\n/in-5\n/in-6\n")
}

// TestRecursiveReadonly mounts a tree with a writable submount.
func TestRecursiveReadonly(t *testing.T) {
	needRoot(t)
	host := privateTmpfs(t)
	sub := filepath.Join(host, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	spec := testSpec(rootfs(t), "touch /ro/x 2>&1; touch /ro/sub/x && echo written; touch /rro/x 2>&1; touch /rro/sub/x 2>&1; true")
	spec.Mounts = append(spec.Mounts, bind(host, "/ro", "ro"), bind(host, "/rro", "rro"))
	expectOutput(t, spec, Options{}, `touch: /ro/x: Read-only file system
written
touch: /rro/x: Read-only file system
touch: /rro/sub/x: Read-only file system
`)
}

// privateTmpfs is a shared mount on the host, for the length of a test.
func privateTmpfs(t *testing.T) string {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestPropagation mounts on both sides of bind mounts.
func TestPropagation(t *testing.T) {
	needRoot(t)
	host := privateTmpfs(t)
	for _, d := range []string{"up", "down"} {
		if err := os.Mkdir(filepath.Join(host, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		option           string
		toHost, fromHost bool
	}{{"rprivate", false, false}, {"rslave", false, true}, {"rshared", true, true}, {"", false, true}} {
		t.Run(c.option, func(t *testing.T) {
			spec := testSpec(rootfs(t), "mount -t tmpfs up /m/up && echo ready && cat && grep -c ' /m/down ' /proc/self/mountinfo")
			admin := append(defaultCaps[:len(defaultCaps):len(defaultCaps)], "CAP_SYS_ADMIN")
			spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: admin, Permitted: admin, Effective: admin}
			m := bind(host, "/m")
			if c.option != "" {
				m.Options = append(m.Options, c.option)
			}
			spec.Mounts = append(spec.Mounts, m)
			p, err := Compile(spec, Options{ID: "box"})
			if err != nil {
				t.Fatal(err)
			}
			in, talk := startTalking(t, p)
			if got := talk.line(); got != "ready" {
				t.Fatalf("container says %q", got)
			}
			up := isMount(t, filepath.Join(host, "up"))
			if up != c.toHost {
				t.Errorf("the container's mount on the host: %v", up)
			}
			down := filepath.Join(host, "down")
			if err := unix.Mount("tmpfs", down, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			in.Close()
			want := "0"
			if c.fromHost {
				want = "1"
			}
			if got := talk.line(); got != want {
				t.Errorf("the host's mount in the container: %s", got)
			}
			unix.Unmount(down, unix.MNT_DETACH)
			unix.Unmount(filepath.Join(host, "up"), unix.MNT_DETACH)
		})
	}
}

func isMount(t *testing.T, path string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), " "+path+" ")
}

// TestOverlay mounts more layers than their names fit into a page.
func TestOverlay(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	var lower []string
	for i := range 120 {
		dir := filepath.Join(base, fmt.Sprintf("layer-%060d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "top"), fmt.Appendln(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, dir)
	}
	lower = append(lower, rootfs(t))
	o := overlayOptions(t, lower...)
	expectOutput(t, testSpec("", "cat /top; echo new > /top; cat /top"), Options{Rootfs: o}, "0\nnew\n")
	if b, err := os.ReadFile(filepath.Join(o.Upper, "top")); err != nil || string(b) != "new\n" {
		t.Errorf("upper directory: %q %v", b, err)
	}
	o.Lower[3] = "/no/such/layer"
	err := expectError(t, testSpec("", "true"), Options{Rootfs: o}, "/no/such/layer")
	if !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
}

// TestScheduling sets what decides where and when a process runs.
func TestScheduling(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	spec := testSpec(root, "exec sleep 1000")
	spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
	spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000}}
	spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	pid := start(t, mustCompile(t, spec))
	attr, err := unix.SchedGetAttr(pid, 0)
	if err != nil || attr.Policy != unix.SCHED_BATCH || attr.Nice != 3 {
		t.Errorf("scheduler %+v, %v", attr, err)
	}
	prio, _, _ := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(pid), 0)
	if prio != 2<<13|6 {
		t.Errorf("I/O priority %#x", prio)
	}
	proc := *spec.Process
	proc.Args = []string{"sh", "-c", "cut -d. -f1 /proc/uptime; grep Cpus_allowed_list /proc/self/status; grep bind /proc/1/numa_maps | head -n 1 | wc -l; cat /proc/1/personality"}
	proc.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-1", Final: "0"}
	x, err := CompileExec(spec, &proc, ExecOptions{ID: "box/1", Pid: pid})
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := execute(t, x)
	if err != nil {
		t.Fatal(err)
	}
	var uptime int
	var rest string
	fmt.Sscan(out, &uptime, &rest)
	if uptime < 1000000 || !strings.Contains(out, "Cpus_allowed_list:\t0\n") || !strings.HasSuffix(out, "\n00000008\n") {
		t.Errorf("output %q", out)
	}
}
