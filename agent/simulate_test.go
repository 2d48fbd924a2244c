package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/agent/client"
	"podstead/agent/internal/eviction"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/simtest"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "the one seed to simulate, and its story")
	simTimes = flag.Int("sim.times", 1, "how often to simulate the one seed")
	simTime  = flag.Duration("sim.time", 10*time.Second, "how long to simulate seeds")
	// The same seeds each time, as many as there is time for: who changes nothing
	// is not to be surprised. "make simulate" begins anywhere.
	simFirst  = flag.Uint64("sim.first", 1, "the first seed to simulate, 0 for any")
	simNarrow = flag.Bool("sim.narrow", false, "whether the world of -sim.seed is a narrow one")
	simPins   = flag.Bool("sim.pins", false, "whether its containers have processors of their own")
	simGates  = flag.Bool("sim.gates", true, "whether its pods have readiness gates")
)

// TestSimulation lets the agent live through worlds of package simtest, which
// judge what it does, and checks that all comes right once the faults stop: no
// pod is lost, none is left. It goes through as many seeds as there is time for
// (-sim.time); a failure names its seed, and -sim.seed tells its story.
func TestSimulation(t *testing.T) { manyLives(t, *simTime, kind{gates: true}) }

// TestSimulationOfPreemption is the same in worlds that are too narrow for all
// pods, to which a critical one comes and goes.
func TestSimulationOfPreemption(t *testing.T) {
	manyLives(t, *simTime/2, kind{narrow: true, gates: true})
}

// kind of a world.
type kind struct {
	narrow bool // not all pods fit, and there is a critical one
	gates  bool // pods have readiness gates
	pins   bool // containers have processors of their own
}

func manyLives(t *testing.T, simTime time.Duration, k kind) {
	if *simSeed != 0 {
		if k.narrow == *simNarrow && k.pins == *simPins {
			k.gates = *simGates
			for range *simTimes {
				live(t, *simSeed, k)
			}
		}
		return
	}
	end := time.Now().Add(simTime)
	if testing.Short() {
		end = time.Now().Add(simTime / 4)
	}
	var next atomic.Uint64
	if next.Store(*simFirst - 1); *simFirst == 0 {
		next.Store(rand.Uint64() >> 1)
	}
	for i := range runtime.GOMAXPROCS(0) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			seeds := 0
			for ; time.Now().Before(end) && !t.Failed(); seeds++ {
				live(t, next.Add(1), k)
			}
			t.Logf("%d seeds", seeds)
		})
	}
}

// lives is how often a world is lived through that once showed a bug: what happens
// at the very same instant is in no order, and one story in five is not told alike
// each time.
const lives = 2

// TestSimulationOfOld lives through worlds that once showed a bug.
func TestSimulationOfOld(t *testing.T) {
	for _, old := range []struct {
		seed uint64
		what string // it showed
		kind kind
	}{
		{1224518201120646801, "what began anew after a shutdown did not see a sandbox that had come late", kind{gates: true}},
		{398, "a condition that was set when a shutdown did not come was forgotten", kind{gates: true}},
		{1774668082859437615, "an instance that was made and never started counted as a restart", kind{gates: true}},
		{303, "a sidecar was stopped while a container was being started", kind{}},
		{790, "the runtime was away, and that was taken from the grace of who was to end then", kind{}},
		{1278, "a canceled start went on, and the container ran when its sandbox was stopped", kind{}},
		{1366, "a definition that came with the agent's restart was told as failed", kind{}},
		{2027, "a deletion was forgotten, as the worker had not looked at it when the agent ended", kind{}},
		{2832, "a slow look kept the worker from hearing that the pod was to go", kind{}},
		{7211215368577857093, "a start outlived its agent, and the next one removed what ran by then", kind{}},
		{3148, "a sandbox came late and a failed pod was pending again", kind{}},
		{7443, "a container without a readiness probe was never ready again, as its liveness probe failed when the agent ended", kind{}},
		{12258, "on a runtime without events the ends of a container and of its sandbox canceled each other out", kind{}},
		{12230, "a failed pod got another definition while the runtime was away, and the next agent took that for failed", kind{}},
		{11339, "a pod went unseen between two agents: its counts begin anew", kind{}},
		{11583, "the same, and a pod of another sandbox came in its place", kind{}},
		{11727156665876943147, "an instance was removed as never started, was running by then, and was forgotten", kind{}},
		{15096, "a finished pod was given one more container while its sidecar was being stopped", kind{}},
		{4026, "an instance was removed as never started, ran before that, and was forgotten", kind{}},
	} {
		t.Run(fmt.Sprint(old.seed), func(t *testing.T) {
			t.Log(old.what)
			for range lives {
				live(t, old.seed, old.kind)
			}
		})
	}
}

// live lives through the world of a seed.
func live(t *testing.T, seed uint64, k kind) {
	t.Helper()
	dir, err := os.MkdirTemp(memoryDir(t), "podstead-sim")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	synctest.Test(t, func(t *testing.T) {
		s := &story{T: t, dir: dir, kind: k, wanted: map[string]string{}, uids: map[string]string{}}
		s.world = simtest.New(s, seed)
		if k.narrow {
			s.world.Narrow(narrowCPU)
		}
		s.boot()
		s.run()
		s.halt(false)
		if t.Failed() || *simSeed != 0 {
			t.Logf("the story of seed %d:\n%s", seed, strings.Join(s.world.Trace(), "\n"))
			t.Logf("again: go test ./agent -run TestSimulation -sim.seed %d -sim.narrow=%t -sim.pins=%t -sim.gates=%t -sim.times 20", seed, k.narrow, k.pins, k.gates)
		}
	})
}

// memoryDir is where files cost least.
func memoryDir(t *testing.T) string {
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		return "/dev/shm"
	}
	return t.TempDir()
}

// story is one world with the agents that live in it one after another.
type story struct {
	*testing.T
	kind
	world  *simtest.World
	dir    string
	agent  *Agent
	host   fakeHost
	stop   func()
	cut    func()
	wanted map[string]string // manifests by the names of their pods
	uids   map[string]string
}

// noted is the agent's log as part of the story.
type noted struct{ world *simtest.World }

func (n noted) Write(line []byte) (int, error) {
	if *simSeed != 0 {
		_, line, _ = bytes.Cut(line, []byte("level="))
		n.world.Note("    %s", bytes.TrimSpace(line))
	}
	return len(line), nil
}

func (s *story) boot() {
	session := s.world.Connect()
	cfg := Config{Runtime: session, StateDir: filepath.Join(s.dir, "state"), RunDir: filepath.Join(s.dir, "run"), PodLogsDir: filepath.Join(s.dir, "logs"),
		NodeName: "n1", Log: slog.New(slog.NewTextHandler(noted{s.world}, nil))}
	if s.pins {
		s.pinned(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		s.Fatal(err)
	}
	a.evictor.read, a.evictor.stalls = s.host.read, s.host.wait
	a.images.Disk = s.host.disk
	a.kernelLog = ""
	if s.pins {
		a.node.ledger.Allocatable = enoughCPU()
	}
	if s.narrow {
		a.node.ledger.Allocatable = corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(narrowCPU, resource.DecimalSI)}
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, changes, unwatch := a.board.watch()
	go func() {
		for {
			select {
			case c, ok := <-changes:
				if !ok {
					s.Error("the watcher was cut off")
					return
				}
				switch {
				case c.Event == nil:
					s.world.Told(c.Pod, c.Type == client.Gone)
				case c.Event.Reason == preempting:
					s.world.Preempted(c.Pod)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	s.agent, s.cut = a, session.Cut
	s.stop = func() {
		unwatch()
		cancel()
		if err := <-done; err != nil {
			s.Errorf("agent: %v", err)
		}
	}
	synctest.Wait()
}

// halt ends the agent; by a crash what it would still write is lost.
func (s *story) halt(crash bool) {
	if !crash {
		s.stop()
		s.cut()
		synctest.Wait()
		return
	}
	kept := map[string][]byte{}
	files, _ := filepath.Glob(filepath.Join(s.dir, "state", "pods", "*", "record.json"))
	counts, _ := filepath.Glob(filepath.Join(s.dir, "run", "probes", "*"))
	files = append(files, counts...)
	for _, f := range files {
		kept[f], _ = os.ReadFile(f)
	}
	s.cut()
	s.stop()
	synctest.Wait()
	for f, data := range kept {
		if _, err := os.Stat(filepath.Dir(f)); err == nil {
			if err := os.WriteFile(f, data, 0o600); err != nil {
				s.Error(err)
			}
		}
	}
}

func (s *story) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *story) apply(name, manifest string) {
	objects, _, err := s.agent.decoder.Decode([]byte(manifest))
	if err != nil {
		s.Fatalf("decode: %v\n%s", err, manifest)
	}
	s.uids[name] = string(objects[0].Pod.UID)
	s.world.Wanted(objects[0].Pod, hashes(objects[0].Pod))
	if _, err := (backend{s.agent}).Apply(context.Background(), []byte(manifest)); err != nil {
		s.Fatalf("apply: %v\n%s", err, manifest)
	}
	s.wanted[name] = manifest
	synctest.Wait()
}

func (s *story) delete(name string, grace *time.Duration) {
	// An agent that has just been started takes no orders yet.
	if err := s.agent.do(context.Background(), func(context.Context) { s.world.Unwanted(s.uids[name], grace) }); err != nil {
		s.Fatal(err)
	}
	if err := (backend{s.agent}).DeletePod(context.Background(), "default", name, grace); err != nil {
		s.Fatalf("delete %s: %v", name, err)
	}
	delete(s.wanted, name)
	synctest.Wait()
}

const storyPods = 2

// run is the story: things happen for a while, then the faults stop, then all
// is deleted.
func (s *story) run() {
	w := s.world
	s.memory(900)
	for range 4 + w.Roll(12, "length") {
		s.act(fmt.Sprintf("p%d", w.Roll(storyPods, "pod")))
		if s.narrow && w.Roll(2, "critical") == 0 {
			s.turnCritical()
		}
		if s.gates {
			s.turnGates()
		}
		s.after(time.Duration(w.Roll(60_000, "pause")) * time.Millisecond / time.Duration(1+w.Roll(30, "hurry")))
	}
	w.Calm()
	s.memory(900)
	if s.gates {
		s.openGates()
	}
	s.after(16 * time.Minute)
	s.settled()
	s.checkPins()
	s.restartChangesNothing()
	for _, name := range slices.Sorted(maps.Keys(s.wanted)) {
		s.delete(name, nil)
	}
	s.after(10 * time.Minute)
	s.gone()
	s.checkPins()
}

func (s *story) act(name string) {
	w := s.world
	if w.Roll(15, "shutdown") == 0 {
		s.shutdown()
	}
	switch n := w.Roll(100, "act"); {
	case s.wanted[name] == "" && n < 80:
		s.apply(name, s.manifest(name))
	case n < 15 && s.wanted[name] != "":
		s.apply(name, edit(w, s.wanted[name]))
	case n < 30 && s.wanted[name] != "":
		var grace *time.Duration
		if w.Roll(3, "grace") == 0 {
			d := time.Duration(w.Roll(10, "grace")) * time.Second
			grace = &d
		}
		s.delete(name, grace)
		if w.Roll(3, "back") == 0 {
			s.apply(name, s.manifest(name))
		}
	case n < 45:
		s.restart(w.Roll(2, "crash") == 0, time.Duration(w.Roll(30, "away"))*time.Second*time.Duration(w.Roll(2, "away at all")))
	case n < 60:
		w.Kill(name+"/"+[]string{"a", "b", "i", "s", "u"}[w.Roll(5, "kill")], []int32{0, 1, 9, 137, 255}[w.Roll(5, "code")])
	case n < 68:
		w.BreakSandbox(name, w.Roll(3, "alone") == 0)
	case n < 76:
		w.Restart(time.Duration(w.Roll(90, "runtime away")) * time.Second)
	case n < 79:
		s.halt(true)
		w.Reboot()
		if err := os.RemoveAll(filepath.Join(s.dir, "run")); err != nil {
			s.Error(err)
		}
		s.boot()
	case n < 84:
		w.ForgetImages()
	case n < 89:
		w.Pressed(30 * time.Minute)
		s.memory([]int64{90, 150}[w.Roll(2, "memory")])
	default:
		s.memory(900)
	}
}

func (s *story) restart(crash bool, away time.Duration) {
	s.world.Note("the agent ends (crash: %v) for %v", crash, away)
	s.halt(crash)
	time.Sleep(away)
	s.boot()
}

// shutdown tells the agent that the machine is to go down, and then that it stays.
func (s *story) shutdown() {
	w := s.world
	w.GoesDown()
	if err := (backend{s.agent}).Shutdown(context.Background(), false); err != nil {
		s.Fatalf("shutdown: %v", err)
	}
	s.after(time.Duration(w.Roll(60_000, "down")) * time.Millisecond)
	if w.Roll(3, "new agent while it is down") == 0 {
		s.restart(w.Roll(2, "crash while it is down") == 0, time.Second)
	}
	w.Stays()
	if err := (backend{s.agent}).Shutdown(context.Background(), true); err != nil {
		s.Fatalf("shutdown that does not come: %v", err)
	}
	s.after(0)
}

func (s *story) memory(mb int64) {
	s.world.Note("%d MiB of memory are left", mb)
	s.host.set(eviction.MemoryAvailable, mb*mib, 1000*mib)
}

// settled checks that every pod is as it should be when nothing goes wrong.
func (s *story) settled() {
	pods := s.agent.board.list()
	if len(pods) != len(s.wanted) {
		s.Errorf("%d pods, want %v", len(pods), slices.Sorted(maps.Keys(s.wanted)))
	}
	for _, p := range pods {
		over := p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
		if s.wanted[p.Name] != "" && s.narrow && s.waitsForRoom(p, pods) {
			continue
		}
		if s.wanted[p.Name] != "" && s.waitsForProcessors(p) {
			continue
		}
		if s.wanted[p.Name] == "" || !over && !allReady(p) || s.gates && !over && s.stillClosed(p) {
			posted, _ := s.agent.board.get("default", p.Name)
			s.Errorf("pod %s is %s, %+v, why %+v", p.Name, p.Status.Phase, p.Status.ContainerStatuses, posted.why)
		}
		if err := resized(p); err != "" && !over {
			s.Errorf("pod %s: %s", p.Name, err)
		}
		if n := s.world.Sandboxes(p.Name); n > 1 {
			s.Errorf("%d sandboxes of %s are left", n, p.Name)
		}
	}
}

// resized tells what a container has not got of the cpu that it is to have.
func resized(p *corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		want := plan.Find(p, c.Name).Resources.Requests.Cpu()
		if c.State.Running == nil || want.IsZero() {
			continue
		}
		if c.Resources == nil || c.Resources.Requests.Cpu().Cmp(*want) != 0 {
			return fmt.Sprintf("%s has %v of cpu, want %v", c.Name, c.Resources, want)
		}
	}
	return ""
}

func allReady(p *corev1.Pod) bool {
	for _, c := range p.Status.ContainerStatuses {
		ended := c.State.Terminated != nil && (p.Spec.RestartPolicy == corev1.RestartPolicyNever ||
			p.Spec.RestartPolicy == corev1.RestartPolicyOnFailure && c.State.Terminated.ExitCode == 0)
		if !ended && !(c.State.Running != nil && c.Ready) {
			return false
		}
	}
	return true
}

// restartChangesNothing restarts the agent where nothing else happens: nobody
// may see it.
func (s *story) restartChangesNothing() {
	before, calls := s.agent.board.list(), s.world.Changes()
	s.halt(s.world.Roll(2, "last crash") == 0)
	s.boot()
	s.after(500 * time.Millisecond)
	after := s.agent.board.list()
	if len(before) != len(after) {
		s.Fatalf("%d pods before the restart, %d after it", len(before), len(after))
	}
	for i := range before {
		was, is := shown(before[i]), shown(after[i])
		if was != is {
			at := 0
			for at < min(len(was), len(is)) && was[at] == is[at] {
				at++
			}
			at = max(0, at-100)
			s.Errorf("a restart changed %s from\n…%.300s to\n…%.300s", before[i].Name, was[at:], is[at:])
		}
	}
	told := 0
	if s.pins {
		told = len(s.world.CPUs()) // once more
	}
	if n := s.world.Changes() - calls; n > probesOf(before)+told {
		s.Errorf("a restart made %d calls", n)
	}
}

// shown is a pod as the API shows it.
func shown(p *corev1.Pod) string {
	data, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	// What others had when a pod asked for room stays until it asks again.
	return usedByOthers.ReplaceAllString(string(data), "$1 n")
}

var usedByOthers = regexp.MustCompile(`(used:|available=) ?\d+`)

// probesOf is how many probes may be made at once.
func probesOf(pods []*corev1.Pod) (n int) {
	for _, p := range pods {
		for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
			for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
				if probe != nil {
					n++
				}
			}
		}
	}
	return n
}

func (s *story) gone() {
	if left := s.world.Left(); len(left) > 0 {
		s.Errorf("left in the runtime: %v", left)
	}
	for _, p := range s.agent.board.list() {
		posted, _ := s.agent.board.get("default", p.Name)
		s.Errorf("still on the board: %s, why %+v", p.Name, posted.why)
	}
	for _, dir := range []string{filepath.Join(s.dir, "state", "pods"), filepath.Join(s.dir, "logs")} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			s.Errorf("left in %s: %v", dir, left)
		}
	}
}

// manifest makes up a pod: a and b run, i and j initialize, s and u are sidecars.
func manifest(w *simtest.World, name string) string {
	var out strings.Builder
	roll := func(n int, what string) int { return w.Roll(n, what, name) }
	fmt.Fprintf(&out, "apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n", name)
	fmt.Fprintf(&out, "  restartPolicy: %s\n", []string{"Always", "Always", "OnFailure", "Never"}[roll(4, "policy")])
	fmt.Fprintf(&out, "  terminationGracePeriodSeconds: %d\n", []int{0, 1, 3, 10, 30}[roll(5, "period")])
	if roll(12, "deadline") == 0 {
		fmt.Fprintf(&out, "  activeDeadlineSeconds: %d\n", 1+roll(120, "deadline"))
	}
	fmt.Fprintf(&out, "  hostname: h%d\n", roll(2, "hostname"))
	var inits []string
	for _, c := range []string{"i", "s", "j", "u"} {
		if roll(4, c) != 0 {
			continue
		}
		x := container(roll, c, true)
		if c == "s" || c == "u" {
			x = container(roll, c, false) + "    restartPolicy: Always\n"
		}
		inits = append(inits, x)
	}
	if len(inits) > 0 {
		out.WriteString("  initContainers:\n" + strings.Join(inits, ""))
	}
	out.WriteString("  containers:\n" + container(roll, "a", false))
	if roll(2, "b") == 0 {
		out.WriteString(container(roll, "b", false))
	}
	return out.String()
}

func container(roll func(int, string) int, name string, init bool) string {
	var out strings.Builder
	fmt.Fprintf(&out, "  - name: %s\n    image: app:%d\n", name, 1+roll(2, "image"+name))
	if roll(5, "pull") == 0 {
		out.WriteString("    imagePullPolicy: Always\n")
	}
	if init {
		return out.String()
	}
	if roll(2, "cpu"+name) == 0 {
		fmt.Fprintf(&out, "    resources: {requests: {cpu: %d00m}}\n", 1+roll(2, "cpu"+name))
	}
	probe := func(kind, field string, thresholds string) {
		if roll(3, kind+name) == 0 {
			fmt.Fprintf(&out, "    %s: {exec: {command: [%s]}, periodSeconds: %d, failureThreshold: %d%s}\n",
				field, kind, 1+roll(10, kind), 1+roll(3, kind), thresholds)
		}
	}
	success := fmt.Sprintf(", successThreshold: %d", 1+roll(2, "success"))
	probe("live", "livenessProbe", "")
	probe("ready", "readinessProbe", success)
	probe("startup", "startupProbe", "")
	var hooks []string
	if roll(3, "prestop"+name) == 0 {
		hooks = append(hooks, "preStop: {exec: {command: [prestop]}}")
	}
	if roll(5, "poststart"+name) == 0 {
		hooks = append(hooks, "postStart: {exec: {command: [poststart]}}")
	}
	if len(hooks) > 0 {
		fmt.Fprintf(&out, "    lifecycle: {%s}\n", strings.Join(hooks, ", "))
	}
	return out.String()
}

// edit changes one thing of a manifest.
func edit(w *simtest.World, manifest string) string {
	swap := func(a, b string) string {
		return strings.NewReplacer(a, b, b, a).Replace(manifest)
	}
	switch w.Roll(4, "edit") {
	case 0:
		return swap("hostname: h0", "hostname: h1")
	case 1:
		return swap("image: app:1", "image: app:2")
	case 2:
		if head, _, two := strings.Cut(manifest, "  - name: b\n"); two {
			return head
		}
		return manifest + "  - name: b\n    image: app:1\n"
	}
	return swap("cpu: 100m", "cpu: 200m")
}
