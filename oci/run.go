package oci

import (
	"context"
	"errors"
	"sync"

	"github.com/spf13/cobra"
)

// Run creates and starts a container, waits for its process and, unless keep,
// deletes the container. It returns the process's exit code, 128 and the
// signal's number if one ended it.
func (r *Runtime) Run(ctx context.Context, id string, o CreateOptions, keep bool) (code int, err error) {
	child, err := r.Create(ctx, id, o)
	if err != nil {
		return 0, err
	}
	defer child.Pidfd.Close()
	if o.Detached {
		if err := r.Start(ctx, id); err != nil {
			return 0, errors.Join(err, r.Delete(ctx, id, true))
		}
		return 0, nil
	}
	s, err := newSession(child.Pid, child.Pidfd, child.Console)
	if err != nil {
		return 0, errors.Join(err, r.Delete(ctx, id, true))
	}
	n, err := r.start(ctx, id)
	if err != nil {
		err = errors.Join(err, r.Kill(ctx, id, 9, true))
	}
	var forwarding sync.WaitGroup
	if n != nil {
		n.pid = 0 // our caller's process is still this one
		forwarding.Go(func() {
			if err := n.forward(); err != nil {
				r.Log.Warn("not told of the container", "container", id, "err", err)
			}
		})
	}
	code, werr := s.wait()
	forwarding.Wait()
	s.close()
	err = errors.Join(err, werr)
	if !keep || err != nil {
		err = errors.Join(err, r.Delete(ctx, id, true))
	}
	return code, err
}

func runCommand(cli *cli) *cobra.Command {
	var flags createFlags
	var detach, keep, noSubreaper bool
	cmd := &cobra.Command{
		Use:   "run CONTAINER",
		Short: "Create and start a container, and wait for its end",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := flags.options()
			if err != nil {
				return err
			}
			o.Detached = detach
			code, err := cli.runtime.Run(cmd.Context(), args[0], o, keep)
			if err == nil && code != 0 {
				return exitError(code)
			}
			return err
		},
	}
	flags.add(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait for its end")
	cmd.Flags().BoolVar(&keep, "keep", false, "do not delete the container after its end")
	cmd.Flags().BoolVar(&noSubreaper, "no-subreaper", false, "accepted: there is never one")
	return cmd
}
