// Package hook runs the hooks of an OCI specification: programs of the host that
// have something to do when a container is made. It is called by the OCI runtime
// and by the engine's built-in handler; it keeps nothing, and its hooks end with
// their caller.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Kind is one of the kinds of hooks, with those of a specification.
type Kind struct {
	Name  string
	Hooks []specs.Hook
}

// Kinds returns the kinds in the order in which they run.
func Kinds(h *specs.Hooks) []Kind {
	if h == nil {
		h = &specs.Hooks{}
	}
	return []Kind{
		{"prestart", h.Prestart}, //nolint:staticcheck // deprecated, but widely used
		{"createRuntime", h.CreateRuntime},
		{"createContainer", h.CreateContainer},
		{"startContainer", h.StartContainer},
		{"poststart", h.Poststart},
		{"poststop", h.Poststop},
	}
}

// Check finds what cannot be a hook, by name.
func Check(h *specs.Hooks) error {
	for _, k := range Kinds(h) {
		for i, hook := range k.Hooks {
			if !filepath.IsAbs(hook.Path) {
				return fmt.Errorf("hooks.%s[%d].path: %q is not absolute", k.Name, i, hook.Path)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fmt.Errorf("hooks.%s[%d].timeout: %d is not above 0", k.Name, i, *hook.Timeout)
			}
		}
	}
	return nil
}

// Error says which hook failed and with what last words.
func Error(kind string, i int, h specs.Hook, err error, output []byte) error {
	if len(output) > 0 {
		return fmt.Errorf("hooks.%s[%d] %s: %w: %s", kind, i, h.Path, err, bytes.TrimSpace(output))
	}
	return fmt.Errorf("hooks.%s[%d] %s: %w", kind, i, h.Path, err)
}

// Run runs hooks in the runtime's namespaces, one after another, each with
// the container's state on its standard input. The first error ends it.
func Run(ctx context.Context, kind string, hooks []specs.Hook, state specs.State) error {
	for i, h := range hooks {
		if out, err := RunOne(ctx, h, state); err != nil {
			return Error(kind, i, h, err, out)
		}
	}
	return nil
}

// prepare returns what a hook reads, and how long it may take.
func prepare(ctx context.Context, h specs.Hook, state specs.State) (input []byte, limited context.Context, cancel context.CancelFunc, err error) {
	if input, err = json.Marshal(state); err != nil {
		return nil, nil, nil, err
	}
	if h.Timeout == nil {
		return input, ctx, func() {}, nil
	}
	limited, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
	return input, limited, cancel, nil
}

// RunOne runs one hook, and returns the beginning of what it said.
func RunOne(ctx context.Context, h specs.Hook, state specs.State) (output []byte, err error) {
	input, ctx, cancel, err := prepare(ctx, h, state)
	if err != nil {
		return nil, err
	}
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Path)
	cmd.Args = h.Args
	if len(cmd.Args) == 0 {
		cmd.Args = []string{h.Path}
	}
	cmd.Env = h.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // and not this process's own
	}
	cmd.Dir = state.Bundle
	cmd.Stdin = bytes.NewReader(input)
	var out limitedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// A hook ends with its deadline, and with us, together with what it has
	// started; what it has put into the background may stay after a proper end,
	// but must not hold us by keeping the output open.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // its end would be the parent's
	defer runtime.UnlockOSThread()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("timed out: %w", ctx.Err())
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return out.Bytes(), err
}

// limitedBuffer keeps the first few kilobytes of an output, for an error text.
type limitedBuffer struct{ bytes.Buffer }

const outputKept = 4 << 10

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := outputKept - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
