package metric

import (
	"podstead/cgroup"
	"podstead/engine/internal/proc"
)

// ProcessesOf looks at a container's processes, first being the first one.
func ProcessesOf(g *cgroup.Group, first int) *Processes {
	pids, err := g.Procs()
	if err != nil {
		return nil
	}
	p := &Processes{Count: uint64(len(pids)), MaxOpenFiles: proc.MaxOpenFiles(first)}
	p.OpenFiles, p.Sockets = proc.Files(pids)
	if tids, more, err := g.Threads(proc.MaxThreads); err == nil && !more {
		p.Threads = new(ThreadStates(proc.StatesOf(tids)))
	}
	return p
}
