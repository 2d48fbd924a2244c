package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// sendConsole hands a pty's master to whoever listens on a unix stream socket,
// as the data of one message the terminal's name (runc's protocol).
func sendConsole(socket string, console *os.File) error {
	return send("--console-socket", socket, console.Name(), console)
}

func send(flag, socket, data string, file *os.File) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("%s %s: %w", flag, socket, errors.Unwrap(err))
	}
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return fmt.Errorf("%s %s: %w", flag, socket, err)
	}
	defer f.Close()
	if err := sys.SendMsg(int(f.Fd()), []byte(data), []*os.File{file}); err != nil {
		return fmt.Errorf("%s %s: %w", flag, socket, err)
	}
	return nil
}

// sendPidfd hands a descriptor of the process to whoever listens, with its pid
// as the data.
func sendPidfd(socket string, pid int, pidfd *os.File) error {
	return send("--pidfd-socket", socket, fmt.Sprint(pid), pidfd)
}

// sendListener hands a process's seccomp listener to the agent that answers for
// its system calls, with what the specification calls the container process
// state as the data. The process waits until this is done.
func sendListener(profile *specs.LinuxSeccomp, state specs.State, pid int, listener *os.File) error {
	data, err := json.Marshal(specs.ContainerProcessState{
		Version: Version, Fds: []string{specs.SeccompFdName}, Pid: pid,
		Metadata: profile.ListenerMetadata, State: state,
	})
	if err != nil {
		return err
	}
	return send("linux.seccomp.listenerPath", profile.ListenerPath, string(data), listener)
}

// checkConsole refuses combinations of terminal and console socket that would
// leave a terminal without a reader, or a reader without a terminal.
func checkConsole(terminal bool, socket string, detached bool) error {
	switch {
	case terminal && detached && socket == "":
		return errors.New("process.terminal: a detached process needs --console-socket")
	case !terminal && socket != "":
		return errors.New("--console-socket: process.terminal is not set")
	}
	return nil
}

// writePidFile writes a pid for another program, which may be waiting for the
// file to appear: it appears complete.
func writePidFile(path string, pid int) error {
	if path == "" {
		return nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if err := sys.WriteFileAtomic(path, fmt.Appendf(nil, "%d", pid), 0o644, false); err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	return nil
}

// listenFds is how many sockets the caller has given us for the container, as
// systemd does for a unit with sockets.
func listenFds() (int, error) {
	s := os.Getenv("LISTEN_FDS")
	if s == "" || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0, nil // none, or another process's
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("LISTEN_FDS: %w", err)
	}
	return int(n), nil
}

// withListenFds tells a container's first process of its sockets.
func withListenFds(p *specs.Process, n int) *specs.Process {
	if n == 0 {
		return p
	}
	q := *p
	q.Env = append(slices.Clone(p.Env), fmt.Sprintf("LISTEN_FDS=%d", n), "LISTEN_PID=1")
	return &q
}

// extraFiles are descriptors 3, 4, … that the process gets besides its stdio.
func extraFiles(n int) ([]*os.File, error) {
	var files []*os.File
	for fd := 3; fd < 3+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("--preserve-fds %d: descriptor %d: %w", n, fd, err)
		}
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("descriptor %d", fd)))
	}
	return files, nil
}
