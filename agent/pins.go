package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/numa"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/pinning"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/request"
	"podstead/cri"
)

// Pinning says what containers get of the machine for themselves.
type Pinning = pinning.Policy

// pins tells containers which processors are theirs, and keeps in mind whom it told.
// The methods of a nil one do nothing.
type pins struct {
	*pinning.Book
	node *node
	wake chan struct{} // of capacity 1

	turn chan struct{}     // of capacity 1: one at a time tells
	mu   sync.Mutex        // guards told
	told map[string]string // by container ID
}

// newPins reads who has what; nil: nobody ever had.
func (n *node) newPins(cfg Config) (*pins, error) {
	p := &pins{node: n, wake: make(chan struct{}, 1), turn: make(chan struct{}, 1), told: map[string]string{}}
	policy := cfg.Policy.Pinning
	policy.ReservedCPU = reservedCPU(cfg.Policy.Node)
	machine, err := cfg.topology()
	if err != nil && policy.On() {
		return nil, fmt.Errorf("topology of the machine: %w", err)
	}
	if err := n.reservedMemory(policy); err != nil {
		return nil, err
	}
	p.Book, err = pinning.Open(filepath.Join(cfg.StateDir, "cpus.json"), machine, policy, pinning.Events{Changed: p.changed, Asked: n.metrics.Pinned}, cfg.Log)
	if err != nil || p.Book == nil {
		return nil, err
	}
	p.measure()
	return p, nil
}

// near is where the devices of a container are to be.
func (p *pins) near(uid, container string) (nodes []int, strict bool) {
	if p == nil {
		return nil, false
	}
	return p.Near(uid, container)
}

// reservedMemory checks that the nodes keep as much as no pod may have.
func (n *node) reservedMemory(p Pinning) error {
	if !p.StaticMemory {
		return nil
	}
	sum, want := uint64(0), n.capacity.Memory().Value()-n.allocatable.Memory().Value()
	for _, amount := range p.ReservedMemory {
		sum += amount["memory"]
	}
	if sum != uint64(want) {
		return fmt.Errorf("reservedMemory: %d bytes of memory of all nodes are not what systemReserved, kubeReserved and evictionHard leave no pod, %d", sum, want)
	}
	return nil
}

func (cfg Config) topology() (numa.Machine, error) {
	if cfg.machine != nil {
		return *cfg.machine, nil
	}
	return numa.Read("/sys")
}

func (p *pins) measure() {
	shared, exclusive := p.Sizes()
	p.node.metrics.CPUs(shared, exclusive, p.PerNode())
}

func (p *pins) changed() {
	p.measure()
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// run tells containers when the shares change, and again when that failed.
func (p *pins) run(ctx context.Context) {
	tick := time.NewTicker(p.Period())
	defer tick.Stop()
	for {
		err := p.settle(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.node.log.Warn("containers may run on processors of others", "error", err)
		} else if p.Told() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-p.wake:
		}
	}
}

// settle tells every container that runs what it may run on, if that is not what it
// was told last. Those that were not told by this agent are.
func (p *pins) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pinPatience)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	list, err := p.node.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State:         &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{observe.LabelAgent: p.node.request.AgentID}}})
	if err != nil {
		return err
	}
	p.forget(list.Containers)
	var wg sync.WaitGroup
	errs := make([]error, len(list.Containers))
	for i, c := range list.Containers { // one that is stuck does not hold up the others
		wg.Go(func() { errs[i] = p.tell(ctx, c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// pinPatience bounds how long containers are told.
const pinPatience = 10 * time.Second

// forget those that are not there any more.
func (p *pins) forget(except []*runtimeapi.Container) {
	here := map[string]bool{}
	for _, c := range except {
		here[c.Id] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.told, func(id, _ string) bool { return !here[id] })
}

func (p *pins) tell(ctx context.Context, c *runtimeapi.Container) error {
	name := c.Labels[observe.LabelContainerName]
	want := p.Set(c.Labels[observe.LabelPodUID], name)
	p.mu.Lock()
	was, known := p.told[c.Id]
	p.mu.Unlock()
	if known && was == want || c.State != runtimeapi.ContainerState_CONTAINER_RUNNING { // not every runtime heeds the filter
		return nil
	}
	_, err := p.node.runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.Id, Linux: &runtimeapi.LinuxContainerResources{CpusetCpus: want}})
	if cri.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("container %s of %s/%s: processors %s: %w", name, c.Labels[observe.LabelPodNamespace], c.Labels[observe.LabelPodName], want, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told[c.Id] = want
	return nil
}

// started notes what a container was made with, and looks again if that is not so any
// more.
func (p *pins) started(id, uid, name, with string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.told[id] = with
	p.mu.Unlock()
	if p.Set(uid, name) != with {
		p.changed()
	}
}

// pin gives a container's configuration what it may run on. Before one has processors
// for itself, the others have left them, if they can be told.
func (j job) pin(ctx context.Context, config *runtimeapi.ContainerConfig) {
	if j.pins == nil {
		return
	}
	uid := string(j.pod.UID)
	own := j.pins.Of(uid, j.spec.Name)
	config.Linux.Resources.CpusetCpus, config.Linux.Resources.CpusetMems = j.pins.Set(uid, j.spec.Name), own.Nodes.String()
	if len(own.CPUs) == 0 {
		return
	}
	if err := j.pins.settle(ctx); err != nil && ctx.Err() == nil {
		j.log.Warn("a container begins on processors on which others may still run", "pod", j.pod.Namespace+"/"+j.pod.Name, "container", j.spec.Name, "error", err)
	}
}

// requestOf is how a container is asked for, or a pod if it has no name: what has
// processors for itself is not held to a share of their time.
func (j job) requestOf(container string) request.Node {
	n, uid := j.request, string(j.pod.UID)
	switch {
	case j.pins == nil:
	case container == "":
		n.CPU.NoQuota = n.CPU.NoQuota || j.pins.Exclusive(uid)
	default:
		n.CPU.NoQuota = n.CPU.NoQuota || len(j.pins.Of(uid, container).CPUs) > 0
	}
	return n
}

// place is why a pod has to wait for processors of its own; what it was given of the
// rest is for others meanwhile.
func (w *worker) place() *plan.Wait {
	if w.node.pins == nil {
		return nil
	}
	pod, devices := w.pod, w.node.devices
	no := w.node.pins.Admit(pinning.Ask{Pod: pod, Wake: w.poke, Devices: func(m numa.Machine, container string) [][]numa.Hint {
		return devices.Hints(m, pod, container)
	}})
	if no == nil {
		w.misplaced = nil
		return nil
	}
	w.node.ledger.Release(w.uid)
	w.admitted = false
	if w.misplaced == nil || w.misplaced.Message != no.Message {
		w.misplaced = &plan.Wait{Reason: no.Reason, Message: no.Message, Since: time.Now()}
		w.node.event(w.pod, "", corev1.EventTypeWarning, no.Reason, "Pod waits: %s", no.Message)
	}
	w.short = w.misplaced
	return w.misplaced
}

// keepPins takes back what pods have that are not there any more, and tells the others'
// containers.
func (a *Agent) keepPins(ctx context.Context) {
	p := a.node.pins
	if p == nil {
		return
	}
	here := map[string]bool{}
	for uid := range a.workers {
		here[uid] = true
	}
	p.Keep(here)
	a.wg.Go(func() { p.run(ctx) })
}

// unpin takes back what a pod has that is over.
func (n *node) unpin(uid string) {
	if n.pins != nil {
		n.pins.Release(uid)
	}
}

// pinned says why containers cannot be resized in place, in the kubelet's words: what
// they have for themselves stays as it is. Only a restart of the pod changes that.
func (w *worker) pinned(has, want *corev1.Pod) string {
	p := w.node.pins
	if p == nil {
		return ""
	}
	for _, list := range [][]corev1.Container{want.Spec.InitContainers, want.Spec.Containers} {
		for i := range list {
			c := &list[i]
			old := find(has, c.Name)
			if old == nil {
				continue
			}
			own := p.Of(w.uid, c.Name)
			if len(own.Nodes) > 0 && old.Resources.Requests.Memory().Cmp(*c.Resources.Requests.Memory()) != 0 {
				return "Resize is infeasible for Guaranteed Pods alongside Memory Manager static policy"
			}
			if len(own.CPUs) > 0 && old.Resources.Requests.Cpu().Cmp(*c.Resources.Requests.Cpu()) != 0 {
				return "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy"
			}
		}
	}
	return ""
}
