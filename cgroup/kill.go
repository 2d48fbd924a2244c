package cgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Procs lists the processes of the group and its descendants, sorted; a
// missing group has none.
func (g *Group) Procs() ([]int, error) {
	if g.bad != nil {
		return nil, g.bad
	}
	pids, err := treeProcs(g.procsDir())
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", g.path, err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// procsDir is the directory whose list of processes counts: the freezer's on
// v1, because that is the one they can be stopped in.
func (g *Group) procsDir() string {
	for _, c := range []string{"freezer", "devices", "memory", "pids", "cpu"} {
		if _, dir, ok := g.h.v1Dir(c); ok {
			return dir + g.path
		}
	}
	return g.dirs()[0]
}

func treeProcs(dir string) ([]int, error) {
	s, err := readFile(dir + "/cgroup.procs")
	if errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup2: its root lists them
		s, err = "", nil
	}
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pids := parseProcs(s)
	children, err := childDirs(dir)
	if err != nil {
		return nil, err
	}
	for _, c := range children {
		more, err := treeProcs(c)
		if err != nil {
			return nil, err
		}
		pids = append(pids, more...)
	}
	return pids, nil
}

// parseProcs reads a cgroup.procs.
func parseProcs(text string) (pids []int) {
	for line := range strings.Lines(text) {
		// 0 is a process that this pid namespace cannot see.
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Kill kills all of them, frozen or forking as they may be, and waits until the
// group is empty or ctx ends. A missing group is no error.
func (g *Group) Kill(ctx context.Context) error {
	if g.bad != nil {
		return g.bad
	}
	err := g.killUnified(ctx)
	if err == nil && (!g.h.Unified() || !exists(g.procsDir()+"/cgroup.kill")) {
		err = g.killAll(ctx)
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", g.path, err)
	}
	return nil
}

// killUnified kills what lives in the cgroup2 tree by cgroup.kill (kernel 5.14).
func (g *Group) killUnified(ctx context.Context) error {
	if g.h.unified == "" {
		return nil
	}
	dir := g.h.unified + g.path
	if err := writeFile(dir+"/cgroup.kill", "1"); err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	if !g.h.Unified() {
		g.thaw() // on v1 a frozen process does not die
	}
	return waitEvent(ctx, dir, "populated", "0")
}

// waitEvent waits until a cgroup2 directory's cgroup.events holds value for
// key. The kernel wakes who polls that file; a missing group holds "0".
func waitEvent(ctx context.Context, dir, key, value string) error {
	fd, err := open(dir+"/cgroup.events", unix.O_RDONLY)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 512)
	for {
		n, err := unix.Pread(fd, buf, 0)
		if err == unix.ENODEV {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("read %s/cgroup.events: %w", dir, err)
		}
		if n > 0 && strings.Contains("\n"+string(buf[:n]), "\n"+key+" "+value+"\n") {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for %q %s: %w", key, value, err)
		}
		// Bounded, because the thread cannot see ctx end while it waits.
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, pollMillis)
	}
}

// pollMillis is how late the end of a context may be noticed.
const pollMillis = 20

// killAll sends SIGKILL to each process until none is left. The first round
// just does it; if new ones have appeared then, they are stopped first, so
// that they cannot fork faster than they are killed.
func (g *Group) killAll(ctx context.Context) error {
	for round := 0; ; round++ {
		pids, err := treeProcs(g.procsDir())
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%d processes left: %w", len(pids), err)
		}
		if round > 0 {
			fctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			_ = g.setFrozen(fctx, true) // not all may stop in time; killing goes on
			cancel()
			if pids, err = treeProcs(g.procsDir()); err != nil {
				return errors.Join(err, g.thaw())
			}
		}
		watched := openPidfds(pids)
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				closePidfds(watched)
				return errors.Join(fmt.Errorf("process %d: %w", pid, err), g.thaw())
			}
		}
		err = g.thaw()
		waitPidfds(ctx, watched)
		closePidfds(watched)
		if err != nil {
			return err
		}
	}
}

// openPidfds opens handles on some of pids, for waiting.
func openPidfds(pids []int) []unix.PollFd {
	const enough = 64
	var fds []unix.PollFd
	for _, pid := range pids[:min(len(pids), enough)] {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	return fds
}

func closePidfds(fds []unix.PollFd) {
	for _, f := range fds {
		unix.Close(int(f.Fd))
	}
}

// waitPidfds waits until all those processes are dead, but not for long: the
// caller looks again.
func waitPidfds(ctx context.Context, fds []unix.PollFd) {
	if len(fds) == 0 {
		sleep(ctx, time.Millisecond)
	}
	left := slices.Clone(fds)
	for i := 0; i < 5 && len(left) > 0 && ctx.Err() == nil; i++ {
		if n, err := unix.Poll(left, pollMillis); err != nil || n == 0 {
			continue
		}
		left = slices.DeleteFunc(left, func(f unix.PollFd) bool { return f.Revents != 0 })
		i = 0
	}
}

// Freeze stops the processes of the group and its descendants, and waits until
// all of them have stopped; when ctx ends before, they go on.
func (g *Group) Freeze(ctx context.Context) error {
	if g.bad != nil {
		return g.bad
	}
	if err := g.setFrozen(ctx, true); err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", g.path, errors.Join(err, g.thaw()))
	}
	return nil
}

// Thaw lets them go on, those of descendants that were frozen on their own too.
func (g *Group) Thaw(ctx context.Context) error {
	if g.bad != nil {
		return g.bad
	}
	err := g.thaw()
	if err == nil {
		err = g.setFrozen(ctx, false)
	}
	if err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", g.path, err)
	}
	return nil
}

// Frozen tells whether the group is frozen.
func (g *Group) Frozen() (bool, error) {
	if g.bad != nil {
		return false, g.bad
	}
	if _, dir, ok := g.h.v1Dir("freezer"); ok {
		s, err := readFile(dir + g.path + "/freezer.state")
		return s == "FROZEN" || s == "FREEZING", err
	}
	s, err := readFile(g.h.unified + g.path + "/cgroup.freeze")
	return s == "1", err
}

// FreezerDir is the directory of the group's freezer, of either version; "" if
// the host has none.
func (g *Group) FreezerDir() string {
	if g.bad != nil {
		return ""
	}
	if _, dir, ok := g.h.v1Dir("freezer"); ok {
		return dir + g.path
	}
	if g.h.unified != "" {
		return g.h.unified + g.path
	}
	return ""
}

func (g *Group) setFrozen(ctx context.Context, frozen bool) error {
	if _, dir, ok := g.h.v1Dir("freezer"); ok {
		return setFrozenV1(ctx, dir+g.path+"/freezer.state", frozen)
	}
	if g.h.unified == "" {
		return errors.New("the host has no freezer controller")
	}
	dir, value := g.h.unified+g.path, "0"
	if frozen {
		value = "1"
	}
	if err := writeFile(dir+"/cgroup.freeze", value); err != nil {
		return err
	}
	return waitEvent(ctx, dir, "frozen", value)
}

// setFrozenV1 asks for a state until it is reached: a v1 freezer stays at
// FREEZING when a process was forking or in an uninterruptible wait, and looks
// again only when it is written or read. One that executes a program waits for the
// end of its other threads, which frozen ones do not come to: all are let go then
// for a moment.
func setFrozenV1(ctx context.Context, file string, frozen bool) error {
	want := "THAWED"
	if frozen {
		want = "FROZEN"
	}
	const patience = 16 // tries, a tenth of a second
	pause := 100 * time.Microsecond
	for try := 1; ; try++ {
		if err := writeFile(file, want); err != nil {
			return err
		}
		state, err := readFile(file)
		if err != nil {
			return err
		}
		if state == want {
			return nil
		}
		if !sleep(ctx, pause) {
			return fmt.Errorf("state is %s: %w", state, ctx.Err())
		}
		if frozen && try%patience == 0 {
			if err := writeFile(file, "THAWED"); err != nil {
				return err
			}
			if !sleep(ctx, pause) {
				return fmt.Errorf("state was %s: %w", state, ctx.Err())
			}
		}
		pause = min(2*pause, 10*time.Millisecond)
	}
}

// thaw writes the thawed state to the group and all groups below it, without
// waiting.
func (g *Group) thaw() error {
	if _, dir, ok := g.h.v1Dir("freezer"); ok {
		return thawTree(dir+g.path, "/freezer.state", "THAWED")
	}
	if g.h.unified != "" {
		return thawTree(g.h.unified+g.path, "/cgroup.freeze", "0")
	}
	return nil
}

func thawTree(dir, file, value string) error {
	if err := writeFile(dir+file, value); err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	children, err := childDirs(dir)
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := thawTree(c, file, value); err != nil {
			return err
		}
	}
	return nil
}
