package oci

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

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
	onBoth(t, func(b *box) {
		b.needs("1.2", "")
		socket, received := b.console()
		b.create("--pidfd-socket", socket)
		pidfd := received()
		if err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil {
			b.Error(err)
		}
		b.stopped()
	})
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

// giveFiles makes pipes with contents the command's descriptors 3, 4, …
func (b *box) giveFiles(cmd *exec.Cmd, contents ...string) {
	b.Helper()
	for _, s := range contents {
		r, w, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { r.Close() })
		io.WriteString(w, s)
		w.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	}
}

func TestPreserveFds(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("cat <&3; cat <&4; ls /proc/self/fd | while read f; do echo fd $f; done")
		b.write()
		cmd := b.cmd("run", "-b", b.bundle, "--preserve-fds", "2", b.id)
		b.giveFiles(cmd, "three\n", "four\n")
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
		b.giveFiles(cmd, "three\n", "four\n")
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

func TestSpec(t *testing.T) {
	onBoth(t, func(b *box) {
		dir := b.TempDir()
		b.must("spec", "--bundle", dir)
		if _, err := readSpec(dir + "/config.json"); err != nil {
			b.Error(err)
		}
		b.fails([]string{"config.json", "exists"}, "spec", "--bundle", dir)
		users := b.TempDir()
		b.must("spec", "--rootless", "--bundle", users)
		if s, err := readSpec(users + "/config.json"); err != nil || len(s.Linux.UIDMappings) != 1 {
			b.Errorf("%+v, %v", s, err)
		}
		if got := b.must("--version"); b.ours && !strings.Contains(got, "spec: "+Version) {
			b.Errorf("%q", got)
		}
	})
}

func TestFeatures(t *testing.T) {
	onBoth(t, func(b *box) {
		b.needs("1.1", "1.8.6")
		var f struct {
			OciVersionMax string
			MountOptions  []string
			Linux         struct{ Namespaces []string }
		}
		if err := json.Unmarshal([]byte(b.must("features")), &f); err != nil || b.ours && f.OciVersionMax != Version ||
			!slices.Contains(f.MountOptions, "rro") || !slices.Contains(f.Linux.Namespaces, "user") {
			b.Errorf("%+v, %v", f, err)
		}
	})
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
