package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/allocation"
	"podstead/agent/internal/eviction"
	"podstead/agent/internal/iptables"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/request"
	"podstead/agent/internal/source"
)

// loop is the agent's one select loop. It does nothing that could take long:
// whatever can wait or fail is done by workers.
func (a *Agent) loop(ctx context.Context, files <-chan []source.File) error {
	// Nothing is ended before it is known what is wanted.
	select {
	case a.files = <-files:
	case <-ctx.Done():
		return ctx.Err()
	}
	a.merge()
	a.node.down.Store(a.wasDown())
	a.settle()
	defer a.node.order.Stop()
	a.adopt(ctx)
	a.reconcile(ctx)
	a.follow(ctx)
	a.awaitDescribed(ctx)
	defer a.serve(ctx)()
	a.servePlugins(ctx)
	if a.kubelet != nil {
		a.wg.Go(func() { a.kubelet.Run(ctx) })
	}
	a.wg.Go(func() { a.images.Run(ctx) })
	a.keepPins(ctx)
	a.wg.Go(func() { a.evictor.run(ctx) })
	a.wg.Go(func() { a.watchShutdown(ctx) })
	a.wg.Go(func() { a.watchOOM(ctx) })
	a.placeSystem(ctx)
	if a.cfg.Policy.FirewallChains {
		a.wg.Go(func() { iptables.Keep(ctx, a.cfg.Log) })
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a.files = <-files:
			a.merge()
			a.reconcile(ctx)
		case f := <-a.requests:
			f(ctx)
		case t := <-a.touched:
			a.touch(ctx, t)
		case w := <-a.ended:
			if a.workers[w.uid] == w {
				delete(a.workers, w.uid)
			}
			a.reconcile(ctx) // it may be wanted again by now
		}
	}
}

// settle reads, before anything starts, what the pods have that were there
// before, and in which order all of them are to begin.
func (a *Agent) settle() {
	ranks := map[string]int64{}
	for key, pod := range a.wanted.Pods {
		uid := string(pod.UID)
		ranks[uid] = int64(priority(pod)) * 2
		if a.wanted.Origin[key] != "" && eviction.Critical(pod) {
			ranks[uid]++ // of the manifests, as the node's own agents are
		}
		r, err := readRecord(a.node.podDir(uid))
		if err == nil && r.describes(uid) && r.Allocated != nil && r.holds() {
			a.node.ledger.Hold(allocation.Request{UID: uid, Requests: request.Requests(r.Pod)})
		}
	}
	a.node.order = allocation.NewOrder(ranks, beginPatience)
}

// beginPatience is how long pods wait for those of a higher priority to begin.
const beginPatience = 30 * time.Second

// awaitDescribed waits until each worker has looked at its pod once: a client
// that asks right after a restart is told of all pods, not of none. A runtime
// that does not answer delays the API a little, and no more.
func (a *Agent) awaitDescribed(ctx context.Context) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, w := range a.workers {
		select {
		case <-w.described:
		case <-ctx.Done():
			return
		}
	}
}

// do runs f in the loop, with the loop's context, and waits for it.
func (a *Agent) do(ctx context.Context, f func(loop context.Context)) error {
	done := make(chan struct{})
	select {
	case a.requests <- func(loop context.Context) { defer close(done); f(loop) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// merge makes the wanted set anew, and tells of new problems.
func (a *Agent) merge() {
	known := map[string]bool{}
	if a.wanted != nil {
		for _, p := range a.wanted.Problems {
			known[p.Source+p.Message] = true
		}
	}
	a.wanted = source.Merge(a.files, a.applied.Objects())
	if err := a.binder.Bind(a.wanted); err != nil {
		a.cfg.Log.Error("claims may find other storage after a restart", "error", err)
	}
	for _, p := range a.wanted.Problems {
		if known[p.Source+p.Message] {
			continue
		}
		a.cfg.Log.Error("manifest cannot be used", "file", p.Source, "error", p.Message, "kept", p.Kept)
		for _, key := range p.Pods {
			if pod := a.wanted.Pods[key]; pod != nil {
				a.node.event(pod, "", corev1.EventTypeWarning, "FailedManifest",
					"%s cannot be used, the pod goes on as it was: %s", p.Source, p.Message)
			}
		}
	}
	a.warn()
}

// warn tells of each field that has no effect, once per definition.
func (a *Agent) warn() {
	now := map[string]bool{}
	for key, warnings := range a.wanted.Warnings {
		for _, text := range warnings {
			id := key + " " + text
			now[id] = true
			if !a.warned[id] {
				a.node.event(a.wanted.Pods[key], "", corev1.EventTypeWarning, "FieldWithoutEffect", "%s", text)
			}
		}
	}
	a.warned = now
}

// reconcile gives every wanted pod a worker and ends the pods of the others.
func (a *Agent) reconcile(ctx context.Context) {
	uids := map[string]bool{}
	for key, pod := range a.wanted.Pods {
		uid := string(pod.UID)
		if uids[uid] {
			a.cfg.Log.Error("two pods with one UID, the second is not run", "pod", key)
			continue
		}
		uids[uid] = true
		origin := a.wanted.Origin[key]
		if w := a.workers[uid]; w != nil {
			w.want(pod, a.wanted, origin)
			continue
		}
		a.spawn(ctx, newWorker(a.node, pod, a.wanted, origin))
	}
	for uid, w := range a.workers {
		if !uids[uid] {
			w.end(nil)
		}
	}
	a.node.cgroups.share(a.wanted.Pods)
}

func (a *Agent) spawn(ctx context.Context, w *worker) {
	a.workers[w.uid] = w
	a.wg.Go(func() {
		w.run(ctx)
		select {
		case a.ended <- w:
		case <-ctx.Done():
		}
	})
}

// adopt takes on the pods of an earlier run that are not wanted any more, by
// their records and by what the runtime has of them, to end them.
func (a *Agent) adopt(ctx context.Context) {
	wanted := map[string]bool{}
	for _, pod := range a.wanted.Pods {
		wanted[string(pod.UID)] = true
	}
	take := func(pod *corev1.Pod) {
		uid := string(pod.UID)
		if wanted[uid] || a.workers[uid] != nil {
			return
		}
		a.takeOrphan(ctx, pod)
	}
	found := a.orphans(ctx)
	dirs, err := os.ReadDir(a.node.podsDir)
	if err != nil {
		a.cfg.Log.Error("read pod records", "error", err)
	}
	for _, d := range dirs {
		if wanted[d.Name()] {
			continue
		}
		r, err := readRecord(a.node.podDir(d.Name()))
		if err != nil || !r.describes(d.Name()) {
			a.cfg.Log.Error("pod record cannot be used; its runtime objects and directory are cleaned up", "uid", d.Name(), "error", err)
			if found[d.Name()] == nil {
				take(orphan(d.Name(), "unknown", "unknown"))
			}
			continue
		}
		take(r.Pod)
	}
	for _, pod := range found {
		take(pod)
	}
}

// takeOrphan ends a pod that nobody wants.
func (a *Agent) takeOrphan(ctx context.Context, pod *corev1.Pod) {
	a.node.metrics.Orphan()
	w := newWorker(a.node, pod, a.wanted, "")
	w.end(nil)
	a.spawn(ctx, w)
}

// orphans describes the pods that the runtime has with this agent's label.
func (a *Agent) orphans(ctx context.Context) map[string]*corev1.Pod {
	pods := map[string]*corev1.Pod{}
	mine := map[string]string{observe.LabelAgent: a.node.request.AgentID}
	sandboxes, err := a.node.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: mine}})
	if err != nil {
		a.cfg.Log.Error("list sandboxes to find orphans", "error", err)
		return nil
	}
	for _, s := range sandboxes.Items {
		uid := s.Labels[observe.LabelPodUID]
		if uid != "" && pods[uid] == nil {
			pods[uid] = orphan(uid, s.Labels[observe.LabelPodNamespace], s.Labels[observe.LabelPodName])
		}
	}
	containers, err := a.node.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{LabelSelector: mine}})
	if err != nil {
		a.cfg.Log.Error("list containers to find orphans", "error", err)
		return pods
	}
	for _, c := range containers.Containers {
		pod := pods[c.Labels[observe.LabelPodUID]]
		if pod == nil {
			continue
		}
		if s, err := strconv.ParseInt(c.Annotations[observe.AnnotationGracePeriod], 10, 64); err == nil {
			pod.Spec.TerminationGracePeriodSeconds = &s
		}
	}
	return pods
}

// orphan is a pod of which no more is known than its name.
func orphan(uid, namespace, name string) *corev1.Pod {
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, UID: types.UID(uid)},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			SecurityContext:               &corev1.PodSecurityContext{},
			RestartPolicy:                 corev1.RestartPolicyNever,
		},
	}
}

// touch is news from the runtime: of one pod, or of any if uid is "".
type touch struct {
	uid    string
	orphan *corev1.Pod // if nobody seems to look after it
}

func (a *Agent) touch(ctx context.Context, t touch) {
	if t.uid != "" {
		if w := a.workers[t.uid]; w != nil {
			w.look()
		} else if t.orphan != nil {
			a.cfg.Log.Warn("the runtime has something of a pod that is not there", "pod", t.orphan.Namespace+"/"+t.orphan.Name)
			a.takeOrphan(ctx, t.orphan)
		}
		return
	}
	for _, w := range a.workers {
		w.look()
	}
}

// record is what is kept of a pod between runs of the agent.
type record struct {
	Pod    *corev1.Pod
	Origin string `json:",omitempty"`
	Status corev1.PodStatus
	// Over: nothing of Pod runs nor will be started. Status may be of an earlier
	// definition, as long as the runtime does not answer.
	Over bool `json:",omitempty"`
	// Containers as last seen: their counts and ends outlive the runtime's
	// memory of them, e.g. a reboot.
	Containers []observe.Container     `json:",omitempty"`
	IPs        map[string][]string     `json:",omitempty"` // by sandbox ID; a stopped one does not tell
	Probes     map[string]carriedProbe `json:",omitempty"` // by container ID
	Failed     *failedRecord           `json:",omitempty"`
	// Debug are ephemeral containers that the API added; Pod has them, too.
	Debug []corev1.EphemeralContainer `json:",omitempty"`
	// Conditions are those that the API set; Status has them, too.
	Conditions conditions `json:",omitzero"`
	// Ending: it was deleted. It ends before it begins anew, if it is wanted again.
	Ending *endRecord `json:",omitempty"`
	// Allocated is what it has of the node, as Pod has it; nil: nothing.
	Allocated *allocated `json:",omitempty"`
	Group     observe.Resources
	StartTime time.Time
}

// describes tells whether a record is complete enough to end its pod by it.
func (r *record) describes(uid string) bool {
	p := r.Pod
	return p != nil && string(p.UID) == uid && p.Spec.TerminationGracePeriodSeconds != nil && p.Spec.SecurityContext != nil
}

// holds tells whether the pod has not ended.
func (r *record) holds() bool {
	return r.Status.Phase != corev1.PodSucceeded && r.Status.Phase != corev1.PodFailed
}

type carriedProbe struct{ Started, Ready bool }

type endRecord struct {
	At    time.Time
	Grace time.Duration
}

type failedRecord struct {
	Reason, Message string
	// Generation of the pod's definition that failed.
	Hash string
	// Evicted: it holds nothing on the node any more; Disk: nor do its containers.
	Evicted, Disk bool `json:",omitempty"`
	// Shutdown: it ended because the machine was to go down, Preempted: for a critical
	// pod. It begins again.
	Shutdown, Preempted bool `json:",omitempty"`
}

// endMark says that a pod is to go, before its worker has taken note of it.
type endMark struct {
	At    time.Time
	Grace *time.Duration `json:",omitempty"`
}

func endPath(podDir string) string { return filepath.Join(podDir, "ending.json") }

// readEnd returns how a pod is to end, nil if it is not to.
func readEnd(podDir string, pod *corev1.Pod) *endRecord {
	data, err := os.ReadFile(endPath(podDir))
	var m endMark
	if err != nil || json.Unmarshal(data, &m) != nil || pod == nil || pod.Spec.TerminationGracePeriodSeconds == nil {
		return nil
	}
	out := &endRecord{m.At, time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second}
	if m.Grace != nil {
		out.Grace = *m.Grace
	}
	return out
}

func recordPath(podDir string) string { return filepath.Join(podDir, "record.json") }

func readRecord(podDir string) (*record, error) {
	data, err := os.ReadFile(recordPath(podDir))
	if err != nil {
		return nil, err
	}
	r := &record{}
	return r, json.Unmarshal(data, r)
}
