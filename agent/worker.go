package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podstead/agent/client"
	"podstead/agent/internal/flight"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/probe"
	"podstead/agent/internal/source"
	"podstead/agent/internal/status"
	"podstead/sys"
)

// worker owns one pod, from its first sight until nothing of it is left.
//
// The loop and the probes leave news in its box and wake it; it then looks at
// the runtime, asks plan.Next, starts the steps that it is told and describes
// the pod on the board. Steps run in their own goroutines and send what became
// of them. Nothing else touches the fields below the box.
type worker struct {
	node *node
	uid  string
	wake chan struct{} // of capacity 1

	// leaving: it was told to end. A step that is about to start something looks at
	// that itself: the worker may be waiting for the runtime's answer just then.
	leaving atomic.Bool

	mu  sync.Mutex // guards box
	box box

	given    *corev1.Pod                 // as its source has it
	pod      *corev1.Pod                 // and with what was added here (worker_define.go)
	debug    []corev1.EphemeralContainer // that were added by the API
	set      conditions                  // by the API (worker_condition.go)
	alloc    *allocated
	admitted bool // the node's ledger has it
	pending  *pendingResize
	short    *plan.Wait // why it is not admitted
	// misplaced is why what it is to have for itself is not there.
	misplaced *plan.Wait
	group     observe.Resources // that the pod's own cgroup has
	objs      *source.Set
	origin    string
	hashes    plan.Hashes
	ending    *plan.End
	failed    *failedRecord
	start     time.Time
	seen      observe.Pod
	known     map[string]observe.Container // by ID, as last completed
	ips       map[string][]string          // of sandboxes, by ID
	dirty     bool                         // the runtime has to be looked at
	blind     time.Duration                // how long to wait after a failed look
	blinded   time.Time                    // when looks began to fail
	prepared  bool
	stale     bool // volumes are to be brought up to date
	failures  map[string]plan.Failure
	troubled  map[string]time.Time // since when steps fail, by plan.Step.FailureKey
	tries     map[string]int       // failures in a row, by plan.Step.FailureKey
	told      map[string]time.Time // ends of the back-offs that were made events, by container
	busy      map[string]*running
	finished  map[string]time.Time // the last step that succeeded
	results   chan result
	quit      chan struct{} // closed when results are not read any more
	// described is closed when the pod is on the board for the first time.
	described chan struct{}
	probes    map[string]*probe.Container
	counts    *probe.Book             // of results in a row
	carried   map[string]carriedProbe // from the record, for the first look
	last      plan.Plan
	status    corev1.PodStatus
	again     bool          // it was preempted, and there is room for it now
	wasOver   bool          // as of the last look
	recorded  *corev1.Pod   // as the last agent had it
	written   []byte        // the record as on disk
	evicted   chan struct{} // to be closed when the pod has ended for its eviction
	stage     client.Why
	posted    posted
	flight    *flight.Recorder
	starting  trace.Span // of the pod's start; nil when that is over
	pulls     *pulls     // of the pod's first start, nil when that is over
	steps     sync.WaitGroup
}

// box is what others leave for the worker.
type box struct {
	pod    *corev1.Pod
	objs   *source.Set
	origin string
	end    bool
	grace  *time.Duration
	look   bool
	evict  *order
	resume bool // after a shutdown that did not come
	asked  []ask
}

// ask is something that a client wants of the worker, and waits for.
type ask struct {
	do     func(*worker) error
	answer chan<- error // of capacity 1
}

// running is a step under way.
type running struct {
	step   plan.Step
	until  time.Time // of a Kill
	cancel context.CancelFunc
	job    *job // whose results are read when it has ended
	// stopped: it was cancelled because something else is wanted by now.
	stopped bool
}

// result is what became of a step.
type result struct {
	run    *running
	failed *stepError
}

func newWorker(n *node, pod *corev1.Pod, objs *source.Set, origin string) *worker {
	return &worker{
		node: n, uid: string(pod.UID), wake: make(chan struct{}, 1),
		box:       box{pod: pod, objs: objs, origin: origin, look: true},
		known:     map[string]observe.Container{},
		ips:       map[string][]string{},
		failures:  map[string]plan.Failure{},
		troubled:  map[string]time.Time{},
		tries:     map[string]int{},
		told:      map[string]time.Time{},
		busy:      map[string]*running{},
		finished:  map[string]time.Time{},
		results:   make(chan result),
		quit:      make(chan struct{}),
		described: make(chan struct{}),
		probes:    map[string]*probe.Container{},
		counts:    n.probeCounts(string(pod.UID)),
		flight:    flight.Open(filepath.Join(n.podDir(string(pod.UID)), "flight.jsonl"), n.tracer, traceOf(pod)...),
	}
}

// want tells what the pod and the objects are like now.
func (w *worker) want(pod *corev1.Pod, objs *source.Set, origin string) {
	w.leave(func(b *box) { b.pod, b.objs, b.origin = pod, objs, origin })
}

// end tells that the pod is to go; grace nil takes its own period. A shorter
// grace than an earlier call's counts. It is on disk before it is acknowledged: if
// the pod is wanted again by the next agent, it ends first all the same.
func (w *worker) end(grace *time.Duration) {
	w.leaving.Store(true)
	file := endPath(w.node.podDir(w.uid))
	if _, err := os.Stat(file); err != nil {
		data, err := json.Marshal(endMark{At: time.Now(), Grace: grace})
		if err == nil {
			err = sys.WriteFileAtomic(file, data, 0o600, false)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // without a directory there is nothing to end
			w.node.log.Warn("the end of a pod is not recorded", "uid", w.uid, "error", err)
		}
	}
	w.leave(func(b *box) {
		b.end = true
		if grace != nil && (b.grace == nil || *grace < *b.grace) {
			b.grace = grace
		}
	})
}

// look tells that the runtime has news of the pod.
func (w *worker) look() { w.leave(func(b *box) { b.look = true }) }

func (w *worker) leave(f func(*box)) {
	w.mu.Lock()
	f(&w.box)
	w.mu.Unlock()
	w.poke()
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake
	}
}

// run works until the pod is gone or ctx ends; then the pod's containers go on.
func (w *worker) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer w.breakTrace()
	defer w.steps.Wait()
	defer func() {
		for _, p := range w.probes {
			p.Stop()
		}
	}()
	defer close(w.quit)
	defer cancel()
	described := sync.OnceFunc(func() { close(w.described) })
	defer described()
	w.open()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		case r := <-w.results:
			w.done(r)
		}
		w.unpack()
		if gone := w.sync(ctx, timer); gone {
			return
		}
		described()
	}
}

// open takes over what an earlier agent knew of the pod.
func (w *worker) open() {
	w.start = time.Now()
	r, err := readRecord(w.node.podDir(w.uid))
	if err != nil {
		w.pulls = &pulls{}
		return // the pod is new, or its record is lost: the runtime's word counts
	}
	w.start, w.status, w.failed, w.carried = r.StartTime, r.Status, r.Failed, r.Probes
	w.origin, w.debug, w.set = r.Origin, r.Debug, r.Conditions
	maps.Copy(w.ips, r.IPs)
	w.wasOver = r.Over
	w.resume()
	w.alloc, w.admitted, w.group = r.Allocated, r.Allocated != nil && r.holds(), r.Group
	if w.admitted {
		w.node.ledger.Hold(w.requests(r.Pod))
	}
	w.recorded = r.Pod
	for _, c := range r.Containers {
		c.Remembered = true
		w.known[c.ID] = c
	}
	w.seen.Containers = slices.Clone(r.Containers)
	w.seen.Sort()
	w.prepared = false
	if r.Ending == nil {
		r.Ending = readEnd(w.node.podDir(w.uid), r.Pod)
	}
	if r.Ending != nil && r.describes(w.uid) {
		w.mu.Lock()
		objs := w.box.objs
		w.mu.Unlock()
		w.redefine(box{pod: r.Pod, objs: objs, origin: r.Origin})
		w.ending = &plan.End{At: r.Ending.At, Grace: r.Ending.Grace}
		w.prepared = true
	}
}

// unpack takes the news from the box.
func (w *worker) unpack() {
	w.mu.Lock()
	b := w.box
	w.box = box{}
	w.mu.Unlock()
	w.dirty = w.dirty || b.look
	if b.end {
		w.begin(b)
	}
	if b.pod != nil && (w.pod == nil || w.ending == nil || w.ending.Keep) {
		w.redefine(b)
	}
	if b.evict != nil {
		w.fall(*b.evict)
	}
	if b.resume { // before what is asked of the pod since
		w.resume()
	}
	for _, a := range b.asked {
		a.answer <- a.do(w)
	}
	w.comeBack()
	w.retryResize()
}

// begin begins the end of the pod.
func (w *worker) begin(b box) {
	if w.pod == nil {
		w.redefine(b)
	}
	grace := w.grace()
	if b.grace != nil {
		grace = *b.grace
	}
	switch {
	case w.ending == nil || w.ending.Keep:
		w.ending = &plan.End{At: time.Now(), Grace: grace}
		w.prepared = true // there may be something to tear down
		clear(w.failures)
	case b.grace != nil:
		if left := time.Until(w.ending.At.Add(w.ending.Grace)); *b.grace < left {
			w.ending.Grace = time.Since(w.ending.At) + *b.grace
			if *b.grace == 0 {
				w.ending.At, w.ending.Grace = time.Now(), 0
			}
		}
	}
}

// sync brings the pod a step further and tells whether it is gone.
func (w *worker) sync(ctx context.Context, timer *time.Timer) (gone bool) {
	if w.dirty {
		if err := w.observe(ctx); err != nil {
			if ctx.Err() != nil {
				return false
			}
			if w.blind == 0 {
				w.blinded = time.Now()
			}
			w.blind = min(max(2*w.blind, 250*time.Millisecond), 10*time.Second)
			w.node.log.Warn("runtime does not answer", "pod", w.name(), "error", err)
			timer.Reset(w.blind)
			if w.posted.pod != nil {
				w.describe(time.Now()) // what is wanted may be another
			} else {
				w.save()
			}
			return false
		}
		w.sees(time.Now())
		w.unpack() // looking may have taken long
	}
	w.watch(ctx)
	now := time.Now()
	w.last = plan.Next(w.input(), now)
	if w.last.DeadlineExceeded && w.failed == nil {
		w.exceed(now)
		w.last = plan.Next(w.input(), now)
	}
	w.beginTrace(now)
	for _, s := range w.last.Steps {
		w.launch(ctx, s)
	}
	w.yield()
	w.leaveNode()
	w.tellBackoffs()
	w.refreshVolumes(ctx)
	w.describe(now)
	w.fallen() // after it is told
	if w.last.Gone {
		w.node.board.remove(w.uid)
		w.node.metrics.Forget(w.pod)
		return true
	}
	w.sleep(timer, now)
	return false
}

// sees is called when the runtime answers. The time for which it did not is not
// taken from the grace of a pod that is to end.
func (w *worker) sees(now time.Time) {
	if w.blind > 0 && w.ending != nil && len(w.busy) == 0 {
		since := w.ending.At
		if since.Before(w.blinded) {
			since = w.blinded
		}
		w.ending.At = w.ending.At.Add(now.Sub(since))
	}
	w.dirty, w.blind = false, 0
}

func (w *worker) sleep(timer *time.Timer, now time.Time) {
	wake := w.last.Wake
	if at := w.backoffNews(now); !at.IsZero() && (wake.IsZero() || at.Before(wake)) {
		wake = at
	}
	if wake.IsZero() {
		timer.Stop()
		return
	}
	timer.Reset(max(wake.Sub(now), 0))
}

func (w *worker) exceed(now time.Time) {
	w.failed = &failedRecord{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline", Hash: specHash(w.hashes)}
	w.node.event(w.pod, "", corev1.EventTypeNormal, "DeadlineExceeded", "%s", w.failed.Message)
	w.ending = &plan.End{At: now, Grace: w.grace(), Keep: true}
}

func (w *worker) grace() time.Duration {
	return time.Duration(*w.pod.Spec.TerminationGracePeriodSeconds) * time.Second
}

func (w *worker) name() string { return w.pod.Namespace + "/" + w.pod.Name }

func (w *worker) input() plan.Input {
	in := plan.Input{
		Pod: w.pod, Hashes: w.hashes, Seen: w.seen, Prepared: w.prepared,
		Probes: w.probeStates(), Failures: w.failures, Busy: map[string]plan.Busy{},
		End: w.ending, StartTime: w.start, Hold: w.hold(), Tight: w.node.pressure.tight(), MinBackoff: w.node.minBackoff, MaxBackoff: w.node.maxBackoff,
		PodResources: w.group, Late: w.late(),
	}
	for key, r := range w.busy {
		in.Busy[key] = plan.Busy{Kind: r.step.Kind, Deadline: r.until}
	}
	return in
}

func (w *worker) probeStates() map[string]plan.Probe {
	out := map[string]plan.Probe{}
	for id, p := range w.probes {
		s := p.State()
		out[id] = plan.Probe{Started: s.Started, Ready: s.Ready, Failed: s.Failed, Grace: s.Grace}
	}
	return out
}

// news records which containers have become ready, or have ceased to be.
func (w *worker) news(before corev1.PodStatus, now time.Time) {
	if before.Phase == corev1.PodPending && w.status.Phase == corev1.PodRunning {
		w.node.metrics.Running(now.Sub(w.start))
	}
	w.measureStart()
	w.probed()
	ready := map[string]bool{}
	for _, c := range before.ContainerStatuses {
		ready[c.Name] = c.Ready
	}
	for _, c := range w.status.ContainerStatuses {
		if c.Ready == ready[c.Name] {
			continue
		}
		what := "ready"
		if !c.Ready {
			what = "not ready"
		}
		w.flight.Add(client.FlightEntry{At: now, Kind: client.FlightNews, Container: c.Name, What: what})
	}
	w.endTrace(now)
}

// describe puts the pod on the board and in its record, if it changed.
func (w *worker) describe(now time.Time) {
	in := status.Input{
		Pod: w.pod, Seen: w.seen, Probes: w.probeStates(), Waits: w.last.Waits, Failures: w.failures,
		Runtime: w.node.runtimeName, HostIPs: w.node.hostIPs, StartTime: w.start, Prev: &w.status, Now: now,
		Over: w.over(), Starting: map[string]bool{}, Conditions: w.set.List, Devices: w.node.devices.Health(w.uid),
	}
	for name := range w.busy {
		in.Starting[name] = w.hooking(name)
	}
	in.Resize = w.resizeStatus()
	if w.failed != nil {
		in.Failed = &status.Failed{Reason: w.failed.Reason, Message: w.failed.Message}
		switch f := w.failed; {
		case f.Preempted:
			in.Failed.Disrupted = preemptingDetail
		case f.Evicted || f.Shutdown:
			in.Failed.Disrupted = f.Message
		}
	}
	before := w.status
	w.status = status.Make(in)
	w.news(before, now)
	pod := w.pod.DeepCopy()
	pod.Status = *w.status.DeepCopy()
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.APIVersion, pod.Kind = "v1", "Pod"
	pod.CreationTimestamp = metav1.NewTime(w.start)
	pod.Annotations[client.AnnotationSource] = "api"
	if w.origin != "" {
		pod.Annotations[client.AnnotationSource] = "file"
		pod.Annotations[client.AnnotationManifest] = w.origin
	}
	if w.ending != nil && !w.ending.Keep {
		at := metav1.NewTime(w.ending.At.Add(w.ending.Grace))
		seconds := int64(w.ending.Grace / time.Second)
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, &seconds
	}
	why := w.why(now)
	if w.posted.pod == nil || !reflect.DeepEqual(w.posted.pod, pod) || !reflect.DeepEqual(w.posted.why, why) {
		w.posted = posted{pod, why, w.flight, w.moment()}
		w.node.board.publish(w.posted)
	}
	w.save()
}

// over tells whether nothing of the pod runs nor will be started. While the
// runtime does not answer that is as it was, and a sandbox that comes late does
// not change it.
func (w *worker) over() bool {
	if w.dirty {
		return w.wasOver
	}
	starting := false
	for _, r := range w.busy {
		starting = starting || r.step.Kind == plan.Start
	}
	w.wasOver = !starting && !w.seen.Running() && (w.wasOver || w.last.Finished || w.ending != nil && !w.ending.Keep)
	return w.wasOver
}

// save writes the record, if it changed. Of a pod that is to go no directory is
// made for it.
func (w *worker) save() {
	if w.last.Gone {
		return
	}
	if r := w.busy[""]; r != nil && r.step.Kind == plan.Teardown {
		return // its directory is being removed
	}
	r := record{Pod: w.pod, Origin: w.origin, Status: w.status, Over: w.wasOver, Failed: w.failed, StartTime: w.start, Probes: map[string]carriedProbe{}, Debug: w.debug, Conditions: w.set, Group: w.group}
	if w.ending != nil && !w.ending.Keep {
		r.Ending = &endRecord{w.ending.At, w.ending.Grace}
	}
	if s := w.seen.Sandbox(); s != nil && len(s.IPs) > 0 {
		r.IPs = map[string][]string{s.ID: s.IPs}
	}
	if w.admitted {
		r.Allocated = w.alloc
	}
	for _, name := range containerNames(w.pod) {
		for _, c := range []*observe.Container{w.seen.Latest(name), w.seen.Previous(name)} {
			if c != nil {
				r.Containers = append(r.Containers, *c)
			}
		}
	}
	slices.SortFunc(r.Containers, func(a, b observe.Container) int { return strings.Compare(a.ID, b.ID) })
	maps.Copy(r.Probes, w.carried) // of containers that could not be looked at yet
	for id, p := range w.probes {
		s := p.State()
		r.Probes[id] = carriedProbe{Started: s.Started, Ready: s.Ready}
	}
	data, err := json.Marshal(r)
	if err != nil || string(data) == string(w.written) {
		return
	}
	dir := w.node.podDir(w.uid)
	if _, err := os.Stat(dir); err != nil {
		if w.ending != nil && !w.ending.Keep || os.MkdirAll(dir, 0o750) != nil {
			return
		}
	}
	if err := sys.WriteFileAtomic(recordPath(dir), data, 0o600, false); err != nil {
		w.node.log.Warn("pod record not written", "pod", w.name(), "error", err)
		return
	}
	w.written = data
}
