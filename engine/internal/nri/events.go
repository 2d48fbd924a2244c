package nri

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
)

// An event is relayed to one plugin after another, in the order of their
// indices. An error is that of a plugin that does not want the thing to happen;
// one that does not answer is dropped, and things go on without it.

// RunPod relays that a pod sandbox has been made.
func (p *Plugins) RunPod(ctx context.Context, pod *api.PodSandbox) (err error) {
	defer survive(&err)
	return refused(p.adaptation.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod}))
}

// UpdatePod relays that a pod's sums of resources change.
func (p *Plugins) UpdatePod(ctx context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) (err error) {
	defer survive(&err)
	_, err = p.adaptation.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
		Pod: pod, OverheadLinuxResources: overhead, LinuxResources: resources,
	})
	return refused(err)
}

// PostUpdatePod relays that they have changed.
func (p *Plugins) PostUpdatePod(ctx context.Context, pod *api.PodSandbox) (err error) {
	defer survive(&err)
	return p.adaptation.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod})
}

// StopPod relays that a pod sandbox has been stopped.
func (p *Plugins) StopPod(ctx context.Context, pod *api.PodSandbox) (err error) {
	defer survive(&err)
	return p.adaptation.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod})
}

// RemovePod relays that a pod sandbox has been removed.
func (p *Plugins) RemovePod(ctx context.Context, pod *api.PodSandbox) (err error) {
	defer survive(&err)
	return p.adaptation.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod})
}

// CreateContainer asks how a container is to be adjusted before it is made, and
// which others are to be updated.
func (p *Plugins) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (a *api.ContainerAdjustment, others []*api.ContainerUpdate, err error) {
	defer survive(&err)
	env, devices := c.GetEnv(), c.GetLinux().GetDevices()
	r, err := p.adaptation.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: c})
	if err != nil {
		return nil, nil, refused(err)
	}
	a = r.GetAdjust()
	addRemovals(a, c, env, devices)
	return a, r.GetUpdate(), nil
}

// addRemovals finds out which variables and devices plugins have removed: the
// adaptation takes them from the description that the next plugin sees, and
// forgets to say so in the result.
func addRemovals(a *api.ContainerAdjustment, c *api.Container, env []string, devices []*api.LinuxDevice) {
	if a == nil {
		return
	}
	for _, e := range env {
		key, _, _ := strings.Cut(e, "=")
		has := func(e string) bool { return strings.HasPrefix(e, key+"=") }
		if !slices.ContainsFunc(c.Env, has) {
			a.Env = append(a.Env, &api.KeyValue{Key: api.MarkForRemoval(key)})
		}
	}
	for _, d := range devices {
		has := func(o *api.LinuxDevice) bool { return o.Path == d.Path }
		if !slices.ContainsFunc(c.GetLinux().GetDevices(), has) && a.Linux != nil {
			a.Linux.Devices = append(a.Linux.Devices, &api.LinuxDevice{Path: api.MarkForRemoval(d.Path)})
		}
	}
}

// PostCreate relays that a container has been made.
func (p *Plugins) PostCreate(ctx context.Context, pod *api.PodSandbox, c *api.Container) (err error) {
	defer survive(&err)
	return p.adaptation.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: c})
}

// Start relays that a container is about to run.
func (p *Plugins) Start(ctx context.Context, pod *api.PodSandbox, c *api.Container) (err error) {
	defer survive(&err)
	return refused(p.adaptation.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: c}))
}

// PostStart relays that a container runs.
func (p *Plugins) PostStart(ctx context.Context, pod *api.PodSandbox, c *api.Container) (err error) {
	defer survive(&err)
	return p.adaptation.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: c})
}

// Update asks what is to become of an update of a container's limits. own is
// nil if no plugin has anything to say about it.
func (p *Plugins) Update(ctx context.Context, pod *api.PodSandbox, c *api.Container, limits *api.LinuxResources) (own *api.LinuxResources, others []*api.ContainerUpdate, err error) {
	defer survive(&err)
	r, err := p.adaptation.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: pod, Container: c, LinuxResources: limits})
	if err != nil {
		return nil, nil, refused(err)
	}
	for _, u := range r.GetUpdate() {
		switch {
		case u == nil:
		case u.ContainerId == c.Id:
			own = u.GetLinux().GetResources()
		default:
			others = append(others, u)
		}
	}
	return own, others, nil
}

// PostUpdate relays that a container's limits have changed.
func (p *Plugins) PostUpdate(ctx context.Context, pod *api.PodSandbox, c *api.Container) (err error) {
	defer survive(&err)
	return p.adaptation.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: c})
}

// Stop relays that a container has ended, and asks which others are to be
// updated.
func (p *Plugins) Stop(ctx context.Context, pod *api.PodSandbox, c *api.Container) (others []*api.ContainerUpdate, err error) {
	defer survive(&err)
	r, err := p.adaptation.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: c})
	return r.GetUpdate(), err
}

// Remove relays that a container has been removed.
func (p *Plugins) Remove(ctx context.Context, pod *api.PodSandbox, c *api.Container) (err error) {
	defer survive(&err)
	return p.adaptation.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: c})
}

func refused(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("NRI: %w", err)
}
