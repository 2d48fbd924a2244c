package simtest

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
	"podstead/agent/internal/plan"
)

// history is what is remembered of an instance to judge the agent by.
type history struct {
	seq   int
	asked time.Time // when the agent began to have it made
	// delay is what has to pass between its end and the next start.
	delay      time.Duration
	termAt     time.Time // of the first TERM
	intent     time.Time // of the first thing that was done to end it
	own, whole []string  // why it was to end, when that was last begun
	hooked     bool      // by its preStop hook
	lost       bool      // in a reboot: what the agent knew of it is not certain
	late       bool      // started for an agent that had left, perhaps unseen by the next
	hooks      map[string]int
	probes     map[string]*streak
}

// streak is how often in a row a probe answered the same.
type streak struct {
	ok  bool
	n   int32
	bad int32 // the longest row of failures
	was bool  // ever a success
}

// pod is what was wanted of a pod and what came of it, until nothing is left.
type pod struct {
	versions []version
	ending   int // how many versions there were when it was deleted
	endAt    time.Time
	grace    time.Duration // of the end
	lastEnd  time.Time     // the same, of lives that are over, too
	fellAt   time.Time     // it began to end for a critical pod
	made     map[string][]*container
	seen     seen

	conditions map[corev1.PodConditionType]*opened // that were set
	leaves     bool                                // it was deleted, and nobody was told that it is gone
}

type version struct {
	from   time.Time
	pod    *corev1.Pod
	hashes plan.Hashes
}

// now is the version in force: of a pod that ends the one it had.
func (p *pod) now() *version {
	if !p.endAt.IsZero() {
		return &p.versions[p.ending-1]
	}
	return &p.versions[len(p.versions)-1]
}

// Wanted tells the world of a definition that the agent was given.
func (w *World) Wanted(def *corev1.Pod, h plan.Hashes) {
	w.mu.Lock()
	defer w.mu.Unlock()
	uid := string(def.UID)
	p := w.pods[uid]
	if p == nil {
		p = &pod{made: map[string][]*container{}, seen: newSeen()}
		w.pods[uid] = p
	}
	if w.settle(uid, p); !p.endAt.IsZero() && !p.leaves {
		p.endAt, p.made = time.Time{}, map[string][]*container{} // what is there came after it was told to be gone
	}
	if n := len(p.versions); n > 0 && p.versions[n-1].hashes.Sandbox != h.Sandbox {
		p.fade()
	}
	p.versions = append(p.versions, version{time.Now(), def.DeepCopy(), h})
	w.note("wanted: %s, sandbox %s, %v", def.Name, h.Sandbox, h.Containers)
}

// Unwanted tells that a pod was deleted.
func (w *World) Unwanted(uid string, grace *time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[uid]
	if p == nil {
		return
	}
	w.settle(uid, p)
	p.fade()
	p.leaves = true
	own := time.Duration(*p.now().pod.Spec.TerminationGracePeriodSeconds) * time.Second
	switch {
	case p.endAt.IsZero():
		p.endAt, p.grace, p.ending = time.Now(), own, len(p.versions)
		p.lastEnd = p.endAt
		if grace != nil {
			p.grace = *grace
		}
	case grace != nil:
		p.grace = min(p.grace, time.Since(p.endAt)+*grace)
		if *grace == 0 {
			p.grace = 0
		}
	}
	w.note("deleted: %s, grace %v", p.now().pod.Name, p.grace)
}

// Pressed tells that pods may be evicted for some time.
func (w *World) Pressed(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pressed = time.Now().Add(d)
}

// GoesDown tells that all pods are to end, and Stays that it has not come to that.
func (w *World) GoesDown() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("the machine is to go down")
	w.shutFrom, w.shut = time.Now(), time.Now().Add(24*time.Hour)
}

// Stays tells that a shutdown was cancelled.
func (w *World) Stays() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("the machine stays")
	w.shut = time.Now()
}

// settle begins a new life of a deleted pod of which nothing is left.
func (w *World) settle(uid string, p *pod) {
	if p.endAt.IsZero() {
		return
	}
	for _, s := range w.sandboxes {
		if s.uid() == uid {
			return
		}
	}
	for _, c := range w.containers {
		if c.sandbox.uid() == uid {
			return
		}
	}
	p.endAt, p.made = time.Time{}, map[string][]*container{}
}

func (w *World) podOf(uid string) *pod {
	p := w.pods[uid]
	if p != nil {
		w.settle(uid, p)
	}
	return p
}

// ended tells whether the pod was deleted before a call began.
func (p *pod) ended(began time.Time) bool { return !p.endAt.IsZero() && began.After(p.endAt) }

// last is the last instance that ran.
func (p *pod) last(name string) *container {
	if list := p.made[name]; len(list) > 0 {
		return list[len(list)-1]
	}
	return nil
}

func sidecar(c *corev1.Container) bool { return c.RestartPolicy != nil }

func (v *version) spec(name string) (c *corev1.Container, init bool) {
	for i := range v.pod.Spec.InitContainers {
		if v.pod.Spec.InitContainers[i].Name == name {
			return &v.pod.Spec.InitContainers[i], true
		}
	}
	for i := range v.pod.Spec.Containers {
		if v.pod.Spec.Containers[i].Name == name {
			return &v.pod.Spec.Containers[i], false
		}
	}
	return nil, false
}

// restarts is the API's rule.
func restarts(v *version, spec *corev1.Container, exit int32) bool {
	switch {
	case sidecar(spec) || v.pod.Spec.RestartPolicy == corev1.RestartPolicyAlways:
		return true
	case v.pod.Spec.RestartPolicy == corev1.RestartPolicyOnFailure:
		return exit != 0
	}
	return false
}

// restartsInit is the rule for init containers: they run until they succeed.
func restartsInit(v *version, spec *corev1.Container, exit int32) bool {
	if sidecar(spec) {
		return true
	}
	return exit != 0 && v.pod.Spec.RestartPolicy != corev1.RestartPolicyNever
}

func (w *World) checkSandbox(s *sandbox, began time.Time) {
	p := w.podOf(s.uid())
	if p == nil {
		w.wrong("a sandbox for a pod that nobody wanted: %s", s.config.Metadata.Name)
		return
	}
	if p.ended(began) {
		w.wrong("a sandbox for %s, which was deleted before", s.config.Metadata.Name)
	}
	for _, other := range w.sandboxes {
		if other.uid() == s.uid() && other.ready {
			w.wrong("a second sandbox for %s beside %s", s.config.Metadata.Name, other.id)
		}
	}
	for _, c := range w.sorted() {
		if c.sandbox.uid() == s.uid() && c.running() {
			w.wrong("a sandbox for %s while %s (%s) still runs in another", s.config.Metadata.Name, c.id, c.key())
		}
	}
}

// checkStart judges a start that has just happened.
func (w *World) checkStart(c *container, began time.Time) {
	for _, other := range w.sorted() {
		if other != c && other.running() && other.key() == c.key() {
			w.wrong("double start: %s of %s while %s runs", c.id, c.key(), other.id)
		}
	}
	p := w.podOf(c.sandbox.uid())
	if p == nil || p.ended(began) {
		w.wrong("%s of %s started after its pod was deleted", c.id, c.key())
		return
	}
	w.checkAgain(p, c)
	w.checkOrder(p, c)
}

// checkAgain judges whether and when an instance may follow another.
func (w *World) checkAgain(p *pod, c *container) {
	v, prev := p.now(), p.last(c.name())
	if prev == nil || prev.hash() != c.hash() || prev.lost || prev.late {
		return
	}
	spec, init := v.spec(c.name())
	if spec == nil || v.hashes.Containers[c.name()] != c.hash() {
		return // edited meanwhile
	}
	again := prev.sandbox != c.sandbox
	if init && again && !sidecar(spec) {
		return // all init containers run again in a new sandbox
	}
	if init && !restartsInit(v, spec, prev.exit) || !init && !restarts(v, spec, prev.exit) {
		w.wrong("%s of %s started although %s ended with %d and the policy is %s", c.id, c.key(), prev.id, prev.exit, v.pod.Spec.RestartPolicy)
	}
	delay := prev.delay
	if prev.finished.Sub(prev.created) > plan.BackoffReset || w.resized(p, prev) {
		delay = 0
	}
	if c.created.Before(prev.finished.Add(delay)) {
		w.wrong("%s of %s made %v after the end of %s: its back-off is %v", c.id, c.key(), c.created.Sub(prev.finished), prev.id, delay)
	}
}

// checkOrder judges whether what has to run before did.
func (w *World) checkOrder(p *pod, c *container) {
	v := p.now()
	if v.from.After(c.asked) || v.hashes.Sandbox != c.sandbox.config.Annotations[observe.AnnotationSandboxHash] {
		return // edited meanwhile
	}
	for i := range v.pod.Spec.Containers {
		for _, x := range p.made[v.pod.Spec.Containers[i].Name] {
			if x.sandbox == c.sandbox {
				return // initialization is behind the pod
			}
		}
	}
	for i := range v.pod.Spec.InitContainers {
		before := &v.pod.Spec.InitContainers[i]
		if before.Name == c.name() {
			return
		}
		if !w.initialized(p, before, c.sandbox) {
			w.wrong("%s of %s started before init container %s was done", c.id, c.key(), before.Name)
		}
	}
}

func (w *World) initialized(p *pod, spec *corev1.Container, s *sandbox) bool {
	for _, x := range p.made[spec.Name] {
		switch {
		case x.sandbox != s:
		case !sidecar(spec) && x.dead() && x.exit == 0:
			return true
		case sidecar(spec) && (spec.StartupProbe == nil || x.probes["startup"] != nil && x.probes["startup"].ok):
			return true
		}
	}
	return false
}

// resized tells whether an instance was to have another amount of cpu since it was
// asked for. Other resources are another container as far as back-offs go. Where there
// is no room for all, it may have got some time later what it was to have.
func (w *World) resized(p *pod, c *container) bool {
	var was *corev1.Container // as of the last version that has it
	for i := range p.versions {
		is, _ := p.versions[i].spec(c.name())
		if is == nil {
			continue
		}
		if (!p.versions[i].from.Before(c.asked) || w.narrow > 0) && was != nil && is.Resources.Requests.Cpu().Cmp(*was.Resources.Requests.Cpu()) != 0 {
			return true
		}
		was = is
	}
	return false
}

// remember puts an instance that ran into its pod's history.
func (w *World) remember(c *container) {
	p := w.podOf(c.sandbox.uid())
	if p == nil {
		return
	}
	if prev := p.last(c.name()); prev != nil && prev.hash() == c.hash() && !prev.lost && !prev.late && !w.resized(p, prev) {
		c.delay = prev.delay
		if prev.finished.Sub(prev.created) > plan.BackoffReset {
			c.delay = 0
		}
		c.delay = min(max(2*c.delay, plan.BackoffStart), plan.BackoffMax)
	}
	p.made[c.name()] = append(p.made[c.name()], c)
}

// toStop is called when the agent begins to end a container, by its preStop hook
// or by a call: the reasons are those of that moment. What is wanted may change
// before the signal is there, but no call can take it back, nor can a container
// go on whose hook has run.
func (w *World) toStop(c *container, hook bool) {
	if c.intent.IsZero() {
		c.intent = time.Now()
	}
	if p := w.podOf(c.sandbox.uid()); p != nil && (hook || !c.hooked) {
		c.own, c.whole = w.reasons(p, c)
	}
	c.hooked = hook
}

// checkStop judges a StopContainer that arrives.
func (w *World) checkStop(c *container, grace time.Duration) {
	p := w.podOf(c.sandbox.uid())
	if p == nil {
		return
	}
	if len(c.own)+len(c.whole) == 0 {
		w.wrong("%s of %s stopped without a reason", c.id, c.key())
	}
	v := p.now()
	spec, _ := v.spec(c.name())
	if spec == nil {
		return
	}
	if grace > 0 && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil && c.hooks["prestop"] == 0 {
		w.wrong("TERM to %s of %s without its preStop hook", c.id, c.key())
	}
	if len(c.own) == 0 && sidecar(spec) {
		w.checkSidecarOrder(p, c)
	}
}

// reasons why an instance may be stopped: of its own, and with its whole pod.
func (w *World) reasons(p *pod, c *container) (own, whole []string) {
	for i, v := range p.versions {
		if i+1 < len(p.versions) && p.versions[i+1].from.Before(c.asked) {
			continue // over before the instance was made
		}
		if h := v.hashes.Containers[c.name()]; h != c.hash() {
			own = append(own, "edited")
		}
		if v.hashes.Sandbox != c.sandbox.config.Annotations[observe.AnnotationSandboxHash] {
			whole = append(whole, "pod edited")
		}
	}
	v := p.now()
	if spec, _ := v.spec(c.name()); spec != nil {
		for kind, probe := range map[string]*corev1.Probe{"live": spec.LivenessProbe, "startup": spec.StartupProbe} {
			if s := c.probes[kind]; probe != nil && s != nil && s.bad >= probe.FailureThreshold {
				own = append(own, kind)
			}
		}
	}
	if c.hooks["poststart"] > 0 {
		own = append(own, "postStart")
	}
	if !c.sandbox.ready {
		whole = append(whole, "sandbox")
	}
	if !p.lastEnd.Before(c.asked) { // perhaps before there was anything of it
		whole = append(whole, "deleted")
	}
	if w.pressed.After(c.created) {
		whole = append(whole, "evicted")
	}
	if !c.created.After(w.shut) {
		whole = append(whole, "shutdown")
	}
	if v.pod.Spec.ActiveDeadlineSeconds != nil {
		whole = append(whole, "deadline")
	}
	if w.needed(p, c.created) {
		whole = append(whole, "preempted")
	}
	if p.finished() {
		whole = append(whole, "finished")
	}
	return own, whole
}

// finished tells whether the pod has run to its end.
func (p *pod) finished() bool {
	v := p.now()
	for i := range v.pod.Spec.InitContainers {
		spec := &v.pod.Spec.InitContainers[i]
		if c := p.last(spec.Name); c != nil && c.dead() && c.exit != 0 && !restartsInit(v, spec, c.exit) {
			return true
		}
	}
	for i := range v.pod.Spec.Containers {
		spec := &v.pod.Spec.Containers[i]
		if c := p.last(spec.Name); c == nil || !c.dead() || restarts(v, spec, c.exit) {
			return false
		}
	}
	return true
}

// checkSidecarOrder judges the end of a sidecar with its pod.
func (w *World) checkSidecarOrder(p *pod, c *container) {
	v := p.now()
	later := []string{}
	for i := range v.pod.Spec.Containers {
		later = append(later, v.pod.Spec.Containers[i].Name)
	}
	for i := len(v.pod.Spec.InitContainers) - 1; i >= 0 && v.pod.Spec.InitContainers[i].Name != c.name(); i-- {
		later = append(later, v.pod.Spec.InitContainers[i].Name)
	}
	for _, x := range w.sorted() {
		if x.sandbox == c.sandbox && x.running() && x.started.Before(c.intent) && slices.Contains(later, x.name()) {
			w.wrong("sidecar %s of %s stopped while %s (%s) runs", c.id, c.key(), x.id, x.name())
		}
	}
}

// checkKill judges a KILL.
func (w *World) checkKill(c *container) {
	p := w.podOf(c.sandbox.uid())
	if p == nil {
		return
	}
	now, v := time.Now(), p.now()
	grace := time.Duration(*v.pod.Spec.TerminationGracePeriodSeconds) * time.Second
	first := c.intent
	for _, list := range p.made {
		for _, x := range list {
			if x.sandbox == c.sandbox && !x.intent.IsZero() && x.intent.Before(first) {
				first = x.intent
			}
		}
	}
	ending := !p.endAt.IsZero()
	if ending && p.grace == 0 {
		return
	}
	if w.pressed.After(c.created) {
		grace = min(grace, time.Second)
	}
	if spec, _ := v.spec(c.name()); spec != nil && spec.LivenessProbe != nil && spec.LivenessProbe.TerminationGracePeriodSeconds != nil {
		grace = min(grace, time.Duration(*spec.LivenessProbe.TerminationGracePeriodSeconds)*time.Second)
	}
	if !w.shutFrom.IsZero() && now.Sub(w.shutFrom) >= grace {
		return // the machine does not wait for a runtime that is away
	}
	if grace == 0 || v.pod.Spec.ActiveDeadlineSeconds != nil { // whose end began when the agent says
		return
	}
	if !p.fellAt.IsZero() && now.Sub(p.fellAt) >= grace {
		return // hooks take of it, and runtimes that are away
	}
	if now.Sub(first) < grace && !(ending && !now.Before(p.endAt.Add(p.grace))) {
		w.wrong("KILL to %s of %s after %v of %v (deleted at %v with %v)", c.id, c.key(), now.Sub(first), grace, p.endAt, p.grace)
	}
	if !c.termAt.IsZero() && now.Sub(c.termAt) < min(plan.MinGrace, max(grace, time.Second)) {
		w.wrong("KILL to %s of %s %v after TERM", c.id, c.key(), now.Sub(c.termAt))
	}
}

// checkBrutal complains of a running container that is ended by other means.
func (w *World) checkBrutal(c *container, how string, began time.Time) {
	if c.started.Before(began) {
		w.wrong("%s of %s runs when %s: that is no graceful end", c.id, c.key(), how)
	}
}

// tried counts the commands that the agent wanted to have run.
func (c *container) tried(kind string) {
	if c.hooks == nil {
		c.hooks, c.probes = map[string]int{}, map[string]*streak{}
	}
	c.hooks[kind]++
}

// answered takes in what the agent was told by a probe; an error says nothing.
func (c *container) answered(kind string, code int32, err error) {
	ok := code == 0 && err == nil
	if err != nil && !timedOut(err) {
		return
	}
	s := c.probes[kind]
	if s == nil {
		s = &streak{}
		c.probes[kind] = s
	}
	if s.n == 0 || s.ok != ok {
		s.ok, s.n = ok, 0
	}
	s.n++
	s.was = s.was || ok
	if !ok {
		s.bad = max(s.bad, s.n)
	}
}
