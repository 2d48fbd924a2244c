package oci

import (
	"encoding/json"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// agent answers for the system calls of processes, as what listens at
// linux.seccomp.listenerPath does: each fails with an errno that nothing else
// would give.
type agent struct {
	path   string
	states chan specs.ContainerProcessState
}

const agentErrno = unix.EXDEV

func newAgent(t testing.TB) *agent {
	t.Helper()
	a := &agent{path: filepath.Join(t.TempDir(), "agent"), states: make(chan specs.ContainerProcessState, 8)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if err := a.serve(conn); err != nil {
				t.Error(err)
			}
		}
	}()
	return a
}

// serve takes a listener, and answers for it until its processes are gone.
func (a *agent) serve(conn *net.UnixConn) error {
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<16)
	n, files, err := sys.RecvMsg(int(f.Fd()), buf)
	if err != nil {
		return err
	}
	var s specs.ContainerProcessState
	if err := json.Unmarshal(buf[:n], &s); err != nil {
		return err
	}
	a.states <- s
	go func() {
		defer sys.CloseAll(files)
		for answer(int(files[0].Fd())) {
		}
	}()
	return nil
}

// state is what the agent was told of the next process.
func (a *agent) state(b *box) specs.ContainerProcessState {
	b.Helper()
	select {
	case s := <-a.states:
		return s
	case <-time.After(time.Minute):
		b.Fatal("the agent got nothing")
		panic("unreachable")
	}
}

// answer answers for one system call.
func answer(listener int) bool {
	poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, -1); err == unix.EINTR {
		return true
	}
	if poll[0].Revents&unix.POLLIN == 0 {
		return false
	}
	var call struct { // struct seccomp_notif
		id uint64
		_  [72]byte
	}
	var reply struct { // struct seccomp_notif_resp
		id, value int64
		errno     int32
		flags     uint32
	}
	const recv, send = 0xc0502100, 0xc0182101 // SECCOMP_IOCTL_NOTIF_RECV, _SEND
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), recv, uintptr(unsafe.Pointer(&call))); e != 0 {
		return e == unix.ENOENT || e == unix.EINTR
	}
	reply.id, reply.errno = int64(call.id), -int32(agentErrno)
	unix.Syscall(unix.SYS_IOCTL, uintptr(listener), send, uintptr(unsafe.Pointer(&reply)))
	return true
}

func notifying(listener string, names ...string) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, ListenerPath: listener, ListenerMetadata: "what the author says",
		Syscalls: []specs.LinuxSyscall{{Names: names, Action: specs.ActNotify}},
	}
}

// An agent answers for a system call of the container's process and of an exec.
func TestSeccompListener(t *testing.T) {
	onBoth(t, func(b *box) {
		for _, nnp := range []bool{true, false} {
			a := newAgent(t)
			b.spec.Process.NoNewPrivileges = nnp
			b.spec.Linux.Seccomp = notifying(a.path, "mkdir", "mkdirat")
			b.spec.Annotations = map[string]string{"a": "b"}
			b.script("mkdir /made 2>/message; sleep 1000")
			b.up()
			pid := b.state().Pid
			s := a.state(b)
			if s.Pid != pid || s.State.ID != b.id || s.State.Bundle != b.bundle || s.Metadata != "what the author says" ||
				!slices.Equal(s.Fds, []string{"seccompFd"}) || s.State.Annotations["a"] != "b" || s.State.Pid != pid {
				b.Errorf("the agent got %+v", s)
			}
			if b.ours && s.State.Status != specs.StateCreated {
				b.Errorf("status is %s", s.State.Status)
			}
			b.eventually("the answer", func() bool {
				return strings.Contains(strings.ToLower(b.content("message")), agentErrno.Error())
			})
			if r := b.run("exec", b.id, "mkdir", "/made"); r.code != 1 || !strings.Contains(strings.ToLower(r.stderr), agentErrno.Error()) {
				b.Errorf("exec: %+v", r)
			}
			s = a.state(b)
			if s.Pid == pid || s.Pid == 0 || s.State.Pid != pid || s.State.Status != specs.StateRunning {
				b.Errorf("the agent got %+v of an exec", s)
			}
			b.must("delete", "--force", b.id)
		}
	})
}

// What a process does between its filter and its image may be an agent's to
// answer for too; and a filter that is in the way says so.
func TestSeccompListenerInTheWay(t *testing.T) {
	onBoth(t, func(b *box) {
		a := newAgent(t)
		b.spec.Linux.Seccomp = notifying(a.path, "execve")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); r.code == 0 || b.ours && !strings.Contains(strings.ToLower(r.stderr), agentErrno.Error()) {
			b.Errorf("execve fails: %+v", r)
		}
		a.state(b)
		b.run("delete", "-f", b.id)
		if !b.ours {
			return
		}
		b.spec.Linux.Seccomp = notifying(a.path, "mkdir")
		b.spec.Linux.Seccomp.Syscalls = append(b.spec.Linux.Seccomp.Syscalls, specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActErrno})
		b.write()
		b.fails([]string{"linux.seccomp", "write"}, "run", "-b", b.bundle, b.id)
	})
}

func TestSeccompListenerRefused(t *testing.T) {
	onBoth(t, func(b *box) {
		nobody := filepath.Join(t.TempDir(), "nobody")
		for _, c := range []struct {
			want    string
			profile *specs.LinuxSeccomp
		}{
			{"linux.seccomp.listenerPath", notifying("", "mkdir")},
			{"linux.seccomp.syscalls[0].action: write", notifying(nobody, "write")},
			{"linux.seccomp.listenerPath " + nobody, notifying(nobody, "mkdir")},
		} {
			b.spec.Linux.Seccomp = c.profile
			if c.profile.ListenerPath == "" {
				c.profile.ListenerMetadata = ""
			}
			b.script("echo > /ran")
			b.write()
			b.fails([]string{c.want}, "run", "-b", b.bundle, b.id)
			b.run("delete", "-f", b.id)
			if b.has("ran") {
				b.Error("the process ran")
			}
		}
	})
}
