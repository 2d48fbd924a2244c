package engine

import (
	"context"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/nri"
	"podstead/engine/internal/spec"
)

// newPlugins returns the plugins that the configuration wants.
func (e *Engine) newPlugins() *nri.Plugins {
	c := e.cfg.Settings.NRI
	if c.Disabled || c.Socket == "" && c.PluginDir == "" {
		return nil
	}
	return nri.New(nri.Options{
		Socket: c.Socket, PluginDir: c.PluginDir, ConfigDir: c.ConfigDir,
		Required: c.RequiredPlugins, RequiredUnless: c.RequiredUnless,
		RegistrationTimeout: c.RegistrationTimeout.Duration, RequestTimeout: c.RequestTimeout.Duration,
		Version: e.cfg.Version, Runtime: pluginsRuntime{e}, Log: e.log,
	})
}

// askPlugins lets plugins adjust a container that is about to be made. From here
// to the end of the creation no new plugin is let in, which would otherwise
// neither be asked nor find the container in the list.
func (e *Engine) askPlugins(ctx context.Context, k *creation, s *specs.Spec) error {
	k.admit = e.plugins.Hold()
	if e.plugins.Idle() {
		return nil
	}
	k.told = true
	rec := k.c.record()
	object := e.containerObject(&rec, s)
	if s.Linux.Seccomp != nil {
		object.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(s.Linux.Seccomp)
	}
	adjust, others, err := e.plugins.CreateContainer(ctx, e.podObject(&k.sandbox), object)
	if err != nil {
		return err
	}
	e.plugins.Apply(ctx, others)
	if err := nri.Adjust(s, adjust, e.devices.Inject); err != nil {
		return cri.Errorf(codes.InvalidArgument, "an NRI plugin's adjustment: %v", err)
	}
	return e.changeContainer(k.c, func(r *containerRecord) {
		limits := nri.CRILimits(adjust.GetLinux().GetResources())
		limits.OomScoreAdj = adjust.GetLinux().GetOomScoreAdj().GetValue()
		r.Resources.M = spec.MergeResources(r.Resources.M, limits)
	})
}

// undoForPlugins tells plugins that a container of which they were asked will
// not be.
func (e *Engine) undoForPlugins(ctx context.Context, k *creation) {
	if !k.told || e.plugins.Idle() {
		return
	}
	ctx = context.WithoutCancel(ctx)
	rec := k.c.record()
	rec.Phase = containerExited
	e.containerEnded(ctx, &rec, k.spec)
	e.containerGone(ctx, &rec)
}

// containerEnded tells plugins that a container has ended.
func (e *Engine) containerEnded(ctx context.Context, rec *containerRecord, s *specs.Spec) {
	others, err := e.plugins.Stop(ctx, e.podOf(rec), e.containerObject(rec, s))
	if err != nil {
		e.log.Warn("an NRI plugin failed", "event", "StopContainer", "container", rec.ID, "error", err)
	}
	e.plugins.Apply(ctx, others)
}

// containerGone tells plugins that a container has been removed.
func (e *Engine) containerGone(ctx context.Context, rec *containerRecord) {
	if e.plugins.Idle() {
		return
	}
	if err := e.plugins.Remove(ctx, e.podOf(rec), e.containerObject(rec, nil)); err != nil {
		e.log.Warn("an NRI plugin failed", "event", "RemoveContainer", "container", rec.ID, "error", err)
	}
}

// tellOfExit tells plugins of an exit, in the background: nobody who waits for
// the exit waits for a plugin, but for those who report it to the kubelet
// (c.told).
func (e *Engine) tellOfExit(c *container) {
	if e.plugins.Idle() {
		close(c.told)
		return
	}
	e.worker.Go(func() {
		defer close(c.told)
		if c.turn.take(e.life) == nil {
			c.turn.give() // the start, if one is under way, has been told of before
		}
		s, err := e.specification(c)
		if err != nil {
			s = nil // it never came so far
		}
		rec := c.record()
		e.containerEnded(context.WithoutCancel(e.life), &rec, s)
	})
}

// waitTold waits until plugins know of an exit. The caller must not have the
// container's turn.
func (e *Engine) waitTold(ctx context.Context, c *container) error {
	select {
	case <-c.told:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-e.life.Done():
		return e.life.Err()
	}
}

// relay tells plugins of a container by one of the events that cannot be
// refused.
func (e *Engine) relay(ctx context.Context, event string, c *container, tell func(context.Context, *api.PodSandbox, *api.Container) error) {
	if e.plugins.Idle() {
		return
	}
	if err := e.asContainer(ctx, c, tell); err != nil {
		e.log.Warn("an NRI plugin failed", "event", event, "container", c.id, "error", err)
	}
}

// mayStart asks plugins whether a container may run.
func (e *Engine) mayStart(ctx context.Context, c *container) error {
	if e.plugins.Idle() {
		return nil
	}
	return e.asContainer(ctx, c, e.plugins.Start)
}

func (e *Engine) asContainer(ctx context.Context, c *container, tell func(context.Context, *api.PodSandbox, *api.Container) error) error {
	s, err := e.specification(c)
	if err != nil {
		return err
	}
	rec := c.record()
	return tell(ctx, e.podOf(&rec), e.containerObject(&rec, s))
}

// askPluginsOfUpdate lets plugins change an update of a container's limits. The
// caller must not have the container's turn, since plugins may want to update
// others, and these this one.
func (e *Engine) askPluginsOfUpdate(ctx context.Context, c *container, update *runtimeapi.LinuxContainerResources) (*api.LinuxResources, error) {
	if e.plugins.Idle() {
		return nil, nil
	}
	limits, err := spec.Resources(update)
	if err != nil {
		return nil, err
	}
	s, err := e.specification(c)
	if err != nil {
		return nil, err
	}
	rec := c.record()
	own, others, err := e.plugins.Update(ctx, e.podOf(&rec), e.containerObject(&rec, s), api.FromOCILinuxResources(limits, nil))
	if err != nil {
		return nil, err
	}
	e.plugins.Apply(ctx, others)
	return own, nil
}

// announceSandbox makes a sandbox ready and tells plugins of it, which may
// refuse. None is let in between.
func (e *Engine) announceSandbox(ctx context.Context, s *sandbox) (err error) {
	defer e.plugins.Hold()()
	if e.plugins.Idle() {
		return e.recordReady(s)
	}
	rec := s.record()
	pod := e.podObject(&rec)
	defer func() {
		if err != nil {
			ctx := context.WithoutCancel(ctx)
			e.relayPod(ctx, "StopPodSandbox", &rec, e.plugins.StopPod)
			e.relayPod(ctx, "RemovePodSandbox", &rec, e.plugins.RemovePod)
		}
	}()
	if err := e.plugins.RunPod(ctx, pod); err != nil {
		return err
	}
	return e.recordReady(s)
}

// relayPod tells plugins of a pod sandbox by one of the events that cannot be
// refused.
func (e *Engine) relayPod(ctx context.Context, event string, rec *sandboxRecord, tell func(context.Context, *api.PodSandbox) error) {
	if e.plugins.Idle() {
		return
	}
	if err := tell(ctx, e.podObject(rec)); err != nil {
		e.log.Warn("an NRI plugin failed", "event", event, "pod", rec.ID, "error", err)
	}
}

// mayUpdatePod asks plugins whether a pod's sums of resources may change.
func (e *Engine) mayUpdatePod(ctx context.Context, rec *sandboxRecord, req *runtimeapi.UpdatePodSandboxResourcesRequest) error {
	if e.plugins.Idle() {
		return nil
	}
	return e.plugins.UpdatePod(ctx, e.podObject(rec), limitsObject(req.Overhead), limitsObject(req.Resources))
}

// pluginsRuntime is the engine as plugins see it.
type pluginsRuntime struct{ e *Engine }

// Objects implements nri.Runtime.
func (p pluginsRuntime) Objects() (pods []*api.PodSandbox, containers []*api.Container) {
	for _, s := range p.e.allSandboxes() {
		if rec := s.record(); rec.Phase != sandboxCreating {
			pods = append(pods, p.e.podObject(&rec))
		}
	}
	for _, c := range p.e.allContainers() {
		rec := c.record()
		if rec.Phase != containerCreated && rec.Phase != containerRunning {
			continue
		}
		s, err := p.e.specification(c)
		if err != nil {
			p.e.log.Warn("a plugin is not told of a container without a specification", "container", c.id, "error", err)
			continue
		}
		containers = append(containers, p.e.containerObject(&rec, s))
	}
	return pods, containers
}

// UpdateContainer implements nri.Runtime.
func (p pluginsRuntime) UpdateContainer(ctx context.Context, id string, limits *api.LinuxResources) error {
	c, err := p.e.mustContainer(id)
	if err != nil {
		return err
	}
	if phase := c.record().Phase; phase != containerCreated && phase != containerRunning {
		// One in creation is not waited for: its creator waits for the plugins.
		return cri.Errorf(codes.FailedPrecondition, "container %s is %s", id, phase)
	}
	if len(limits.GetDevices()) > 0 {
		return cri.Errorf(codes.InvalidArgument, "linux.resources.devices: cannot be changed by an update")
	}
	return p.e.updateContainer(ctx, c, nri.CRILimits(limits), limits)
}

// EvictContainer implements nri.Runtime.
func (p pluginsRuntime) EvictContainer(ctx context.Context, id, reason string) error {
	c, err := p.e.mustContainer(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.evicted = reason
	c.mu.Unlock()
	return p.e.stopContainer(ctx, c, 0)
}

// podOf describes a container's pod sandbox. If that is not there any more, its
// name remains.
func (e *Engine) podOf(rec *containerRecord) *api.PodSandbox {
	s := e.sandboxOf(rec)
	if s == nil {
		return &api.PodSandbox{Id: rec.SandboxID}
	}
	srec := s.record()
	return e.podObject(&srec)
}

func limitsObject(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	limits, err := spec.Resources(r)
	if r == nil || err != nil {
		return nil
	}
	return api.FromOCILinuxResources(limits, nil)
}
