// Package sysgroup puts the agent, and the machine's other programs that are in no
// group of their own, into cgroups, so that what they take can be told from what pods
// take (kubeletCgroups and systemCgroups of a KubeletConfiguration). It limits
// nothing; reservations do (enforceNodeAllocatable).
package sysgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"podstead/cgroup"
)

// Groups are the groups by their paths; an empty one is not wanted. They stay when
// the agent ends, as do the processes in them.
type Groups struct {
	Hierarchy *cgroup.Hierarchy
	Own       string // of this process, all that it starts included
	Rest      string // of all that is in From
	From      string // "/" but in tests
	Log       *slog.Logger
}

const (
	// period is how often Keep looks for new processes; a kubelet's.
	period = 5 * time.Minute
	// rounds bounds how often all are looked for again, because some that were
	// being moved have started others.
	rounds = 10
)

// Keep puts all in their places, and does so again until ctx ends. What goes wrong
// is warned about: pods do not depend on it.
func (g *Groups) Keep(ctx context.Context) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	said := ""
	for {
		if err := g.Place(); err != nil && err.Error() != said {
			said = err.Error()
			g.Log.Warn("processes are not in the groups that they were to be in", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// Place puts all in their places once.
func (g *Groups) Place() error {
	var ownErr, restErr error
	if g.Own != "" {
		if ownErr = g.place(g.Own, os.Getpid()); ownErr != nil {
			ownErr = fmt.Errorf("kubeletCgroups: %w", ownErr)
		}
	}
	if g.Rest != "" {
		if restErr = g.placeRest(); restErr != nil {
			restErr = fmt.Errorf("systemCgroups: %w", restErr)
		}
	}
	return errors.Join(ownErr, restErr)
}

func (g *Groups) place(name string, pid int) error {
	to := g.Hierarchy.Group(name)
	if err := to.Create(); err != nil {
		return err
	}
	return to.Move(pid)
}

// placeRest moves what is left in From, and what comes while it does.
func (g *Groups) placeRest() error {
	var errs error
	for range rounds {
		pids, err := g.Hierarchy.Directly(g.From)
		if err != nil {
			return err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return !movable(pid) })
		if len(pids) == 0 {
			return nil
		}
		errs = nil
		for _, pid := range pids {
			if err := g.place(g.Rest, pid); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
				errs = errors.Join(errs, err)
			}
		}
	}
	if errs == nil {
		errs = fmt.Errorf("there are always new processes in %s", g.From)
	}
	return errs
}

// movable: init stays where it is, and threads of the kernel, which have no program,
// cannot be moved.
func movable(pid int) bool {
	_, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return pid != 1 && err == nil
}
