package ctl

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

func execCommand(s *session) *cobra.Command {
	var sync, input, tty bool
	var timeout int64
	cmd := &cobra.Command{
		Use: "exec CONTAINER COMMAND [ARG…]", Short: "Run a command in a container", Args: cobra.MinimumNArgs(2),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			if sync {
				return execSync(ctx, r, out, &runtimeapi.ExecSyncRequest{ContainerId: args[0], Cmd: args[1:], Timeout: timeout})
			}
			e, err := r.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: args[0], Cmd: args[1:], Tty: tty, Stdin: input, Stdout: true, Stderr: !tty})
			if err != nil {
				return err
			}
			return stream(ctx, e.GetUrl(), out, input, tty)
		}),
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the container is the command's
	f.BoolVarP(&sync, "sync", "s", false, "wait for the end and print the output then")
	f.BoolVarP(&input, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	f.Int64Var(&timeout, "timeout", 0, "`SECONDS` until a synchronous command is killed")
	return cmd
}

func execSync(ctx context.Context, r *remote.Runtime, out io.Writer, request *runtimeapi.ExecSyncRequest) error {
	e, err := r.ExecSync(ctx, request)
	if err != nil {
		return err
	}
	if _, err := out.Write(e.GetStdout()); err != nil {
		return err
	}
	if _, err := os.Stderr.Write(e.GetStderr()); err != nil {
		return err
	}
	if e.GetExitCode() != 0 {
		return fmt.Errorf("command terminated with exit code %d", e.GetExitCode())
	}
	return nil
}

func attachCommand(s *session) *cobra.Command {
	var input, tty bool
	cmd := &cobra.Command{
		Use: "attach CONTAINER", Short: "Connect to a container's own streams", Args: cobra.ExactArgs(1),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			a, err := r.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: args[0], Tty: tty, Stdin: input, Stdout: true, Stderr: !tty})
			if err != nil {
				return err
			}
			return stream(ctx, a.GetUrl(), out, input, tty)
		}),
	}
	cmd.Flags().BoolVarP(&input, "stdin", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "the container has a terminal")
	return cmd
}

// stream connects this process's streams to a streaming URL.
func stream(ctx context.Context, raw string, out io.Writer, input, tty bool) error {
	u, err := url.Parse(raw)
	if err != nil {
		return err
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdout: out, Tty: tty}
	if input {
		options.Stdin = os.Stdin
	}
	if !tty {
		options.Stderr = os.Stderr
		return e.StreamWithContext(ctx, options)
	}
	fd := int(os.Stdin.Fd())
	if !input || !term.IsTerminal(fd) {
		return fmt.Errorf("--tty needs --interactive, and a terminal as standard input")
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return err
	}
	defer term.Restore(fd, old)
	changed := make(chan os.Signal, 1)
	changed <- syscall.SIGWINCH // for the first size
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	options.TerminalSizeQueue = &sizes{ctx: ctx, fd: fd, changed: changed}
	return e.StreamWithContext(ctx, options)
}

// sizes tells the size of a terminal, now and whenever it changes.
type sizes struct {
	ctx     context.Context
	fd      int
	changed <-chan os.Signal
}

// Next implements remotecommand.TerminalSizeQueue.
func (s *sizes) Next() *remotecommand.TerminalSize {
	select {
	case <-s.ctx.Done():
		return nil
	case <-s.changed:
	}
	width, height, err := term.GetSize(s.fd)
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}

func portForwardCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "port-forward POD [LOCAL:]REMOTE…", Short: "Forward local ports to a pod", Args: cobra.MinimumNArgs(2),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			p, err := r.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: args[0]})
			if err != nil {
				return err
			}
			u, err := url.Parse(p.GetUrl())
			if err != nil {
				return err
			}
			transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
			if err != nil {
				return err
			}
			dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
			f, err := portforward.New(dialer, args[1:], ctx.Done(), make(chan struct{}), out, os.Stderr)
			if err != nil {
				return err
			}
			return f.ForwardPorts()
		}),
	}
}
