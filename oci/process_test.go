package oci

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/sys"
)

func shellHook(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

// The hooks of all kinds write down when they run, with which state, and what
// they see.
func TestHooks(t *testing.T) {
	onBoth(t, func(b *box) {
		b.notRunc("runs poststart hooks before the start, and gives others another state")
		log := filepath.Join(t.TempDir(), "log")
		note := func(kind string) specs.Hook {
			return shellHook("read s; echo " + kind + " $(hostname) $s >> " + log)
		}
		if err := os.WriteFile(b.inside("log"), nil, 0o666); err != nil {
			b.Fatal(err)
		}
		b.spec.Hooks = &specs.Hooks{
			Prestart:        []specs.Hook{note("prestart")}, //nolint:staticcheck // still in use
			CreateRuntime:   []specs.Hook{note("createRuntime"), note("createRuntime2")},
			CreateContainer: []specs.Hook{note("createContainer")},
			StartContainer:  []specs.Hook{shellHook("read s; echo startContainer $(hostname) $s >> /log")},
			Poststart:       []specs.Hook{note("poststart")},
			Poststop:        []specs.Hook{shellHook("exit 1"), note("poststop")},
		}
		b.spec.Process.Args = []string{"/bin/sleep", "1000"}
		host, _ := os.Hostname()
		b.create()
		pid := b.state().Pid
		status := specs.StateCreated // after step 2 of the lifecycle, as runtime-spec has it
		if !b.ours {
			status = specs.StateCreating
		}
		b.hookLines(log, []hookLine{
			{"prestart", host, status, pid},
			{"createRuntime", host, status, pid},
			{"createRuntime2", host, status, pid},
			{"createContainer", "podstead", status, 1},
		})
		if b.content("log") != "" {
			b.Error("startContainer hook ran at create")
		}
		b.start()
		b.hookLines(b.inside("log"), []hookLine{{"startContainer", "podstead", specs.StateCreated, 1}})
		b.hookLines(log, []hookLine{{"poststart", host, specs.StateRunning, pid}})
		b.must("delete", "-f", b.id)
		b.hookLines(log, []hookLine{{"poststop", host, specs.StateStopped, 0}})
	})
}

type hookLine struct {
	kind, host string
	status     specs.ContainerState
	pid        int
}

// hookLines checks the lines of a log, and empties it.
func (b *box) hookLines(log string, want []hookLine) {
	b.Helper()
	data, err := os.ReadFile(log)
	if err != nil {
		b.Fatal(err)
	}
	var got []hookLine
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		var s specs.State
		if err := json.Unmarshal([]byte(f[2]), &s); err != nil || s.ID != b.id || s.Bundle != b.bundle {
			b.Errorf("hook's state is %s", f[2])
		}
		got = append(got, hookLine{f[0], f[1], s.Status, s.Pid})
	}
	if !slices.Equal(got, want) {
		b.Errorf("hooks ran as\n%v, want\n%v", got, want)
	}
	if err := os.Truncate(log, 0); err != nil {
		b.Fatal(err)
	}
}

// createContainer hooks find the container's mounts at the root's path.
func TestCreateContainerHookSeesTheMounts(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{
			shellHook("test -e " + b.inside("proc/self/status") + " && echo > " + b.inside("seen")),
		}}
		b.create()
		if !b.has("seen") {
			b.Error("no proc at the root's path")
		}
	})
}

func TestFailingStartContainerHook(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{shellHook("exit 1")}}
		b.script("touch /ran; sleep 1000")
		b.create()
		r := b.run("start", b.id)
		b.stopped()
		if b.has("ran") {
			b.Error("the process ran")
		}
		if b.ours && (r.code == 0 || !strings.Contains(r.stderr, "hooks.startContainer[0]")) {
			b.Errorf("%+v", r)
		}
	})
}

func TestFailingPoststartHook(t *testing.T) {
	onBoth(t, func(b *box) {
		b.notRunc("runs poststart hooks before the start")
		b.spec.Hooks = &specs.Hooks{Poststart: []specs.Hook{shellHook("exit 1")}}
		b.create()
		b.fails([]string{"hooks.poststart[0]"}, "start", b.id)
		b.stopped()
	})
}

func TestExec(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Process.Env = append(b.spec.Process.Env, "A=1")
		b.up()
		cmd := b.cmd("exec", b.id, "sh", "-c", "hostname; echo $A; cat; echo err >&2; exit 7")
		cmd.Stdin = strings.NewReader("in\n")
		if r := b.runWith(cmd); r.code != 7 || r.stdout != "podstead\n1\nin\n" || r.stderr != "err\n" {
			b.Errorf("%+v", r)
		}
		if got := b.must("exec", "-e", "B=2", "--cwd", "/bin", "-u", "5:6", b.id, "sh", "-c", "echo $A$B; pwd; id -u; id -g"); got != "12\n/bin\n5\n6\n" {
			b.Errorf("%q", got)
		}
		if r := b.run("exec", b.id, "sh", "-c", "kill -9 $$"); r.code != 128+9 {
			b.Errorf("%+v", r)
		}
		if r := b.run("exec", b.id, "no-such-program"); r.code != 255 && r.code != 1 || !strings.Contains(r.stderr, "no-such-program") {
			b.Errorf("%+v", r)
		}
		b.fails([]string{"--user"}, "exec", "-u", "nobody", b.id, "true")
		if b.ours { // a group that is no part of the container's, by path or by prefix
			b.fails([]string{"no such group"}, "exec", "--cgroup", "/../podstead", b.id, "true")
			b.fails([]string{"no such group"}, "exec", "--cgroup", b.id, b.id, "true")
		}
		b.fails(nil, "exec", "no-such-container", "true")
	})
}

func TestHome(t *testing.T) {
	onBoth(t, func(b *box) {
		if err := os.Mkdir(b.inside("etc"), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(b.inside("etc/passwd"), []byte("root:x:0:0:r:/root:/bin/sh\nuser:x:7:7::/home/user:\n"), 0o644); err != nil {
			b.Fatal(err)
		}
		b.script("echo $HOME")
		b.write()
		if got := b.must("run", "-b", b.bundle, b.id); got != "/root\n" {
			b.Errorf("HOME is %q", got)
		}
		b.script("sleep 1000")
		b.up()
		if got := b.must("exec", "-u", "7", b.id, "sh", "-c", "echo $HOME"); got != "/home/user\n" {
			b.Errorf("HOME is %q", got)
		}
		if got := b.must("exec", "-u", "8", b.id, "sh", "-c", "echo $HOME"); got != "/\n" {
			b.Errorf("HOME is %q", got)
		}
		if got := b.must("exec", "-e", "HOME=/x", b.id, "sh", "-c", "echo $HOME"); got != "/x\n" {
			b.Errorf("HOME is %q", got)
		}
	})
}

// The image's passwd is no reason to read the host's, or to hang.
func TestHomeFromHostilePasswd(t *testing.T) {
	for name, mess := range map[string]func(etc string) error{
		"link": func(etc string) error { return os.Symlink("/proc/self/root/etc/passwd", etc+"/passwd") },
		"fifo": func(etc string) error { return unix.Mkfifo(etc+"/passwd", 0o644) },
		"dir":  func(etc string) error { return os.Mkdir(etc+"/passwd", 0o755) },
	} {
		root := t.TempDir()
		if err := os.Mkdir(root+"/etc", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := mess(root + "/etc"); err != nil {
			t.Fatal(err)
		}
		if got := homeOf(0, root); got != "/" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func FuzzHomeIn(f *testing.F) {
	f.Add("root:x:0:0:r:/root:/bin/sh\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := homeIn(strings.NewReader(s), 0); !strings.HasPrefix(got, "/") {
			t.Errorf("home is %q", got)
		}
	})
}

func TestExecDetached(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		dir := t.TempDir()
		p := specs.Process{
			Args: []string{"sh", "-c", "echo $X > /x; sleep 1000"}, Env: []string{"PATH=/bin", "X=y"}, Cwd: "/",
			Capabilities: b.spec.Process.Capabilities,
		}
		data, _ := json.Marshal(p)
		if err := os.WriteFile(dir+"/process.json", data, 0o600); err != nil {
			b.Fatal(err)
		}
		b.must("exec", "-d", "--pid-file", dir+"/pid", "--process", dir+"/process.json", b.id)
		b.eventually("the process", func() bool { return b.content("x") == "y" })
		data, err := os.ReadFile(dir + "/pid")
		if err != nil {
			b.Fatal(err)
		}
		var pids []int
		if err := json.Unmarshal([]byte(b.must("ps", "-f", "json", b.id)), &pids); err != nil {
			b.Fatal(err)
		}
		var pid int
		fmt.Sscan(string(data), &pid)
		if !slices.Contains(pids, pid) {
			b.Errorf("pid %q is not among %v", data, pids)
		}
	})
}

// console listens for a terminal and returns its master when it is sent.
func (b *box) console() (socket string, master func() *os.File) {
	b.Helper()
	dir, err := os.MkdirTemp("", "podstead-oci-") // a socket's path is short
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	socket = dir + "/s"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return socket, func() *os.File {
		b.Helper()
		l.SetDeadline(time.Now().Add(time.Minute))
		conn, err := l.AcceptUnix()
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		f, err := conn.File()
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		var buf [4096]byte
		_, files, err := sys.RecvMsg(int(f.Fd()), buf[:])
		if err != nil || len(files) != 1 {
			b.Fatalf("received %d files: %v", len(files), err)
		}
		b.Cleanup(func() { files[0].Close() })
		return files[0]
	}
}

func TestConsoleSocket(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Process.Terminal = true
		b.script("tty; stty size; read line; echo got $line; exec sleep 1000")
		b.spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 101}
		socket, master := b.console()
		b.create("--console-socket", socket)
		m := master()
		b.start()
		in := bufio.NewReader(m)
		b.lines(in, "/dev/pts/0", "33 101")
		if _, err := m.WriteString("hello\n"); err != nil {
			b.Fatal(err)
		}
		b.lines(in, "hello", "got hello")

		socket, master = b.console()
		b.must("exec", "-d", "-t", "--console-socket", socket, b.id, "sh", "-c", "tty; exec sleep 1000")
		b.lines(bufio.NewReader(master()), "/dev/pts/1")
	})
}

func TestPidfdSocket(t *testing.T) {
	b := newBox(t, "")
	socket, received := b.console()
	b.create("--pidfd-socket", socket)
	pidfd := received()
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
	b.stopped()
}

func (b *box) lines(r *bufio.Reader, want ...string) {
	b.Helper()
	for _, w := range want {
		got, err := r.ReadString('\n')
		if strings.TrimSpace(got) != w {
			b.Fatalf("terminal says %q (%v), want %q", got, err, w)
		}
	}
}

func TestPreserveFds(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("cat <&3; cat <&4; ls /proc/self/fd | while read f; do echo fd $f; done")
		b.write()
		cmd := b.cmd("run", "-b", b.bundle, "--preserve-fds", "2", b.id)
		for _, s := range []string{"three\n", "four\n"} {
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			io.WriteString(w, s)
			w.Close()
			defer r.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, r)
		}
		r := b.runWith(cmd)
		if r.code != 0 || !strings.HasPrefix(r.stdout, "three\nfour\n") || strings.Contains(r.stdout, "fd 6") {
			b.Errorf("%+v", r)
		}
	})
}

func TestListenFds(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("cat <&3; cat <&4; echo $LISTEN_FDS $LISTEN_PID $$")
		b.write()
		cmd := b.cmd("run", "-b", b.bundle, "--preserve-fds", "1", b.id)
		cmd.Args = append([]string{"sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		for _, s := range []string{"three\n", "four\n"} {
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			io.WriteString(w, s)
			w.Close()
			defer r.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, r)
		}
		if r := b.runWith(cmd); r.stdout != "three\nfour\n1 1 1\n" {
			b.Errorf("%+v", r)
		}
	})
}

func TestNoDescriptorLeaks(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("echo /proc/self/fd/*")
		b.write()
		cmd := b.cmd("run", "-b", b.bundle, b.id)
		r, w, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		cmd.ExtraFiles = []*os.File{r, w}
		out := b.runWith(cmd)
		// The fourth is the shell's own, which reads the directory.
		if got := strings.Fields(out.stdout); len(got) > 4 {
			b.Errorf("open: %v", got)
		}
	})
}

func TestLimits(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](32 << 20)}
		b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr[int64](20)}
		b.spec.Linux.Resources.CPU = &specs.LinuxCPU{Shares: ptr[uint64](512)}
		b.up()
		// runc returns from start while its own threads still are in the group.
		b.eventually("one process", func() bool { s, _ := b.group().Stats(); return s.Pids == 1 })
		check := func(want uint64) {
			b.Helper()
			s, err := b.group().Stats()
			if err != nil || s.MemoryLimitBytes != want || s.Pids != 1 {
				b.Errorf("%+v, %v", s, err)
			}
		}
		check(32 << 20)
		b.must("update", "--memory", fmt.Sprint(64<<20), b.id)
		check(64 << 20)
		cmd := b.cmd("update", "-r", "-", b.id)
		cmd.Stdin = strings.NewReader(`{"memory": {"limit": 50331648}}`)
		if r := b.runWith(cmd); r.code != 0 {
			b.Error(r.stderr)
		}
		check(48 << 20)
		b.fails([]string{"cpu.cpus"}, "update", "--cpuset-cpus", "4000", b.id)
		var e struct {
			Type, ID string
			Data     struct {
				Memory struct{ Usage struct{ Limit, Usage uint64 } }
				Pids   struct{ Current uint64 }
			}
		}
		out := b.must("events", "--stats", b.id)
		if err := json.Unmarshal([]byte(out), &e); err != nil || e.Type != "stats" || e.ID != b.id ||
			e.Data.Memory.Usage.Limit != 48<<20 || e.Data.Memory.Usage.Usage == 0 || e.Data.Pids.Current != 1 {
			b.Errorf("%s: %+v, %v", out, e, err)
		}
	})
}

// TestOOMGroup: a container whose group is killed as a whole for its memory does
// not outlive one of its processes; another does.
func TestOOMGroup(t *testing.T) {
	if h, err := cgroup.Detect(); err != nil || !h.Unified() {
		t.Skip("needs cgroup v2")
	}
	onBoth(t, func(b *box) {
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](32 << 20), Swap: ptr[int64](32 << 20)}
		b.script("busybox tail /dev/zero; exit 7")
		for group, want := range map[string]int{"0": 7, "1": 137} {
			b.spec.Linux.Resources.Unified = map[string]string{"memory.oom.group": group}
			b.write()
			if r := b.run("run", "-b", b.bundle, b.id); r.code != want {
				b.Errorf("memory.oom.group %s: %+v, want %d", group, r, want)
			}
		}
	})
}

func TestDevices(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mine", Type: "c", Major: 1, Minor: 8}}
		b.spec.Process.Capabilities.Bounding = append(b.spec.Process.Capabilities.Bounding, "CAP_MKNOD")
		b.spec.Process.Capabilities.Permitted = append(b.spec.Process.Capabilities.Permitted, "CAP_MKNOD")
		b.spec.Process.Capabilities.Effective = append(b.spec.Process.Capabilities.Effective, "CAP_MKNOD")
		b.script("head -c1 /dev/mine >/dev/null && echo mine; mknod /loop b 7 9 && echo made; head -c1 /loop || echo denied")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); !strings.Contains(r.stdout, "mine\nmade\ndenied\n") {
			b.Errorf("%+v", r)
		}
	})
}

// Profiles in use (podman's) contradict themselves; the first rule wins.
func TestSeccompContradiction(t *testing.T) {
	onBoth(t, func(b *box) {
		rule := func(errno uint) specs.LinuxSyscall {
			return specs.LinuxSyscall{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}
		}
		b.spec.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow,
			Syscalls:      []specs.LinuxSyscall{rule(uint(unix.EXDEV)), rule(uint(unix.ENFILE))},
		}
		b.script("mkdir /x")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); !strings.Contains(strings.ToLower(r.stderr), unix.EXDEV.Error()) {
			b.Errorf("%+v", r)
		}
	})
}

func TestUserNamespace(t *testing.T) {
	onBoth(t, func(b *box) {
		m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = m, m
		for dir := filepath.Dir(b.bundle); dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o777); err != nil {
				b.Fatal(err)
			}
			if filepath.Dir(dir) == os.TempDir() {
				break
			}
		}
		for _, dir := range []string{"proc", "sys", "dev"} { // nobody in the container may make them
			if err := os.Mkdir(b.inside(dir), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		b.script("id -u; cat /proc/self/uid_map; head -c1 /dev/zero >/dev/null && echo zero; touch /x 2>/dev/null || echo denied; exec sleep 1000")
		b.write()
		log := filepath.Join(b.TempDir(), "log")
		out, err := os.Create(log)
		if err != nil {
			b.Fatal(err)
		}
		defer out.Close()
		cmd := b.cmd("create", "-b", b.bundle, b.id)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			data, _ := os.ReadFile(log)
			b.Fatalf("create: %v: %s", err, data)
		}
		b.start()
		b.eventually("the output", func() bool {
			data, _ := os.ReadFile(log)
			return strings.Join(strings.Fields(string(data)), " ") == "0 0 100000 65536 zero denied"
		})
		if got := b.must("exec", b.id, "sh", "-c", "id -u; cat /proc/self/uid_map"); strings.Join(strings.Fields(got), " ") != "0 0 100000 65536" {
			b.Errorf("exec: %q", got)
		}
	})
}

// A second container lives in the namespaces of a first.
func TestJoinedNamespaces(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		first := b.state().Pid
		second := newBox(b.TB.(*testing.T), map[bool]string{true: "", false: b.runtime}[b.ours])
		second.id += "-2"
		second.spec.Linux.CgroupsPath += "-2"
		for i, n := range second.spec.Linux.Namespaces {
			file := map[specs.LinuxNamespaceType]string{
				specs.PIDNamespace: "pid", specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
			}[n.Type]
			if file != "" {
				second.spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", first, file)
			}
		}
		second.spec.Hostname = ""
		second.script("hostname; for n in pid net ipc uts; do readlink /proc/self/ns/$n; done; kill -0 1 && echo sees 1; exit 0")
		second.write()
		out := second.must("run", "-b", second.bundle, second.id)
		want := "podstead\n"
		for _, n := range []string{"pid", "net", "ipc", "uts"} {
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", first, n))
			if err != nil {
				b.Fatal(err)
			}
			want += link + "\n"
		}
		if want += "sees 1\n"; out != want {
			b.Errorf("got\n%s\nwant\n%s", out, want)
		}
		b.isStatus(specs.StateRunning)
	})
}

// The preparation must not count against the container's memory.
func TestSmallMemoryLimit(t *testing.T) {
	b := newBox(t, "")
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](512 << 10)}
	b.script("exit 4")
	b.write()
	if r := b.run("run", "-b", b.bundle, b.id); r.code != 4 {
		t.Errorf("%+v", r)
	}
}

func TestSpecAndFeatures(t *testing.T) {
	b := newBox(t, "")
	dir := t.TempDir()
	b.must("spec", "--bundle", dir)
	if _, err := readSpec(dir + "/config.json"); err != nil {
		t.Error(err)
	}
	b.fails([]string{"config.json", "exists"}, "spec", "--bundle", dir)
	users := t.TempDir()
	b.must("spec", "--rootless", "--bundle", users)
	if s, err := readSpec(users + "/config.json"); err != nil || len(s.Linux.UIDMappings) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	var f struct {
		OciVersionMax string
		MountOptions  []string
		Linux         struct{ Namespaces []string }
	}
	if err := json.Unmarshal([]byte(b.must("features")), &f); err != nil || f.OciVersionMax != Version ||
		!slices.Contains(f.MountOptions, "rro") || !slices.Contains(f.Linux.Namespaces, "user") {
		t.Errorf("%+v, %v", f, err)
	}
	if got := b.must("--version"); !strings.Contains(got, "spec: "+Version) {
		t.Errorf("%q", got)
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]int{"9": 9, "KILL": 9, "sigkill": 9, "SIGTERM": 15, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63} {
		if got, err := parseSignal(s); int(got) != want || err != nil {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "SIG", "65", "-1", "RTMIN+40", "RTMIN+x"} {
		if got, err := parseSignal(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}

// TestProgramIsReadOnly: a container may have the process that becomes it, or
// is exec'd in it, execute /proc/self/exe, which is the runtime's program: it
// must not be able to write to it that way once it runs no more (CVE-2019-5736).
func TestProgramIsReadOnly(t *testing.T) {
	b := newBox(t, "")
	b.create()
	err := unix.Access(fmt.Sprintf("/proc/%d/exe", b.state().Pid), unix.W_OK)
	if err != unix.EROFS {
		b.Errorf("write to the program of a created container: %v", err)
	}
	if err := unix.Access("/proc/self/exe", unix.W_OK); err != nil {
		b.Errorf("without protection it is the same: %v", err)
	}
}
