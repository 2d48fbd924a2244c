package engine

import (
	"context"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/moby/sys/mountinfo"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/engine/internal/spec"
	"podstead/supervisor"
)

// handled describes a container to its handler.
func (e *Engine) handled(r *containerRecord) handler.Container {
	g, config := e.cfg.Cgroups.Group(r.Cgroup), r.config()
	return handler.Container{
		ID: r.ID, Bundle: e.containerRecords.Path(r.ID), Terminal: config.Tty,
		CgroupJoin: g.JoinFiles(), CgroupDir: g.Dir(), Log: e.logFile(r.LogPath),
		Stdin: config.Stdin, StdinOnce: config.StdinOnce, PodDir: e.sandboxRecords.Path(r.SandboxID),
	}
}

// annotationsFor are those that the handler's configuration lets through; the
// container's count for more than the pod's.
func annotationsFor(s *sandboxRecord, c *runtimeapi.ContainerConfig) map[string]string {
	out := config.Select(s.config().Annotations, s.Runtime.PodAnnotations)
	if s.Runtime.Kind() == config.Shim {
		own := containerAnnotations(s, c)
		maps.Copy(own, out)
		out = own
	}
	for k, v := range config.Select(c.Annotations, s.Runtime.ContainerAnnotations) {
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out
}

func (e *Engine) signalContainer(r *containerRecord) error {
	h, err := e.handlerOf(r.Runtime)
	if err != nil {
		return err
	}
	return h.Signal(e.life, e.handled(r), r.ID, r.StopSignal)
}

// neverRan ends a container whose handler makes its process at the start, if
// that has not been asked for; a start under way is waited for.
func (e *Engine) neverRan(ctx context.Context, c *container) (done bool, err error) {
	if !c.unmade() {
		return false, nil
	}
	if err := c.turn.take(ctx); err != nil {
		return false, err
	}
	defer c.turn.give()
	if !c.unmade() {
		return false, nil
	}
	// An engine before this one may have begun the start.
	rec := c.record()
	h, err := e.handlerOf(rec.Runtime)
	if err == nil {
		err = h.Delete(ctx, e.handled(&rec))
	}
	if err != nil {
		return false, err
	}
	e.recordExit(c, exit{at: time.Now(), code: exitKilled, reason: reasonError})
	return true, nil
}

// startProcess tells the handler what has been changed between creation and
// start, too.
func (e *Engine) startProcess(ctx context.Context, c *container, h handler.Handler) (p supervisor.Process, err error) {
	rec := c.record()
	if rec.FromCheckpoint {
		return e.restoreProcess(ctx, c)
	}
	handled := e.handled(&rec)
	if adj := int(rec.Resources.M.GetOomScoreAdj()); int64(adj) != rec.config().GetLinux().GetResources().GetOomScoreAdj() {
		handled.OOMScoreAdj = &adj
	}
	if rec.Pid == 0 && !proto.Equal(rec.Resources.M, rec.config().GetLinux().GetResources()) {
		if handled.Resources, err = spec.Resources(rec.Resources.M); err != nil {
			return p, err
		}
	}
	if rec.LateHooks {
		return e.startWithHooks(ctx, c, h, handled)
	}
	return h.Start(ctx, handled)
}

// unmade tells whether the container is created and has no process: some
// handlers make it at the start.
func (c *container) unmade() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Phase == containerCreated && c.rec.Pid == 0
}

// tidyHandlers removes what runtimes keep for all of their containers, if there
// is none: gVisor mounts a network namespace.
func (e *Engine) tidyHandlers() error {
	e.mu.Lock()
	used := len(e.sandboxes) > 0
	e.mu.Unlock()
	if used {
		return nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(e.handlersDir()))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unmount(m.Mountpoint); err != nil {
			return err
		}
	}
	return os.RemoveAll(e.handlersDir())
}
