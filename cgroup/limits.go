package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// LimitError is a limit that could not be applied.
type LimitError struct {
	Field string // "linux.resources.memory.limit"
	Group string // the group's path
	Err   error
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%s of cgroup %s: %v", e.Field, e.Group, e.Err)
}

func (e *LimitError) Unwrap() error { return e.Err }

// Set applies limits, all or nothing as far as the kernel allows: when one is
// refused, those before it get their old values back. The error is a
// *LimitError and names the field ("linux.resources.memory.limit"). A field
// that is nil, empty or 0 leaves the group's value alone (pids.limit 0 is a
// limit), and -1 is unlimited. A non-empty device list replaces the old one.
func (g *Group) Set(r *specs.LinuxResources) error {
	_, err := g.Change(r)
	return err
}

// Change is Set, and returns what puts the old limits back, as far as the kernel
// then allows: not those that are set by device. undo is never nil.
func (g *Group) Change(r *specs.LinuxResources) (undo func(), err error) {
	undo = func() {}
	if g.bad != nil {
		return undo, g.bad
	}
	if r == nil {
		return undo, nil
	}
	g.makeRoom(r.Memory)
	c := compiler{version: g.h.version, hybrid: g.h.unified != "", current: g.current}
	if err := c.compile(r); err != nil {
		var le *LimitError
		if errors.As(err, &le) {
			le.Group = g.path
		}
		return undo, err
	}
	devices, err := compileDevices(r.Devices)
	if err != nil {
		return undo, &LimitError{"linux.resources.devices", g.path, err}
	}
	done, err := g.apply(c.changes)
	if err != nil {
		return undo, err
	}
	if devices != nil {
		if err := g.setDevices(devices); err != nil {
			g.restore(done)
			return undo, &LimitError{"linux.resources.devices", g.path, err}
		}
	}
	if unit := g.unit(); unit != "" {
		if err := g.h.driver.Set(unit, r, g.h.Unified()); err != nil {
			g.restore(done)
			return undo, &LimitError{"linux.resources", g.path, err}
		}
	}
	return func() { g.restore(done) }, nil
}

// Split tells apart the limits to be set before a container's process prepares
// itself in the group, and after: it makes device nodes that it may not make
// later, and a memory limit is the container's, not the preparation's.
func Split(r *specs.LinuxResources) (early, late *specs.LinuxResources) {
	early, late = &specs.LinuxResources{}, &specs.LinuxResources{}
	if r != nil {
		*early = *r
		late.Memory, late.Devices, late.Unified = r.Memory, r.Devices, r.Unified
		early.Memory, early.Devices, early.Unified = nil, nil, nil
	}
	return early, late
}

// change is one file to be written to bring a limit about.
type change struct {
	field      string // below linux.resources
	controller string // "" : the cgroup2 directory, whatever the controller is
	file       string
	value      string
	keyed      bool // the file holds a line per device: a write changes one
	optional   bool // a kernel without the file is as good: nothing is to be limited
}

// current reads the group's present value of a file.
func (g *Group) current(controller, file string) (string, error) {
	return readFile(g.dir(controller) + "/" + file)
}

// apply writes all changes. Values depend on each other (memory with memory
// and swap, quota with period and burst), and which order is legal depends on
// the old ones: what the kernel calls invalid is tried again after the others,
// as long as that gets on. It returns what undoes the changes.
func (g *Group) apply(changes []change) (done []change, err error) {
	var failed error
	for len(changes) > 0 {
		var again []change
		failed = nil
		for _, c := range changes {
			old, err := g.write(c)
			if errors.Is(err, unix.EINVAL) {
				again = append(again, c)
				if failed == nil {
					failed = g.limitError(c, err)
				}
				continue
			}
			if err != nil {
				g.restore(done)
				return nil, g.limitError(c, err)
			}
			if !c.keyed {
				c.value = old
				done = append(done, c)
			}
		}
		if len(again) == len(changes) {
			g.restore(done)
			return nil, failed
		}
		changes = again
	}
	return done, nil
}

// write makes one change and returns the old value.
func (g *Group) write(c change) (old string, err error) {
	dir := g.dir(c.controller)
	if c.controller == "" {
		dir = g.h.unified + g.path
	}
	if dir == "" {
		return "", fmt.Errorf("the host has no %s controller", c.controller)
	}
	file := dir + "/" + c.file
	if !c.keyed {
		old, err = readFile(file)
		if errors.Is(err, os.ErrNotExist) && c.controller != "" && g.h.version(c.controller) == 2 && exists(dir) {
			if err := g.enable([]string{c.controller}); err != nil {
				return "", err
			}
			old, err = readFile(file)
		}
	}
	if err == nil {
		err = writeFile(file, c.value)
	}
	if c.optional && errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return old, err
}

// restore writes old values back, last first, best as it can: the error that
// is reported is the one that made it necessary.
func (g *Group) restore(done []change) {
	for range done { // each round can free what the next one needs
		for i := len(done) - 1; i >= 0; i-- {
			if c := done[i]; c.value != "" {
				_, _ = g.write(c)
			}
		}
	}
}

// limitError explains an error in the terms of the field.
func (g *Group) limitError(c change, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist) && !g.Exists():
		err = errors.New("the group does not exist")
	case errors.Is(err, os.ErrNotExist) && c.controller == "":
		err = fmt.Errorf("no file %s: the kernel does not have it or its controller is not enabled", c.file)
	case errors.Is(err, os.ErrNotExist):
		err = fmt.Errorf("no file %s: the kernel does not have it or the %s controller is not enabled", c.file, c.controller)
	case c.controller == "memory" && errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("write %s to %s: more than that is in use: %w", c.value, c.file, unix.EBUSY)
	default:
		var pe *os.PathError
		if errors.As(err, &pe) && pe.Op == "write" {
			err = fmt.Errorf("write %q to %s: %w", strings.TrimSpace(c.value), c.file, pe.Err)
		}
	}
	return &LimitError{"linux.resources." + c.field, g.path, err}
}
