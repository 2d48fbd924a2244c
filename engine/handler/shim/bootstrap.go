package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// address is how a shim is reached.
type address struct {
	Version  int    `json:"version"`
	Address  string `json:"address"`
	Protocol string `json:"protocol"`
	// Events is the socket of the pod's stand-in, not of the shim's answer.
	Events string `json:"events,omitempty"`
}

// newestVersion of the shim protocol that is spoken here.
const newestVersion = 3

// start starts the pod's shim, and notes how it is reached.
func (t *Task) start(ctx context.Context) (*address, error) {
	if err := t.drainLog(); err != nil {
		return nil, err
	}
	input, err := t.bootstrapParams()
	if err != nil {
		return nil, err
	}
	// Shims before containerd 2.3 want runtime options or nothing here, and some
	// refuse anything else; a start that has failed has left nothing.
	answer, err := t.command(ctx, "start", input)
	if err != nil {
		old, oerr := t.runtimeOptions()
		if oerr != nil {
			return nil, oerr
		}
		var again error
		if answer, again = t.command(ctx, "start", old); again != nil {
			return nil, err
		}
	}
	a, err := parseAnswer(answer)
	if err != nil {
		return nil, fmt.Errorf("%s start: %w", t.Shim, err)
	}
	a.Events = t.Events
	data, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	return a, os.WriteFile(t.file(addressFile), data, 0o600)
}

// bootstrapParams are what newer shims read at "start".
func (t *Task) bootstrapParams() ([]byte, error) {
	p := &bootapi.BootstrapParams{
		InstanceID: t.ID, Namespace: namespace, ContainerdTtrpcAddress: t.Events, ContainerdBinary: publisher,
		LogLevel: bootapi.LogLevel_LOG_LEVEL_WARN,
	}
	options, err := t.options()
	if err != nil {
		return nil, err
	}
	if options != nil {
		p.Extensions = append(p.Extensions, &bootapi.Extension{Value: options})
	}
	return proto.Marshal(p)
}

// runtimeOptions are what older ones read.
func (t *Task) runtimeOptions() ([]byte, error) {
	options, err := t.options()
	if err != nil || options == nil {
		return nil, err
	}
	return proto.Marshal(options)
}

// options tell the runtime's own configuration file; nil: there is none.
func (t *Task) options() (*anypb.Any, error) {
	if t.ConfigPath == "" {
		return nil, nil
	}
	value, err := proto.Marshal(&runtimeoptions.Options{ConfigPath: t.ConfigPath})
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: value}, nil
}

// parseAnswer reads what a shim says at "start": a message, the same as JSON, or
// nothing but an address, by age.
func parseAnswer(b []byte) (*address, error) {
	a := &address{Version: 2, Protocol: "ttrpc"}
	var m bootapi.BootstrapResult
	text := bytes.TrimSpace(b)
	switch {
	case bytes.HasPrefix(text, []byte("{")):
		if err := json.Unmarshal(text, a); err != nil {
			return nil, fmt.Errorf("%w: %.200q", err, b)
		}
	case bytes.HasPrefix(text, []byte("unix://")):
		a.Address = string(text)
	default:
		if err := proto.Unmarshal(b, &m); err != nil {
			return nil, fmt.Errorf("%w: %.200q", err, b)
		}
		a.Version, a.Address, a.Protocol = int(m.Version), m.Address, m.Protocol
	}
	if a.Version < 2 || a.Version > newestVersion {
		return nil, fmt.Errorf("version %d of the protocol, want 2 to %d", a.Version, newestVersion)
	}
	if !strings.HasPrefix(a.Address, "unix://") || a.Protocol != "ttrpc" {
		return nil, fmt.Errorf("%q by %q: want unix:// by ttrpc", a.Address, a.Protocol)
	}
	return a, nil
}

// readAddress finds the shim of a pod.
func readAddress(bundle string) (*address, error) {
	b, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if err != nil {
		return nil, err
	}
	a := &address{}
	if err := json.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(bundle, addressFile), err)
	}
	return a, nil
}

func (a *address) dial() (*client, error) {
	conn, err := net.Dial("unix", strings.TrimPrefix(a.Address, "unix://"))
	if err != nil {
		return nil, err
	}
	return &client{ttrpc.NewClient(conn), fmt.Sprintf("containerd.task.v%d.Task", a.Version)}, nil
}

// removeSockets removes what a dead shim and its pod's stand-in have left. The
// path is what the shim has said: only a socket is removed.
func (a *address) removeSockets() {
	for _, path := range []string{strings.TrimPrefix(a.Address, "unix://"), a.Events} {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			os.Remove(path)
		}
	}
}

// drainLog makes the fifo that a shim logs to, and reads it as long as the
// stand-in lives.
func (t *Task) drainLog() error {
	path := t.file("log")
	os.Remove(path)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	go io.Copy(io.Discard, f)
	return nil
}

// namespace is containerd's, under which shims keep what is ours.
const namespace = "podstead"

// publisher is the program that shims from before TTRPC_ADDRESS tell events by;
// nobody listens to that.
const publisher = "/bin/true"

// commandTimeout bounds a call of the shim's command line.
const commandTimeout = 30 * time.Second

func (t *Task) command(ctx context.Context, verb string, input []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.Shim, "-namespace", namespace, "-publish-binary", publisher,
		"-id", t.ID, "-bundle", t.Bundle, verb)
	cmd.Dir = t.Bundle
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=3", "TTRPC_ADDRESS="+t.Events, "NAMESPACE="+namespace)
	cmd.WaitDelay = time.Second
	cmd.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %.1000s", t.Shim, verb, err, stderr.String())
	}
	return out, nil
}

// Features asks a shim's program for those of its runtime, in the words of the
// OCI specification. Programs from before containerd 2.0 do not know the question.
func Features(ctx context.Context, t Task) ([]byte, error) {
	input, err := t.runtimeOptions()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, t.Shim, "-info")
	cmd.Stdin = bytes.NewReader(input)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s -info: %w", t.Shim, err)
	}
	var info types.RuntimeInfo
	if err := proto.Unmarshal(out, &info); err != nil {
		return nil, fmt.Errorf("%s -info: %w", t.Shim, err)
	}
	if info.Features == nil {
		return nil, fmt.Errorf("%s -info: the runtime has no features command", t.Shim)
	}
	return info.Features.Value, nil
}

// deleteByCommand has the shim's program take away what a container has left
// whose shim is dead. A program that is gone has nothing to say.
func (t *Task) deleteByCommand(ctx context.Context) (code int, err error) {
	out, err := t.command(ctx, "delete", nil)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return exitKilled, nil // its processes are the cgroup's
	}
	if err != nil {
		return exitKilled, err
	}
	var m task.DeleteResponse
	if err := proto.Unmarshal(out, &m); err != nil || m.ExitStatus == 0 {
		return exitKilled, nil // nobody has seen how it ended
	}
	return int(m.ExitStatus), nil
}
