// Package observe is what the container runtime shows of the agent's pods, in
// the agent's terms: plain values, read once, that plan and status decide from.
// It knows the labels and annotations by which pods are recognized, which are
// the kubelet's where the kubelet has one, so that other tools show them well.
package observe

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels and annotations of sandboxes and containers.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"
	// LabelAgent marks what belongs to this agent; nothing else is touched.
	LabelAgent = "podstead.io/agent"

	AnnotationHash          = "io.kubernetes.container.hash"
	AnnotationRestartCount  = "io.kubernetes.container.restartCount"
	AnnotationMessagePath   = "io.kubernetes.container.terminationMessagePath"
	AnnotationMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	AnnotationGracePeriod   = "io.kubernetes.pod.terminationGracePeriod"
	// AnnotationBackoff is how long to wait with a restart once this instance
	// has exited; it makes the back-off survive a restart of the agent.
	AnnotationBackoff = "podstead.io/backoff"
	// AnnotationSandboxHash is of the fields that a sandbox is made from.
	AnnotationSandboxHash = "podstead.io/sandbox-hash"
	// AnnotationResources is what a container was made with, as Resources.
	AnnotationResources = "podstead.io/resources"
	// AnnotationMessageFile is where on the host the termination message is.
	AnnotationMessageFile = "podstead.io/termination-message-file"
)

// State of a container.
type State int

// The states of CRI.
const (
	Created State = iota
	Running
	Exited
	Unknown
)

// Container is one instance of a container.
type Container struct {
	ID, Name, SandboxID string
	Restarts            int32 // how many instances there were before
	State               State
	Image               string // as the runtime names it
	ImageID             string
	Created             time.Time
	Started, Finished   time.Time
	ExitCode            int32
	Reason, Message     string
	Hash                string
	Backoff             time.Duration
	LogPath             string // absolute
	Resources           Resources
	Mounts              []Mount `json:",omitempty"`
	// Remembered is true if the runtime knows it no longer.
	Remembered bool `json:",omitempty"`
}

// Mount is one of a container's, as far as its status has something to tell of it.
type Mount struct {
	Path      string // in the container
	Recursive bool   `json:",omitempty"` // it is read-only with all that is mounted in it
	Image     string `json:",omitempty"` // digest of the image that is mounted
}

// Dead tells whether the container will never run again.
func (c *Container) Dead() bool { return c.State == Exited || c.State == Unknown }

// Failed tells whether it ended other than by exit code 0.
func (c *Container) Failed() bool { return c.Dead() && (c.ExitCode != 0 || c.State == Unknown) }

// Sandbox is one instance of a pod's sandbox.
type Sandbox struct {
	ID      string
	Attempt uint32
	Ready   bool
	Created time.Time
	IPs     []string
	Hash    string
}

// Pod is all of one pod, in the order of Sort.
type Pod struct {
	UID, Namespace, Name string
	Sandboxes            []Sandbox
	Containers           []Container
}

// Sandbox returns the sandbox that counts, nil if there is none.
func (p *Pod) Sandbox() *Sandbox {
	if len(p.Sandboxes) == 0 {
		return nil
	}
	return &p.Sandboxes[0]
}

// Latest returns the newest instance of a container, nil if there is none.
func (p *Pod) Latest(name string) *Container {
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			return &p.Containers[i]
		}
	}
	return nil
}

// Previous returns the newest dead instance of a container before the newest.
func (p *Pod) Previous(name string) *Container {
	latest := p.Latest(name)
	for i := range p.Containers {
		if c := &p.Containers[i]; c.Name == name && c != latest && c.Dead() {
			return c
		}
	}
	return nil
}

// Present tells whether the pod is there, as opposed to what a reboot left of it.
func (p *Pod) Present() bool {
	return slices.ContainsFunc(p.Sandboxes, func(s Sandbox) bool { return s.Ready }) || p.Running()
}

// Running tells whether any container runs.
func (p *Pod) Running() bool {
	return slices.ContainsFunc(p.Containers, func(c Container) bool { return c.State == Running })
}

// Sort brings sandboxes into order, newest first, and containers by name and each
// one's instances newest first, by their numbers: a clock may be set. A sandbox in
// which containers run is before all others: what a runtime went on making for
// somebody who had left comes late and takes nobody's place.
func (p *Pod) Sort() {
	used := map[string]int{}
	for _, c := range p.Containers {
		if c.State == Running {
			used[c.SandboxID] = 1
		}
	}
	slices.SortStableFunc(p.Sandboxes, func(a, b Sandbox) int {
		return cmp.Or(cmp.Compare(used[b.ID], used[a.ID]), cmp.Compare(b.Attempt, a.Attempt), b.Created.Compare(a.Created))
	})
	slices.SortStableFunc(p.Containers, func(a, b Container) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(b.Restarts, a.Restarts), b.Created.Compare(a.Created))
	})
}

// FromSandbox translates a sandbox of a list; addresses are in its status only.
func FromSandbox(s *runtimeapi.PodSandbox) Sandbox {
	return Sandbox{
		ID:      s.Id,
		Attempt: s.GetMetadata().GetAttempt(),
		Ready:   s.State == runtimeapi.PodSandboxState_SANDBOX_READY,
		Created: time.Unix(0, s.CreatedAt),
		Hash:    s.Annotations[AnnotationSandboxHash],
	}
}

// FromContainer translates a container of a list; how it ended is in its
// status only.
func FromContainer(c *runtimeapi.Container) Container {
	out := Container{
		ID: c.Id, Name: c.Labels[LabelContainerName], SandboxID: c.PodSandboxId,
		State: state(c.State), Image: c.GetImage().GetImage(), ImageID: c.ImageRef,
		Created: time.Unix(0, c.CreatedAt),
	}
	out.annotations(c.Annotations)
	return out
}

func (c *Container) annotations(a map[string]string) {
	c.Hash = a[AnnotationHash]
	c.Resources = ParseResources(a[AnnotationResources])
	c.Backoff, _ = time.ParseDuration(a[AnnotationBackoff])
	if n, err := strconv.ParseInt(a[AnnotationRestartCount], 10, 32); err == nil {
		c.Restarts = int32(n)
	}
}

// Complete adds what only the status tells.
func (c *Container) Complete(s *runtimeapi.ContainerStatus) {
	c.State = state(s.State)
	if image := s.GetImage().GetUserSpecifiedImage(); image != "" {
		c.Image = image
	} else if image := s.GetImage().GetImage(); image != "" {
		c.Image = image
	}
	if s.ImageRef != "" {
		c.ImageID = s.ImageRef
	}
	c.Created = at(s.CreatedAt)
	c.Started, c.Finished = at(s.StartedAt), at(s.FinishedAt)
	c.ExitCode, c.Reason, c.Message, c.LogPath = s.ExitCode, s.Reason, s.Message, s.LogPath
	c.Mounts = nil
	for _, m := range s.Mounts {
		if image := m.GetImage().GetImageRef(); m.RecursiveReadOnly || image != "" {
			c.Mounts = append(c.Mounts, Mount{Path: m.ContainerPath, Recursive: m.RecursiveReadOnly, Image: image})
		}
	}
}

// at translates nanoseconds; zero and less mean never.
func at(ns int64) time.Time {
	if ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

func state(s runtimeapi.ContainerState) State {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return Created
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return Running
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return Exited
	}
	return Unknown
}
