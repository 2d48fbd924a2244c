package criu

import (
	"context"
	"errors"
	"fmt"
)

// RestoreOptions is what a restore is told.
type RestoreOptions struct {
	Options
	// Inherit are descriptors of CRIU's process that take the place of dumped
	// ones, by their names: "pipe:[123]", the keys of external namespaces.
	Inherit []InheritFd
	// Join are namespaces to join instead of making them.
	Join []Namespace
}

// InheritFd is a descriptor of CRIU's.
type InheritFd struct {
	Key string
	Fd  int
}

// Namespace is one by its path, "ipc" or "uts".
type Namespace struct {
	Type, Path string
}

// Restore has CRIU restore, and returns the pid of the first process, as CRIU
// sees it. The process runs then; at PreResume it does not yet.
func (c *Conn) Restore(ctx context.Context, o RestoreOptions) (pid int, err error) {
	var m message
	o.encode(&m, "restore.log")
	m.flag(26, true) // a sibling of CRIU
	// The other way of restoring mounts cannot have external ones that receive
	// the host's mounts.
	m.flag(65, true)
	for _, i := range o.Inherit {
		m.part(27, func(m *message) { m.text(1, i.Key); m.number(2, uint64(i.Fd)) })
	}
	for _, n := range o.Join {
		m.part(39, func(m *message) { m.text(1, n.Type); m.text(2, n.Path) })
	}
	resp, err := c.call(ctx, typeRestore, m, o.Notify)
	if err != nil {
		return 0, o.explain("criu restore", "restore.log", err)
	}
	if resp.pid <= 0 {
		return 0, fmt.Errorf("criu restore: %w", errors.New("no process"))
	}
	return resp.pid, nil
}
