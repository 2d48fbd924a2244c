// Package criu has CRIU take processes' state to files and bring them back. It
// speaks CRIU's remote procedure calls, protobuf messages over a seqpacket
// socket, with "criu swrk": a CRIU process that serves one call. It is called by
// the OCI command line and by the engine, and keeps no state; what was dumped is
// in the caller's directories.
//
// A dump's CRIU is a child of the caller (Start). A restore's is whatever the
// caller has launched with the other end of Pair: CRIU makes the restored
// process its own sibling, so it becomes a child of CRIU's parent.
//
// The protocol is encoded by hand: of its hundred fields thirty are used, a
// protobuf runtime would double the OCI command's size, and go-criu's client
// starts CRIU itself, and drops the descriptors that come with notifications.
//
// Image files are attacker input when they come from an archive. CRIU obeys
// them: credentials, mounts and files are what they say. Policy.Check compares
// what CRIU has made with what was asked for, before any of it runs.
package criu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrAbsent is in the error if the host has no CRIU.
var ErrAbsent = errors.New("the program criu is not installed")

// Find returns the path of the host's CRIU.
func Find() (string, error) {
	if path, err := exec.LookPath("criu"); err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} { // not in everybody's PATH
		if path, err := exec.LookPath(filepath.Join(dir, "criu")); err == nil {
			return path, nil
		}
	}
	return "", ErrAbsent
}

// MinVersion is what an operation needs: 3.16 knows pid namespaces from outside
// and freezes cgroup v2.
const MinVersion = 31600

// Conn is a connection with one CRIU process.
type Conn struct {
	sock *net.UnixConn
	cmd  *exec.Cmd // nil if somebody else has started it
	once sync.Once
	err  error
}

// Pair makes a connection and CRIU's end of it, for a CRIU that the caller has
// launched. The caller closes both.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "criu"), os.NewFile(uintptr(fds[1]), "criu")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return &Conn{sock: conn.(*net.UnixConn)}, theirs, nil
}

// Start runs CRIU as a child. Close ends it.
func Start(path string) (*Conn, error) {
	c, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	c.cmd = exec.Command(path, Args("3")...)
	c.cmd.Args[0] = "criu"
	c.cmd.Env = Env()
	c.cmd.ExtraFiles = []*os.File{theirs}
	if err := c.cmd.Start(); err != nil {
		c.sock.Close()
		return nil, fmt.Errorf("start criu: %w", err)
	}
	return c, nil
}

// Args are CRIU's arguments, without its name, for a socket with this number.
func Args(socket string) []string { return []string{"swrk", socket} }

// Env is CRIU's environment: it runs tar, iptables and ip. Without HOME the
// administrator's /etc/criu/default.conf counts and no user's.
func Env() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// Close ends the connection. A child that has not served its call is killed:
// CRIU's own code in the processes that it was dumping ends when it does.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.err = c.sock.Close()
		if c.cmd == nil {
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.cmd.Wait() // whether it did its work it has said before
		}()
		select {
		case <-done:
		case <-time.After(closeGrace):
			c.err = errors.Join(c.err, c.cmd.Process.Kill())
			<-done
		}
	})
	return c.err
}

// closeGrace is how long a CRIU that has lost its client may take to let go of
// the processes that it holds.
const closeGrace = 3 * time.Second

// Version asks CRIU for its version: 31701 is 3.17.1.
func Version(ctx context.Context, path string) (int, error) {
	c, err := Start(path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	resp, err := c.call(ctx, typeVersion, nil, nil)
	if err != nil {
		return 0, fmt.Errorf("criu: ask for its version: %w", err)
	}
	return resp.version, nil
}

// Check tells whether CRIU works with this kernel, by asking CRIU; the error has
// its words.
func Check(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, path, "check").CombinedOutput()
	if err == nil {
		return nil
	}
	return fmt.Errorf("criu check: %s", strings.Join(errorLines(string(out), 3), "; "))
}

// Usable finds CRIU and tells its path if it is new enough and works here.
func Usable(ctx context.Context) (string, error) {
	path, err := Find()
	if err != nil {
		return "", err
	}
	if err := Check(ctx, path); err != nil {
		return "", err
	}
	v, err := Version(ctx, path)
	if err != nil {
		return "", err
	}
	if v < MinVersion {
		return "", fmt.Errorf("criu is version %d.%d, 3.16 is needed", v/10000, v/100%100)
	}
	return path, nil
}
