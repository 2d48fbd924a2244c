package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"podstead/agent/client"
)

func execCommand(opt *options) *cobra.Command {
	var (
		namespace   string
		o           client.ExecOptions
		interactive bool
	)
	cmd := &cobra.Command{
		Use:   "exec POD [flags] -- COMMAND [ARG…]",
		Short: "Run a command in a container",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Command = args[1:]
			o.Streams.Stdout = cmd.OutOrStdout()
			if interactive {
				o.Streams.Stdin = cmd.InOrStdin()
			}
			if !o.TTY {
				o.Streams.Stderr = cmd.ErrOrStderr()
			}
			c := opt.client()
			defer c.Close()
			if err := chooseContainer(cmd.Context(), c, namespace, args[0], &o.Container, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return exitStatus(withTerminal(&o, func() error { return c.Exec(cmd.Context(), namespace, args[0], o) }))
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(true)
	f.StringVarP(&namespace, "namespace", "n", defaultNamespace, "`NAMESPACE` of the pod")
	f.StringVarP(&o.Container, "container", "c", "", "`NAME` of the container; the first one if not given")
	f.BoolVarP(&interactive, "stdin", "i", false, "pass standard input to the command")
	f.BoolVarP(&o.TTY, "tty", "t", false, "give the command a terminal")
	return cmd
}

// exitStatus turns the exit status of a remote command into this program's.
func exitStatus(err error) error {
	var code utilexec.CodeExitError
	if errors.As(err, &code) {
		return exitError(code.ExitStatus())
	}
	return err
}

// withTerminal runs do with standard input in raw mode and its size passed on,
// if a terminal is wanted and there is one.
func withTerminal(o *client.ExecOptions, do func() error) error {
	fd := int(os.Stdin.Fd())
	if !o.TTY || o.Streams.Stdin == nil || !term.IsTerminal(fd) {
		return do()
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return err
	}
	defer term.Restore(fd, old)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o.Streams.TerminalSizeQueue = newSizes(ctx, fd)
	return do()
}

// sizes reports the size of a terminal: now, and whenever it changes.
type sizes struct {
	ctx     context.Context
	fd      int
	changed chan os.Signal
}

func newSizes(ctx context.Context, fd int) *sizes {
	s := &sizes{ctx: ctx, fd: fd, changed: make(chan os.Signal, 1)}
	s.changed <- syscall.SIGWINCH
	signal.Notify(s.changed, syscall.SIGWINCH)
	context.AfterFunc(ctx, func() { signal.Stop(s.changed) })
	return s
}

// Next implements remotecommand.TerminalSizeQueue.
func (s *sizes) Next() *remotecommand.TerminalSize {
	select {
	case <-s.ctx.Done():
		return nil
	case <-s.changed:
	}
	w, h, err := term.GetSize(s.fd)
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(w), Height: uint16(h)}
}
