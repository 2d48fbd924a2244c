package hostile

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// stage is how far a sandbox or container has come. It only grows.
type stage int

const (
	isMade    stage = iota // container created, sandbox ready
	isRunning              // containers only
	isEnded                // exited, not ready
	isGone
)

func (s stage) String() string { return [...]string{"made", "running", "ended", "gone"}[s] }

// thing is what callers know of a sandbox or container.
type thing struct {
	id, name string
	pod      string // of a container: its sandbox
	// least is what it has come to by what calls have returned: later calls must
	// not find it earlier in its life. This holds across kills of the engine.
	least stage
	// Whether somebody has asked for its end, or its sandbox's, or it ends by
	// itself. Nothing else may end it.
	mayEnd, mayGo bool
	// stopped says that a stop has succeeded: of a sandbox, what is in it has
	// ended, too. One that is merely not ready may be on its way.
	stopped bool
	exit    *runtimeapi.ContainerStatus // as it was first seen exited
}

// model is what must hold of a runtime by what its callers have seen. Its
// methods record problems in the order in which they are found.
type model struct {
	mu       sync.Mutex
	things   map[string]*thing
	problems []string
}

func (m *model) wrong(format string, args ...any) {
	m.problems = append(m.problems, fmt.Sprintf(format, args...))
}

// newest returns the id that was last made under a name, "" if there is none.
func (m *model) newest(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.things {
		if t.name == name && t.least < isGone {
			return t.id
		}
	}
	return ""
}

// before returns what is known when a call begins: the least stage of a thing,
// which its answer is held to.
func (m *model) before(id string) stage {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stageOf(id)
}

func (m *model) stageOf(id string) stage {
	t := m.things[id]
	if t == nil {
		return isMade
	}
	if pod := m.things[t.pod]; pod != nil && pod.stopped {
		return max(t.least, pod.least)
	}
	return t.least
}

// wasMade enters what a creation has returned, and what was known of its
// sandbox before.
func (m *model) wasMade(id, name, pod string, podBefore stage, endsItself bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if podBefore >= isEnded {
		m.wrong("%s was created as %s in a sandbox that was %s", name, id, podBefore)
	}
	t := m.things[id]
	if t == nil {
		m.things[id] = &thing{id: id, name: name, pod: pod, mayEnd: endsItself}
		return
	}
	if t.least == isGone || t.name != name {
		m.wrong("%s was created as %s, which was %s and is %s", name, id, t.name, t.least)
	}
}

// mayGo tells whether somebody has asked for a thing's removal.
func (m *model) mayGo(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.things[id]
	return t == nil || t.mayGo
}

// asked notes that somebody is about to ask for an end.
func (m *model) asked(id string, removal bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.things {
		if t.id == id || t.pod == id {
			t.mayEnd = true
			t.mayGo = t.mayGo || removal
		}
	}
}

// has notes that a thing has come to a stage, as a call has returned.
func (m *model) has(id string, s stage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.things[id]; t != nil {
		t.least = max(t.least, s)
		t.stopped = t.stopped || s >= isEnded
	}
}

// found holds a status to what was known before it was asked for. A nil status
// is NotFound.
func (m *model) found(id string, before stage, now stage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.things[id]
	if t == nil {
		return
	}
	pod := m.things[t.pod]
	switch {
	case now < before && (now != isMade || before != isRunning):
		m.wrong("%s %s is %s after it was %s", t.name, id, now, before)
	case now < before:
		m.wrong("%s %s has not started although its start was reported", t.name, id)
	case now == isGone && !t.mayGo && (pod == nil || !pod.mayGo):
		m.wrong("%s %s is lost: nobody has removed it", t.name, id)
	case now == isEnded && !t.mayEnd && (pod == nil || !pod.mayEnd):
		m.wrong("%s %s has ended: nobody has stopped it", t.name, id)
	}
	t.least = max(t.least, now)
}

// exited checks that the tale of an exit does not change.
func (m *model) exited(status *runtimeapi.ContainerStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.things[status.GetId()]
	if t == nil || status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return
	}
	if t.exit == nil {
		t.exit = status
	}
	if a, b := t.exit, status; a.GetExitCode() != b.GetExitCode() || a.GetFinishedAt() != b.GetFinishedAt() || a.GetReason() != b.GetReason() {
		m.wrong("%s %s exited with %d (%s) at %d, and then with %d (%s) at %d", t.name, t.id,
			a.GetExitCode(), a.GetReason(), a.GetFinishedAt(), b.GetExitCode(), b.GetReason(), b.GetFinishedAt())
	}
}

func sandboxStage(s runtimeapi.PodSandboxState) stage {
	if s == runtimeapi.PodSandboxState_SANDBOX_READY {
		return isMade
	}
	return isEnded
}

func containerStage(s runtimeapi.ContainerState) stage {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return isMade
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return isRunning
	}
	return isEnded
}

// quiet checks what must hold when no call is under way. It returns the ids of
// the sandboxes by name.
func (n *node) quiet(m *model) (names map[string]string) {
	n.Helper()
	pods, err := n.rt.ListPodSandbox(n.ctx(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.Fatal(err)
	}
	containers, err := n.rt.ListContainers(n.ctx(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		n.Fatal(err)
	}
	listed, state, ips := map[string]bool{}, map[string]runtimeapi.PodSandboxState{}, map[string]string{}
	names = map[string]string{}
	for _, p := range pods.GetItems() {
		name := podName(p.GetMetadata())
		if other := names[name]; other != "" {
			n.Errorf("%s is there twice, as %s and %s", name, other, p.GetId())
		}
		names[name], listed[p.GetId()], state[p.GetId()] = p.GetId(), true, p.GetState()
		r, err := n.rt.PodSandboxStatus(n.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.GetId()})
		s := r.GetStatus()
		if cri.Code(err) == codes.NotFound && m.mayGo(p.GetId()) {
			delete(names, name) // a removal has outlasted its caller
			continue
		}
		if err != nil || s.GetState() != p.GetState() || s.GetCreatedAt() != p.GetCreatedAt() || podName(s.GetMetadata()) != name {
			n.Errorf("%s is listed as %v, and its status is %v, %v", name, p, s, err)
		}
		if ip := s.GetNetwork().GetIp(); ip != "" {
			if other := ips[ip]; other != "" {
				n.Errorf("%s and %s have the address %s", other, name, ip)
			}
			ips[ip] = name
		} else if s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY && s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_POD {
			n.Errorf("%s is ready and has no address", name)
		}
		m.found(p.GetId(), m.before(p.GetId()), sandboxStage(p.GetState()))
	}
	containers = n.untilStopped(state, containers)
	seen := map[string]string{}
	for _, c := range containers.GetContainers() {
		name := containerName(c.GetPodSandboxId(), c.GetMetadata())
		if other := seen[name]; other != "" {
			n.Errorf("%s is there twice, as %s and %s", name, other, c.GetId())
		}
		seen[name], listed[c.GetId()] = c.GetId(), true
		if !listed[c.GetPodSandboxId()] {
			n.Errorf("%s is in a sandbox that is not listed", name)
		}
		n.quietContainer(m, c)
	}
	for _, id := range m.alive() {
		if !listed[id] {
			m.found(id, m.before(id), isGone)
		}
	}
	return names
}

// untilStopped waits until stops that were interrupted are done: no container
// lives in a sandbox that is not ready.
func (n *node) untilStopped(state map[string]runtimeapi.PodSandboxState, list *runtimeapi.ListContainersResponse) *runtimeapi.ListContainersResponse {
	n.Helper()
	n.eventually("the containers of stopped sandboxes end", func() (err error) {
		for _, c := range list.GetContainers() {
			if state[c.GetPodSandboxId()] == runtimeapi.PodSandboxState_SANDBOX_NOTREADY && containerStage(c.GetState()) < isEnded {
				err = fmt.Errorf("container %s is %s", c.GetId(), c.GetState())
			}
		}
		if err != nil {
			list, _ = n.rt.ListContainers(n.ctx(), &runtimeapi.ListContainersRequest{})
		}
		return err
	})
	return list
}

func (n *node) quietContainer(m *model, c *runtimeapi.Container) {
	n.Helper()
	before := m.before(c.GetId())
	r, err := n.rt.ContainerStatus(n.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
	s := r.GetStatus()
	if cri.Code(err) == codes.NotFound && m.mayGo(c.GetId()) {
		return // a removal has outlasted its caller
	}
	// One that ends by itself may do so between the two.
	if err != nil || containerStage(s.GetState()) < containerStage(c.GetState()) || s.GetCreatedAt() != c.GetCreatedAt() || s.GetImageId() != c.GetImageId() {
		n.Errorf("container %s is listed as %v, and its status is %v, %v", c.GetId(), c, s, err)
		return
	}
	m.found(c.GetId(), before, containerStage(s.GetState()))
	m.exited(s)
	stats, err := n.rt.ContainerStats(n.ctx(), &runtimeapi.ContainerStatsRequest{ContainerId: c.GetId()})
	if s.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING && (err != nil || stats.GetStats().GetAttributes().GetId() != c.GetId()) && cri.Code(err) != codes.NotFound {
		n.Errorf("container %s runs and has the stats %v, %v", c.GetId(), stats, err)
	}
}

// alive lists what is there by all that is known.
func (m *model) alive() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []string
	for id := range m.things {
		if m.stageOf(id) < isGone {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func podName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s#%d", m.GetName(), m.GetAttempt())
}

func containerName(pod string, m *runtimeapi.ContainerMetadata) string {
	return strings.Join([]string{pod, fmt.Sprintf("%s#%d", m.GetName(), m.GetAttempt())}, "/")
}
