package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Create makes the group and its parents; existing ones are no error. On v2 it
// enables the controllers for it down the tree. What it made of the group
// itself before it failed, it removes again; parents stay, others may use them.
func (g *Group) Create() (err error) {
	if g.bad != nil {
		return g.bad
	}
	started, err := g.start()
	if err != nil {
		return err
	}
	var made []string
	defer func() {
		if err == nil {
			return
		}
		if started {
			err = errors.Join(err, g.h.driver.Stop(context.Background(), g.unit()))
		}
		for _, dir := range made {
			err = errors.Join(err, os.Remove(dir))
		}
	}()
	for _, m := range g.h.v1 {
		if !g.h.joins(m) {
			continue
		}
		setup := func(string) error { return nil }
		if slices.Contains(m.controllers, "cpuset") {
			setup = inheritCpuset
		}
		fresh, err := makeDirs(m.dir, g.path, setup)
		if err != nil {
			return fmt.Errorf("create cgroup %s: %w", g.path, err)
		}
		if fresh {
			made = append(made, m.dir+g.path)
		}
	}
	if g.h.unified == "" {
		return nil
	}
	fresh, err := makeDirs(g.h.unified, g.path, func(string) error { return nil })
	if err != nil {
		return fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	if fresh {
		made = append(made, g.h.unified+g.path)
	}
	if g.h.Unified() {
		return g.enable(g.h.v2)
	}
	return nil
}

// makeDirs makes the directory root+p with its parents below root and runs
// setup on each that it made or found on its way, parents first. fresh tells
// that the last one is new.
func makeDirs(root, p string, setup func(dir string) error) (fresh bool, err error) {
	dir := root + p
	err = unix.Mkdir(dir, 0o755)
	if err == unix.ENOENT {
		if p == "/" {
			return false, &os.PathError{Op: "mkdir", Path: dir, Err: err}
		}
		if _, err := makeDirs(root, path.Dir(p), setup); err != nil {
			return false, err
		}
		err = unix.Mkdir(dir, 0o755)
	}
	if err != nil && err != unix.EEXIST {
		return false, &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	fresh = err == nil
	if err := setup(dir); err != nil {
		if fresh {
			err = errors.Join(err, os.Remove(dir))
		}
		return false, err
	}
	return fresh, nil
}

// inheritCpuset gives a v1 cpuset its parent's processors and memory nodes: a
// new one has none and could hold no process. clone_children makes the kernel
// do the same for all groups below, so that this runs once per tree.
func inheritCpuset(dir string) error {
	cpus, err := readFile(dir + "/cpuset.cpus")
	if err != nil {
		return err
	}
	mems, err := readFile(dir + "/cpuset.mems")
	if err != nil {
		return err
	}
	if cpus != "" && mems != "" {
		return nil
	}
	parent := path.Dir(dir)
	for _, name := range []string{"/cpuset.cpus", "/cpuset.mems"} {
		value, err := readFile(parent + name)
		if err != nil {
			return err
		}
		if value == "" { // made by somebody else, between the root and us
			if err := inheritCpuset(parent); err != nil {
				return err
			}
			if value, err = readFile(parent + name); err != nil {
				return err
			}
		}
		if err := writeFile(dir+name, value); err != nil {
			return err
		}
	}
	return writeFile(dir+"/cgroup.clone_children", "1")
}

// enable makes controllers available in the group's cgroup2 directory by
// enabling them in all its ancestors. One that the kernel refuses (cpu, where
// there are realtime processes) is left out: a limit that needs it then says so.
func (g *Group) enable(controllers []string) error {
	missing, err := g.disabled(controllers)
	if err != nil || len(missing) == 0 {
		return err
	}
	dir := g.h.unified
	for _, name := range strings.Split(strings.TrimPrefix(g.path, "/"), "/") {
		if err := enableIn(dir, missing); err != nil {
			return fmt.Errorf("create cgroup %s: %w", g.path, err)
		}
		dir += "/" + name
	}
	return nil
}

// disabled returns those of controllers that the group does not have.
func (g *Group) disabled(controllers []string) ([]string, error) {
	have, err := readFile(g.h.unified + g.path + "/cgroup.controllers")
	if err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	var missing []string
	for _, c := range controllers {
		if !strings.Contains(" "+have+" ", " "+c+" ") {
			missing = append(missing, c)
		}
	}
	return missing, nil
}

// enableIn enables those of controllers in a directory that it has itself: one
// that was delegated may have fewer than the root.
func enableIn(dir string, controllers []string) error {
	have, err := readFile(dir + "/cgroup.controllers")
	if err != nil {
		return err
	}
	controllers = slices.DeleteFunc(slices.Clone(controllers), func(c string) bool { return !slices.Contains(strings.Fields(have), c) })
	if len(controllers) == 0 {
		return nil
	}
	file := dir + "/cgroup.subtree_control"
	all := "+" + strings.Join(controllers, " +")
	err = writeFile(file, all)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w (the group has processes of its own, so its children can have no controllers)", err)
	}
	for _, c := range controllers {
		if err := writeFile(file, "+"+c); errors.Is(err, unix.EBUSY) || gone(err) {
			return err
		}
	}
	return nil
}

// Remove removes the group and its descendants, which must be empty of
// processes; it waits a little for dying ones. A missing group is no error.
func (g *Group) Remove(ctx context.Context) error {
	if g.bad != nil {
		return g.bad
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	var errs []error
	if unit := g.unit(); unit != "" {
		if err := g.h.driver.Stop(ctx, unit); err != nil {
			errs = append(errs, err)
		}
	}
	for _, dir := range g.everywhere() {
		if err := removeTree(ctx, dir); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", g.path, err)
	}
	return nil
}

// RemoveEmpty removes the group unless it has processes or descendants, and
// does not wait.
func (g *Group) RemoveEmpty() error {
	if g.bad != nil {
		return g.bad
	}
	for _, dir := range g.everywhere() {
		if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
			return fmt.Errorf("remove cgroup %s: %w", g.path, &os.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return nil
}

// removeTimeout is how long processes that were killed may take to be gone.
const removeTimeout = 5 * time.Second

// removeTree removes a group's directory; the fast path is one rmdir.
func removeTree(ctx context.Context, dir string) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY && err != unix.EINTR {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		children, err2 := childDirs(dir)
		if err2 != nil {
			return err2
		}
		for _, c := range children {
			if err := removeTree(ctx, c); err != nil {
				return err
			}
		}
		if len(children) > 0 && unix.Rmdir(dir) == nil {
			return nil
		}
		if !sleep(ctx, pause) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: busyError(dir)}
		}
	}
}

// busyError says who keeps a group busy, as far as it can be seen.
func busyError(dir string) error {
	procs, err := readFile(dir + "/cgroup.procs")
	if err != nil || procs == "" {
		return unix.EBUSY
	}
	return fmt.Errorf("%w: processes %s", unix.EBUSY, strings.Join(strings.Fields(procs), " "))
}

// childDirs lists the groups directly below a group's directory; a missing one
// has none.
func childDirs(dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == unix.ENOENT || err == nil && st.Nlink <= 2 {
		return nil, nil // a directory has a link from each below it
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if gone(err) {
			return nil, nil
		}
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, dir+"/"+e.Name())
		}
	}
	return dirs, nil
}

// sleep waits, and returns false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
