package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podstead/oci/hook"
)

// Delete removes a stopped container, or one that was created and never
// started; with force also a running one, and a missing one is no error.
func (r *Runtime) Delete(ctx context.Context, id string, force bool) error {
	c, err := r.loadLocked(id)
	if errors.Is(err, ErrNotFound) && force {
		return r.deleteRest(id)
	}
	if err != nil {
		return err
	}
	defer c.unlock()
	status, err := c.status()
	if err != nil {
		return err
	}
	if !force && status != specs.StateStopped && status != specs.StateCreated {
		return fmt.Errorf("cannot delete container %s that is not stopped: %s", id, status)
	}
	return c.destroy(ctx)
}

// deleteRest removes a directory without a record, which a create that died at
// once has left.
func (r *Runtime) deleteRest(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return os.RemoveAll(r.dir(id))
}

// destroy ends what still lives of a container and removes all of it. The
// record goes last, so that a failed attempt can be repeated.
func (c *container) destroy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if c.Pid != 0 && c.alive() {
		if err := c.signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("delete container %s: %w", c.ID, err)
		}
	}
	if err := c.killAll(ctx, unix.SIGKILL); err != nil {
		return fmt.Errorf("delete container %s: %w", c.ID, err)
	}
	if c.hasGroup() {
		if err := c.group().Remove(ctx); err != nil {
			return fmt.Errorf("delete container %s: %w", c.ID, err)
		}
	}
	if err := c.removeResctrl(); err != nil {
		return fmt.Errorf("delete container %s: %w", c.ID, err)
	}
	c.removeParents()
	spec, err := c.laterSpec()
	if err == nil {
		err = c.unmountRoot(spec)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // of a create that was killed at once
		return fmt.Errorf("delete container %s: %w", c.ID, err)
	}
	c.runPoststop(ctx)
	if err := os.RemoveAll(c.dir()); err != nil {
		return fmt.Errorf("delete container %s: %w", c.ID, err)
	}
	return nil
}

// removeParents removes the groups that were made above the container's own
// because its path was relative, unless they are in use.
func (c *container) removeParents() {
	for p := path.Dir(c.Cgroup); p == relativeCgroups || strings.HasPrefix(p, relativeCgroups+"/"); p = path.Dir(p) {
		if c.runtime.Cgroups.Group(p).RemoveEmpty() != nil {
			return
		}
	}
}

// runPoststop runs the hooks of the end: each gets its turn, and one that fails
// is only worth a warning (runtime-spec, lifecycle step 13).
func (c *container) runPoststop(ctx context.Context) {
	spec, err := c.laterSpec()
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.runtime.Log.Warn("poststop hooks not run", "container", c.ID, "error", err)
		}
		return
	}
	if spec.Hooks == nil {
		return
	}
	for i, h := range spec.Hooks.Poststop {
		if out, err := hook.RunOne(ctx, h, c.state(specs.StateStopped)); err != nil {
			c.runtime.Log.Warn("hook failed", "container", c.ID, "error", hook.Error("poststop", i, h, err, out))
		}
	}
}

func deleteCommand(cli *cli) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete CONTAINER",
		Short: "Remove a stopped container's cgroup and state",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return cli.runtime.Delete(cmd.Context(), args[0], force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill the container first if it runs; a missing one is no error")
	return cmd
}
