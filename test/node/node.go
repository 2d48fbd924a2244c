// Package node runs the podstead program as a service, in directories of its
// own, for tests and the benchmark. It is to be used inside a host made by
// package host, as the node makes a bridge and firewall rules.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/test/host"
)

// patience is how long the program may take to start or end, on however slow a
// machine.
const patience = 5 * time.Minute

// Node is a running "podstead cri" or "podstead node" with its supervisor.
type Node struct {
	State, Run string // its directories
	program    string
	args       []string
	cmd        *exec.Cmd
	ended      chan struct{} // closed when cmd has exited
	exit       error         // how, set before that
}

// Start runs "program verb --state … --run …" and args, with its state below
// dir, and returns when its CRI socket answers. The supervisor is to be beside
// the program.
func Start(ctx context.Context, program, dir, verb string, args ...string) (*Node, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	run, err := os.MkdirTemp("/run", "podstead-")
	if err != nil {
		return nil, err
	}
	n := &Node{State: dir, Run: run, program: program}
	n.args = append([]string{verb, "--state", dir + "/state", "--run", run}, args...)
	if err := n.Again(ctx); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

// Again starts the program in the same directories, as a service manager does
// when it has ended.
func (n *Node) Again(ctx context.Context) error {
	log, err := os.OpenFile(n.State+"/log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(n.program, n.args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.program, err)
	}
	ended := make(chan struct{})
	n.cmd, n.ended = cmd, ended
	go func() {
		defer close(ended)
		n.exit = cmd.Wait()
	}()
	return n.await(ctx)
}

// Kill ends the program at once, as an operator's mistake would, and whatever
// it has below it stays.
func (n *Node) Kill() {
	n.cmd.Process.Kill()
	<-n.ended
}

// Wait returns when the front has ended.
func (n *Node) Wait() { <-n.ended }

// Endpoint is the CRI socket.
func (n *Node) Endpoint() string { return "unix://" + n.Run + "/cri.sock" }

// await waits until the runtime answers.
func (n *Node) await(ctx context.Context) error {
	r, err := remote.New(n.Endpoint())
	if err != nil {
		return err
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := r.Status(ctx, &runtimeapi.StatusRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-n.ended:
			return fmt.Errorf("podstead ended: %s", n.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("podstead does not answer: %w: %s", err, n.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// LogTail is the end of what the program and its engine have logged.
func (n *Node) LogTail() string {
	log, _ := os.ReadFile(n.State + "/log")
	return string(log[max(0, len(log)-4000):])
}

// Pids lists all processes that are the node's own: the program, the
// supervisor, the engine, and what the supervisor has forked and not yet
// become a container.
func (n *Node) Pids() []int { return Processes(filepath.Dir(n.program)+"/", n.Run) }

// Program is the name of the file that a process executes, also if another one has
// taken its place since.
func Program(pid int) string {
	target, _ := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return filepath.Base(strings.TrimSuffix(target, " (deleted)"))
}

// Processes finds those whose executable's path begins with exe (or is said to
// by the command line: the supervisor executes itself from a mount of its own),
// and whose command line has part.
func Processes(exe, part string) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		target, err := os.Readlink(dir + "/exe")
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if !strings.HasPrefix(target, exe) && !strings.HasPrefix(string(cmdline), exe) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && strings.Contains(string(cmdline), part) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// End ends the program as a service manager does. The error is how it ended.
func (n *Node) End() error {
	n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.ended:
	case <-time.After(patience):
		n.cmd.Process.Kill()
		<-n.ended
		return errors.New("podstead had to be killed")
	}
	return n.exit
}

// Stop ends the node, the supervisor too, and removes its state. Containers
// that still run lose their parent.
func (n *Node) Stop() error {
	if n.cmd != nil {
		n.End()
	}
	for _, pid := range n.Pids() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	return errors.Join(host.UnmountBelow(n.Run), os.RemoveAll(n.Run), host.UnmountBelow(n.State), os.RemoveAll(n.State))
}

// Run is Start for the time of a test, which fails if the node does not start
// or leaves something.
func Run(t testing.TB, program, verb string, args ...string) *Node {
	t.Helper()
	n, err := Start(t.Context(), program, filepath.Join(t.TempDir(), "podstead"), verb, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("podstead's log ends with:\n%s", n.LogTail())
		}
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	})
	return n
}
