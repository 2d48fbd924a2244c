package oci

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/resctrl"
	"podstead/sys"
)

// resctrl is the host's resctrl file system.
func (r *Runtime) resctrl() (*resctrl.FS, error) {
	if r.Resctrl != nil {
		return r.Resctrl, nil
	}
	return resctrl.Find()
}

// makeResctrl makes the container's resctrl group, which its processes join one
// by one.
func (c *container) makeResctrl(spec *specs.Spec, undo *sys.Undo) error {
	rdt := spec.Linux.IntelRdt
	if rdt == nil {
		return nil
	}
	fs, err := c.runtime.resctrl()
	if err != nil {
		return fmt.Errorf("linux.intelRdt: %w", err)
	}
	if c.RDT, err = fs.Create(c.ID, rdt); err != nil {
		return fmt.Errorf("linux.intelRdt.%w", err)
	}
	undo.Add("remove resctrl group", func(context.Context) error { return fs.Remove(c.RDT) })
	return c.save() // whoever deletes what is left of us has to know it
}

// joinResctrl puts processes into the container's resctrl group, if it has one.
func (c *container) joinResctrl(pids ...int) error {
	if c.RDT == nil {
		return nil
	}
	for _, pid := range pids {
		if err := c.RDT.Join(pid); err != nil {
			return fmt.Errorf("linux.intelRdt: %w", err)
		}
	}
	return nil
}

// removeResctrl removes what is the container's own. Where the file system is
// not mounted any more, there is nothing.
func (c *container) removeResctrl() error {
	if c.RDT == nil {
		return nil
	}
	fs, err := c.runtime.resctrl()
	if err != nil {
		return nil
	}
	return fs.Remove(c.RDT)
}

// updateResctrl changes the schemata of the container's group; a container that
// was in none gets one of its own.
func (c *container) updateResctrl(rdt *specs.LinuxIntelRdt) error {
	fs, err := c.runtime.resctrl()
	if err != nil {
		return err
	}
	if c.RDT != nil {
		return fs.Set(c.RDT, rdt)
	}
	if c.RDT, err = fs.Create(c.ID, rdt); err != nil {
		return err
	}
	pids, err := c.group().Procs()
	if err == nil {
		err = c.joinResctrl(pids...)
	}
	if err == nil {
		err = c.save()
	}
	if err != nil {
		err = errors.Join(err, fs.Remove(c.RDT))
		c.RDT = nil
	}
	return err
}
