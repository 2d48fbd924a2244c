// Package simtest is a world in virtual time for the agent to be tested in: a
// container runtime in memory whose calls are refused, slow, answered into the
// void or carried out after their caller has left, whose events come late, twice
// or not at all, and whose containers live and die as a seed says. It watches
// what the agent does to it and complains about everything that a pod's owner
// would (check.go).
//
// What happens depends on the seed and on the history of the object that it
// happens to, never on the order in which goroutines come along, so that a seed
// gives the same world again. It runs in a bubble of testing/synctest.
package simtest

import (
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/observe"
)

// T is what a world complains to.
type T interface {
	Errorf(format string, args ...any)
}

// World is one node's runtime and its history. It outlives agents; what it has
// on disk is theirs.
type World struct {
	seed   uint64
	t      T
	quirks quirks

	mu         sync.Mutex
	faulty     bool
	booted     int
	agents     int       // that have connected
	down       time.Time // the runtime does not answer until then
	sandboxes  map[string]*sandbox
	containers map[string]*container
	images     map[string]bool
	watchers   map[*watcher]bool
	pods       map[string]*pod // what was wanted, by UID
	pressed    time.Time       // memory was short until then
	shut       time.Time       // the machine was to go down until then
	shutFrom   time.Time       // and from then on
	narrow     int64           // thousandths of cpu for all pods; 0: more than enough
	rolled     map[string]uint64
	trace      []string
	seq        int
	ids        map[string]int
	changes    int // calls that changed something
	failed     bool
}

// quirks in which runtimes differ.
type quirks struct {
	joins    bool // a repeated call joins the first; else its name is taken
	noEvents bool
	// failedExits: a container that cannot be started has ended, rather than
	// being as if nobody had tried.
	failedExits bool
	// stopsAlone: a stop goes on when its caller leaves.
	stopsAlone bool
}

type sandbox struct {
	config  *runtimeapi.PodSandboxConfig
	id      string
	ready   bool
	created time.Time
}

func (s *sandbox) uid() string { return s.config.Metadata.Uid }

// container is one instance.
type container struct {
	config                     *runtimeapi.ContainerConfig
	id                         string
	sandbox                    *sandbox
	state                      runtimeapi.ContainerState
	created, started, finished time.Time
	exit                       int32
	reason                     string
	life                       life
	ended                      chan struct{}
	history
}

func (c *container) name() string  { return c.config.Metadata.Name }
func (c *container) key() string   { return c.sandbox.config.Metadata.Name + "/" + c.name() }
func (c *container) hash() string  { return c.config.Annotations[observe.AnnotationHash] }
func (c *container) running() bool { return c.state == runtimeapi.ContainerState_CONTAINER_RUNNING }
func (c *container) dead() bool    { return c.state == runtimeapi.ContainerState_CONTAINER_EXITED }

// life is how an instance lives.
type life struct {
	runs    time.Duration // 0: until it is stopped
	exit    int32
	ignores time.Duration // from TERM to its end
	// sick from some time after its start, for so long.
	sickAfter, sickFor time.Duration
}

// New makes the world of a seed.
func New(t T, seed uint64) *World {
	w := &World{
		seed: seed, t: t, faulty: true,
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{}, images: map[string]bool{},
		watchers: map[*watcher]bool{}, pods: map[string]*pod{}, rolled: map[string]uint64{}, ids: map[string]int{},
	}
	w.quirks = quirks{joins: w.roll(2, "joins") == 0, noEvents: w.roll(8, "events") == 0,
		failedExits: w.roll(2, "start") == 0, stopsAlone: w.roll(2, "stop") == 0}
	w.note("quirks %+v", w.quirks)
	return w
}

// Roll throws a die of n sides for something: the n-th throw for it is always
// the same.
func (w *World) Roll(n int, what ...any) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.roll(n, what...)
}

func (w *World) roll(n int, what ...any) int {
	key := fmt.Sprint(what...)
	w.rolled[key]++
	return int(w.hash(key, w.rolled[key]) % uint64(n))
}

// once throws a die that always falls the same for something.
func (w *World) once(n int, what ...any) bool { return w.hash(fmt.Sprint(what...), 0)%uint64(n) == 0 }

func (w *World) hash(key string, n uint64) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %d", w.seed, key, n)
	x := h.Sum64() // its low bits are poor
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	return x ^ x>>33
}

func (w *World) chance(percent int, what ...any) bool { return w.roll(100, what...) < percent }

func (w *World) span(most time.Duration, what ...any) time.Duration {
	return time.Duration(w.roll(int(most/time.Millisecond), what...)) * time.Millisecond
}

// Calm ends the faults: from now on everybody lives long and answers at once.
func (w *World) Calm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faulty = false
	w.note("calm")
	for _, c := range w.sorted() {
		if initName(c.name()) && c.running() {
			w.exit(c, 0, "by itself")
		}
	}
}

// initName tells whether a container is to end by itself.
func initName(name string) bool { return name == "i" || name == "j" }

// newLife chooses how an instance lives.
func (w *World) newLife(pod, name string) life {
	key := pod + "/" + name
	if !w.faulty {
		if initName(name) {
			return life{runs: time.Second}
		}
		return life{}
	}
	l := life{exit: []int32{0, 0, 1, 2, 42, 137, 255}[w.roll(7, "exit", key)]}
	switch w.roll(6, "life", key) {
	case 0: // at once
		l.runs = time.Nanosecond
	case 1:
		l.runs = w.span(10*time.Second, "runs", key)
	case 2:
		l.runs = w.span(15*time.Minute, "runs", key)
	default:
		if initName(name) {
			l.runs, l.exit = w.span(20*time.Second, "runs", key), 0
		}
	}
	if w.chance(50, "obeys", key) {
		l.ignores = w.span(40*time.Second, "ignores", key)
	}
	if w.chance(40, "sick", key) {
		l.sickAfter, l.sickFor = w.span(time.Minute, "sick after", key), w.span(time.Minute, "sick for", key)
	}
	return l
}

// Kill ends a container from outside, if one of that key runs.
func (w *World) Kill(key string, code int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.containers {
		if c.key() == key && c.running() {
			w.note("%s (%s) is killed from outside", c.id, key)
			w.exit(c, code, "")
		}
	}
}

// BreakSandbox has a pod's sandbox die, and with it its containers, or not.
func (w *World) BreakSandbox(name string, alone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sandboxes {
		if s.config.Metadata.Name != name || !s.ready {
			continue
		}
		w.note("sandbox %s of %s dies", s.id, name)
		s.ready = false
		for _, c := range w.sorted() {
			if c.sandbox == s && c.running() && !alone {
				w.exit(c, 137, "")
			}
		}
	}
}

// Restart has the runtime be away for a while; its containers go on.
func (w *World) Restart(away time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("runtime away for %v", away)
	w.down = time.Now().Add(away)
	for x := range w.watchers {
		x.cut()
	}
}

// Reboot forgets everything but images. No agent may run.
func (w *World) Reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("reboot")
	w.booted++
	for _, c := range w.sorted() {
		if c.running() {
			w.exit(c, 137, "")
		}
		c.lost = true
	}
	clear(w.containers)
	clear(w.sandboxes)
}

// ForgetImages removes all images, as somebody cleaning up would.
func (w *World) ForgetImages() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("images removed")
	clear(w.images)
}

// Changes counts the calls that changed something.
func (w *World) Changes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes
}

// Left names what is still there.
func (w *World) Left() (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, s := range w.sandboxes {
		names = append(names, fmt.Sprintf("sandbox %s of %s", id, s.config.Metadata.Name))
	}
	for _, c := range w.sorted() {
		names = append(names, "container "+c.id+" of "+c.key())
	}
	return names
}

// Running tells whether a container of that key runs.
func (w *World) Running(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.containers {
		if c.key() == key && c.running() {
			return true
		}
	}
	return false
}

// Sandboxes counts those of a pod that are ready.
func (w *World) Sandboxes(name string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sandboxes {
		if s.ready && s.config.Metadata.Name == name {
			n++
		}
	}
	return n
}

// usage is a container's memory, for evictions.
func (w *World) usage(c *container) uint64 {
	return uint64(50+len(c.name())*20) << 20
}

// sorted returns the containers in the order in which they were made.
func (w *World) sorted() []*container {
	list := make([]*container, 0, len(w.containers))
	for _, c := range w.containers {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *container) int { return a.seq - b.seq })
	return list
}

// exit ends a running container; by says who, "" for itself or its world.
func (w *World) exit(c *container, code int32, by string) {
	if !c.running() {
		return
	}
	c.state, c.exit, c.finished = runtimeapi.ContainerState_CONTAINER_EXITED, code, time.Now()
	w.note("%s (%s) ended with %d %s", c.id, c.key(), code, by)
	close(c.ended)
	w.event(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

func (w *World) note(format string, args ...any) {
	at := time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
	w.trace = append(w.trace, fmt.Sprintf("%10.3f %s", at.Seconds(), fmt.Sprintf(format, args...)))
}

// Note adds to the trace what the test does.
func (w *World) Note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(format, args...)
}

// wrong complains about the agent.
func (w *World) wrong(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.note("WRONG: %s", text)
	w.failed = true
	w.t.Errorf("%s", text)
}

// Trace returns what happened, in order.
func (w *World) Trace() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.trace)
}
