package engine

import (
	"context"

	"golang.org/x/sys/unix"

	"podstead/engine/internal/family"
)

// kill kills the process, its descendants and whatever is in its session, and
// returns when all of them are dead. They are looked for among the container's
// processes only.
func (x *execution) kill(ctx context.Context) error {
	err := family.Kill(ctx, x.e.cfg.Cgroups.Group(x.c.record().Cgroup), x.process.Pid)
	// The first one is ours until it is forgotten: its pid cannot be another's.
	rec := x.c.record()
	if h, err := x.e.handlerOf(rec.Runtime); err == nil {
		h.Signal(ctx, x.e.handled(&rec), x.id, int(unix.SIGKILL))
	}
	return err
}
