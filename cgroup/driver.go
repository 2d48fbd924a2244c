package cgroup

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Driver is the service manager to whom part of the tree belongs: systemd's view
// of its units' groups has to agree with the kernel's, or it puts back what it
// remembers. It makes, limits and removes the groups that are units; all else,
// groups below a unit's among it, is done on the file system as ever.
type Driver interface {
	// Start makes a unit and its group; one that is there is no error. fresh
	// tells that it was not.
	Start(unit string, parent string) (fresh bool, err error)
	// Set tells it of limits that the group has got. v2 tells which interface
	// the group's controllers have.
	Set(unit string, r *specs.LinuxResources, v2 bool) error
	// Settle tells it that the group has processes of its own now, on which its
	// life depends.
	Settle(unit string) error
	// Stop ends a unit, with what still runs in it; a missing one is no error.
	Stop(ctx context.Context, unit string) error
	// Root is the group that the manager's units are below, "" for the root.
	Root() (string, error)
}

// WithDriver is the hierarchy with a service manager in charge. Group then takes
// its names too: "a-b.slice", and "a-b.slice:prefix:name" for a scope in it.
func (h *Hierarchy) WithDriver(d Driver) *Hierarchy {
	return &Hierarchy{v1: h.v1, unified: h.unified, v2: h.v2, systemd: h.systemd, driver: d}
}

// Driven tells whether groups are a service manager's.
func (h *Hierarchy) Driven() bool { return h.driver != nil }

// UnitPath is the path of a group that a service manager's name stands for: of a
// slice below all those that its name lists, and of a scope "slice:prefix:name".
// Other names are paths already.
func (h *Hierarchy) UnitPath(name string) (string, error) {
	if h.driver == nil || strings.Contains(name, "/") && !strings.Contains(name, ":") {
		return name, nil
	}
	slice, rest, isScope := strings.Cut(name, ":")
	if !isScope {
		if !strings.HasSuffix(name, ".slice") {
			return "", fmt.Errorf("cgroup %q: neither a path nor a slice", name)
		}
		return h.slicePath(name)
	}
	prefix, unit, ok := strings.Cut(rest, ":")
	if !ok || unit == "" || strings.ContainsAny(rest[len(prefix)+1:], ":") {
		return "", fmt.Errorf("cgroup %q: want slice:prefix:name", name)
	}
	if slice == "" {
		root, err := h.driver.Root()
		if err != nil {
			return "", err
		}
		slice = "system.slice"
		if root != "" {
			slice = "user.slice"
		}
	}
	parent, err := h.slicePath(slice)
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(unit, ".slice") {
		if prefix != "" {
			unit = prefix + "-" + unit
		}
		unit += ".scope"
	}
	if strings.ContainsAny(unit, "/\x00\n") {
		return "", fmt.Errorf("cgroup %q: %q is no name of a unit", name, unit)
	}
	return path.Join(parent, unit), nil
}

// slicePath is where systemd puts a slice: "a-b.slice" in "a.slice". The root
// slice is "-.slice".
func (h *Hierarchy) slicePath(slice string) (string, error) {
	root, err := h.driver.Root()
	if err != nil {
		return "", err
	}
	root = path.Join("/", root)
	name, ok := strings.CutSuffix(slice, ".slice")
	parts := strings.Split(name, "-")
	switch {
	case slice == "-.slice":
		return root, nil
	case !ok || strings.ContainsAny(slice, "/\x00\n") || slices.Contains(parts, ""):
		return "", fmt.Errorf("%q is no name of a slice", slice)
	}
	p := root
	for i := range parts {
		p = path.Join(p, strings.Join(parts[:i+1], "-")+".slice")
	}
	return p, nil
}

// unit is the name of the unit whose group this is, "" if it is none.
func (g *Group) unit() string {
	name := path.Base(g.path)
	if g.h.driver == nil || !strings.HasSuffix(name, ".scope") && !strings.HasSuffix(name, ".slice") {
		return ""
	}
	return name
}

// start makes a unit's group, before the file system is looked at.
func (g *Group) start() (fresh bool, err error) {
	unit := g.unit()
	if unit == "" {
		return false, nil
	}
	fresh, err = g.h.driver.Start(unit, path.Base(path.Dir(g.path)))
	if err != nil {
		return false, fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	return fresh, nil
}

// Settle is to be called when a group's first process is in it: until then a
// service manager's group is held by a process that stands in.
func (g *Group) Settle() error {
	unit := g.unit()
	if unit == "" || g.bad != nil {
		return nil
	}
	return g.h.driver.Settle(unit)
}
