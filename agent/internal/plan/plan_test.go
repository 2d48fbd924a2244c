package plan

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// now is when every case of the table is decided.
var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func always() *corev1.ContainerRestartPolicy {
	p := corev1.ContainerRestartPolicyAlways
	return &p
}

// web is a pod of containers a and b; more changes it.
func web(more ...func(*corev1.Pod)) *corev1.Pod {
	grace := int64(30)
	p := &corev1.Pod{Spec: corev1.PodSpec{
		RestartPolicy:                 corev1.RestartPolicyAlways,
		TerminationGracePeriodSeconds: &grace,
		Containers:                    []corev1.Container{{Name: "a"}, {Name: "b"}},
	}}
	p.Name, p.Namespace, p.UID = "web", "ns", "u"
	for _, f := range more {
		f(p)
	}
	return p
}

func policy(r corev1.RestartPolicy) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.RestartPolicy = r }
}

// rule gives container a a rule, and the policy Never.
func rule(operator string, code int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		own := corev1.ContainerRestartPolicyNever
		p.Spec.Containers[0].RestartPolicy = &own
		p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{
			Action: corev1.ContainerRestartRuleActionRestart,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{
				Operator: corev1.ContainerRestartRuleOnExitCodesOperator(operator), Values: []int32{code},
			},
		}}
	}
}

// hooked gives container a a postStart hook.
func hooked(p *corev1.Pod) {
	p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{}}
}

// inits adds init containers; "s!" is a sidecar.
func inits(names ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, n := range names {
			c := corev1.Container{Name: strings.TrimSuffix(n, "!")}
			if strings.HasSuffix(n, "!") {
				c.RestartPolicy = always()
			}
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		}
	}
}

// in makes an input with a ready sandbox and these containers in it.
func in(pod *corev1.Pod, containers ...observe.Container) Input {
	i := Input{
		Pod: pod, Prepared: true, StartTime: now.Add(-time.Hour),
		Hashes:   Hashes{Sandbox: "h", Containers: map[string]string{}},
		Probes:   map[string]Probe{},
		Failures: map[string]Failure{}, Busy: map[string]Busy{},
		Seen: observe.Pod{Sandboxes: []observe.Sandbox{{ID: "s1", Ready: true, Hash: "h", Created: now.Add(-time.Hour)}}},
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			i.Hashes.Containers[c.Name] = "h"
		}
	}
	for _, c := range containers {
		i.Seen.Containers = append(i.Seen.Containers, c)
		if c.State == observe.Running {
			i.Probes[c.ID] = Probe{Started: true, Ready: true}
		}
	}
	i.Seen.Sort()
	return i
}

func runs(name string) observe.Container {
	return observe.Container{ID: name + "1", Name: name, SandboxID: "s1", State: observe.Running, Hash: "h", Created: now.Add(-time.Minute), Started: now.Add(-time.Minute)}
}

func died(name string, code int32, ago time.Duration) observe.Container {
	return observe.Container{ID: name + "1", Name: name, SandboxID: "s1", State: observe.Exited, ExitCode: code, Hash: "h",
		Created: now.Add(-ago - time.Second), Started: now.Add(-ago - time.Second), Finished: now.Add(-ago)}
}

// with changes an instance.
func with(c observe.Container, f func(*observe.Container)) observe.Container {
	f(&c)
	return c
}

// change changes an input.
func change(i Input, f func(*Input)) Input {
	f(&i)
	return i
}

func text(p Plan) string {
	var out []string
	for _, s := range p.Steps {
		out = append(out, s.String())
	}
	for name, w := range p.Waits {
		out = append(out, name+" waits: "+w.Reason)
	}
	if p.Finished {
		out = append(out, "finished")
	}
	if p.DeadlineExceeded {
		out = append(out, "deadline")
	}
	if p.Gone {
		out = append(out, "gone")
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestNext(t *testing.T) {
	never, onFailure := policy(corev1.RestartPolicyNever), policy(corev1.RestartPolicyOnFailure)
	for _, c := range []struct {
		what string
		in   Input
		want string
	}{
		// The way up.
		{"a new pod", change(in(web()), func(i *Input) { i.Prepared, i.Seen.Sandboxes = false, nil }), "prepare"},
		{"a new pod that is held", change(in(web()), func(i *Input) {
			i.Prepared, i.Seen.Sandboxes, i.Hold = false, nil, &Wait{Reason: "NodePressure"}
		}), " waits: NodePressure"},
		{"a pod that runs is not held", change(in(web(), runs("a")), func(i *Input) { i.Hold = &Wait{Reason: "NodePressure"} }), "start b"},
		{"a dead instance while the disk is full", change(in(web(), runs("b"), with(runs("a"), func(c *observe.Container) { c.ID, c.Restarts = "a2", 1 }),
			died("a", 1, time.Minute)), func(i *Input) { i.Tight = true }), "remove container a a1"},
		{"being prepared", change(in(web()), func(i *Input) {
			i.Prepared, i.Seen.Sandboxes = false, nil
			i.Busy[""] = Busy{Kind: Prepare}
		}), ""},
		{"preparation failed", change(in(web()), func(i *Input) {
			i.Prepared, i.Seen.Sandboxes = false, nil
			i.Failures[""] = Failure{Reason: "FailedMount", Until: now.Add(time.Second)}
		}), " waits: FailedMount"},
		{"prepared", change(in(web()), func(i *Input) { i.Seen.Sandboxes = nil }), "create sandbox"},
		{"sandbox ready", in(web()), "start a, start b"},
		{"one starting", change(in(web()), func(i *Input) { i.Busy["a"] = Busy{Kind: Start} }), "start b"},
		{"one failed to start", change(in(web()), func(i *Input) {
			i.Failures["a"] = Failure{Reason: "ErrImagePull", Until: now.Add(time.Second)}
		}), "a waits: ErrImagePull, start b"},
		{"its wait is over", change(in(web(), runs("b")), func(i *Input) {
			i.Failures["a"] = Failure{Reason: "ErrImagePull", Until: now}
		}), "start a"},
		{"all up", in(web(), runs("a"), runs("b")), ""},
		{"created and never started", in(web(), with(runs("a"), func(c *observe.Container) { c.State = observe.Created }), runs("b")), "remove container a a1"},
		// A postStart hook.
		{"one with a hook first", in(web(hooked)), "b waits: ContainerCreating, start a"},
		{"its hook runs", change(in(web(hooked), runs("a")), func(i *Input) { i.Busy["a"] = Busy{Kind: Start} }), "b waits: ContainerCreating"},
		{"its hook has ended", in(web(hooked), runs("a")), "start b"},
		{"its image cannot be had", change(in(web(hooked)), func(i *Input) {
			i.Failures["a"] = Failure{Reason: "ErrImagePull", Until: now.Add(time.Second)}
		}), "a waits: ErrImagePull, start b"},
		{"its hook runs again, the other one is sick", change(in(web(hooked), runs("b")), func(i *Input) {
			i.Busy["a"] = Busy{Kind: Start}
			i.Probes["b1"] = Probe{Failed: "bad"}
		}), "kill b b1"},
		// Deaths.
		{"first death", in(web(), died("a", 1, 0), runs("b")), "start a"},
		{"death in back-off", in(web(), with(died("a", 1, time.Second), func(c *observe.Container) { c.Backoff = 10 * time.Second }), runs("b")), "a waits: CrashLoopBackOff"},
		{"back-off over", in(web(), with(died("a", 1, 10*time.Second), func(c *observe.Container) { c.Backoff = 10 * time.Second }), runs("b")), "start a"},
		{"lived long enough to be forgiven", in(web(), with(died("a", 1, 0), func(c *observe.Container) {
			c.Backoff, c.Created = 5*time.Minute, now.Add(-11*time.Minute)
		}), runs("b")), "start a"},
		{"ended well, Always", in(web(), died("a", 0, 0), runs("b")), "start a"},
		{"ended well, OnFailure", in(web(onFailure), died("a", 0, 0), runs("b")), ""},
		{"failed, OnFailure", in(web(onFailure), died("a", 1, 0), runs("b")), "start a"},
		{"failed, Never", in(web(never), died("a", 1, 0), runs("b")), ""},
		{"unknown end, OnFailure", in(web(onFailure), with(died("a", 0, 0), func(c *observe.Container) { c.State = observe.Unknown }), runs("b")), "start a"},
		{"all ended, Never", in(web(never), died("a", 0, 0), died("b", 1, 0)), "finished, stop sandbox s1"},
		{"all ended, sandbox stopped", change(in(web(never), died("a", 0, 0), died("b", 1, 0)), func(i *Input) { i.Seen.Sandboxes[0].Ready = false }), "finished"},
		{"a rule over the policy", in(web(rule("In", 42), never), died("a", 42, 0), runs("b")), "start a"},
		{"a rule for other codes", in(web(rule("In", 42), never), died("a", 1, 0), runs("b")), ""},
		{"a rule for all but some", in(web(rule("NotIn", 42), never), died("a", 1, 0), runs("b")), "start a"},
		{"own policy over the pod's", in(web(func(p *corev1.Pod) { p.Spec.Containers[0].RestartPolicy = always() }, never), died("a", 0, 0), died("b", 0, 0)), "start a"},
		// Probes.
		{"unhealthy", change(in(web(), runs("a"), runs("b")), func(i *Input) { i.Probes["a1"] = Probe{Failed: "bad"} }), "kill a a1"},
		{"unhealthy and being killed", change(in(web(), runs("a"), runs("b")), func(i *Input) {
			i.Probes["a1"] = Probe{Failed: "bad"}
			i.Busy["a"] = Busy{Kind: Kill}
		}), ""},
		// Edits.
		{"definition changed", change(in(web(), runs("a"), runs("b")), func(i *Input) { i.Hashes.Containers["a"] = "new" }), "kill a a1"},
		{"changed while in back-off", change(in(web(), with(died("a", 1, 0), func(c *observe.Container) { c.Backoff = time.Minute }), runs("b")),
			func(i *Input) { i.Hashes.Containers["a"] = "new" }), "start a"},
		{"changed after its end, Never", change(in(web(never), died("a", 0, 0), died("b", 0, 0)), func(i *Input) { i.Hashes.Containers["a"] = "new" }), "start a"},
		{"container removed from the pod", in(web(), runs("a"), runs("b"), runs("c")), "kill c c1"},
		// The sandbox.
		{"sandbox to change, containers run", change(in(web(), runs("a"), died("b", 1, 0)), func(i *Input) { i.Hashes.Sandbox = "new" }), "kill a a1"},
		{"sandbox to change, a start under way", change(in(web(), died("b", 1, 0)), func(i *Input) {
			i.Hashes.Sandbox = "new"
			i.Busy["a"] = Busy{Kind: Start}
		}), "cancel a"},
		{"sandbox to change, quiet", change(in(web(), died("a", 1, 0), died("b", 1, 0)), func(i *Input) { i.Hashes.Sandbox = "new" }), "stop sandbox s1"},
		{"sandbox died", change(in(web(), died("a", 137, 0), died("b", 137, 0)), func(i *Input) { i.Seen.Sandboxes[0].Ready = false }), "create sandbox"},
		{"sandbox died, Never", change(in(web(never), died("a", 137, 0), died("b", 137, 0)), func(i *Input) { i.Seen.Sandboxes[0].Ready = false }), "finished"},
		{"sandbox under its end and wanted again", change(in(web()), func(i *Input) { i.Busy[""] = Busy{Kind: StopSandbox} }), ""},
		{"running in an old sandbox", in(web(), with(runs("a"), func(c *observe.Container) { c.SandboxID = "s0" }), runs("b")), "kill a a1"},
		// Init containers and sidecars.
		{"first init", in(web(inits("i", "j"))), "start i"},
		{"init runs", in(web(inits("i", "j")), runs("i")), ""},
		{"init done", in(web(inits("i", "j")), died("i", 0, 0)), "start j"},
		{"inits done", in(web(inits("i", "j")), died("i", 0, 0), died("j", 0, 0)), "start a, start b"},
		{"init failed", in(web(inits("i")), died("i", 1, 0)), "start i"},
		{"init failed, in back-off", in(web(inits("i")), with(died("i", 1, 0), func(c *observe.Container) { c.Backoff = time.Minute })), "i waits: CrashLoopBackOff"},
		{"init failed, Never", in(web(inits("i"), never), died("i", 1, 0)), "finished, stop sandbox s1"},
		{"init of an old sandbox does not count", in(web(inits("i")), with(died("i", 0, 0), func(c *observe.Container) { c.SandboxID = "s0" })), "start i"},
		{"behind initialization inits do not matter", in(web(inits("i")), runs("a"), runs("b")), ""},
		{"sidecar not up", change(in(web(inits("s!", "i")), runs("s")), func(i *Input) { i.Probes["s1"] = Probe{} }), ""},
		{"sidecar up", in(web(inits("s!", "i")), runs("s")), "start i"},
		{"sidecar died while init runs", in(web(inits("s!", "i")), died("s", 1, 0), runs("i")), "start s"},
		{"sidecar died beside the pod", in(web(inits("s!")), died("s", 0, 0), runs("a"), runs("b")), "start s"},
		{"sidecar outlives the pod", in(web(inits("s!", "t!"), never), runs("s"), runs("t"), died("a", 0, 0), died("b", 0, 0)), "finished, kill t t1"},
		// Deadline.
		{"deadline not reached", change(in(web(func(p *corev1.Pod) { n := int64(3601); p.Spec.ActiveDeadlineSeconds = &n }), runs("a"), runs("b")), func(*Input) {}), ""},
		{"deadline", change(in(web(func(p *corev1.Pod) { n := int64(3600); p.Spec.ActiveDeadlineSeconds = &n }), runs("a"), runs("b")), func(*Input) {}), "deadline"},
		// Old instances.
		{"the last death is kept, older ones are not", in(web(), with(runs("a"), func(c *observe.Container) { c.ID, c.Restarts = "a3", 2 }),
			with(died("a", 1, time.Minute), func(c *observe.Container) { c.ID, c.Restarts = "a2", 1 }), died("a", 1, time.Hour), runs("b")), "remove container a a1"},
		{"old sandbox", change(in(web(), runs("a"), runs("b")), func(i *Input) {
			i.Seen.Sandboxes = append(i.Seen.Sandboxes, observe.Sandbox{ID: "s0"})
		}), "remove sandbox s0"},
	} {
		if got := text(Next(c.in, now)); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestNextOfAnEndingPod(t *testing.T) {
	end := func(i Input, more ...func(*Input)) Input {
		i.End = &End{At: now, Grace: 30 * time.Second}
		for _, f := range more {
			f(&i)
		}
		return i
	}
	stopped := func(i *Input) { i.Seen.Sandboxes[0].Ready = false }
	for _, c := range []struct {
		what string
		in   Input
		want string
	}{
		{"containers run", end(in(web(), runs("a"), runs("b"))), "kill a a1, kill b b1"},
		{"one left", end(in(web(), runs("a"), died("b", 0, 0)), func(i *Input) { i.Busy["a"] = Busy{Kind: Kill, Deadline: now.Add(30 * time.Second)} }), ""},
		{"a start under way", end(in(web(), runs("a")), func(i *Input) { i.Busy["b"] = Busy{Kind: Start} }), "cancel b, kill a a1"},
		{"being prepared", end(in(web()), func(i *Input) { i.Busy[""] = Busy{Kind: Prepare} }), "cancel"},
		{"sidecars wait", end(in(web(inits("s!", "t!")), runs("s"), runs("t"), runs("a"), died("b", 0, 0))), "kill a a1"},
		{"last sidecar first", end(in(web(inits("s!", "t!")), runs("s"), runs("t"), died("a", 0, 0))), "kill t t1"},
		{"first sidecar last", end(in(web(inits("s!", "t!")), runs("s"), died("t", 0, 0))), "kill s s1"},
		{"running init", end(in(web(inits("i")), runs("i"))), "kill i i1"},
		{"quiet", end(in(web(), died("a", 0, 0), died("b", 0, 0))), "stop sandbox s1"},
		{"sandbox stopped", end(in(web(), died("a", 0, 0)), stopped), "remove container a a1"},
		{"containers removed", end(in(web()), stopped), "remove sandbox s1"},
		{"only remembered", end(in(web(), with(died("a", 0, 0), func(c *observe.Container) { c.Remembered = true })), stopped), "remove sandbox s1"},
		{"sandbox removed", end(in(web()), func(i *Input) { i.Seen.Sandboxes = nil }), "tear down"},
		{"torn down", end(in(web()), func(i *Input) { i.Seen.Sandboxes, i.Prepared = nil, false }), "gone"},
		{"kept after its deadline", end(in(web(), died("a", 0, 0)), stopped, func(i *Input) { i.End.Keep = true }), "finished"},
		{"evicted", end(in(web(), died("a", 0, 0)), stopped, func(i *Input) { i.End.Keep, i.End.Free = true, true }), "free"},
		{"evicted and freed", end(in(web(), died("a", 0, 0)), stopped, func(i *Input) {
			i.End.Keep, i.End.Free, i.Prepared = true, true, false
		}), "finished"},
		{"removal failed", end(in(web(), died("a", 0, 0)), stopped, func(i *Input) {
			i.Failures["remove"] = Failure{Reason: "x", Until: now.Add(time.Second)}
		}), "remove waits: x"},
	} {
		if got := strings.TrimSpace(text(Next(c.in, now))); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestBackoffGrows(t *testing.T) {
	c := died("a", 1, time.Hour)
	var got []string
	for range 8 {
		c.Created, c.Started, c.Finished = now.Add(-time.Hour), now.Add(-time.Hour), now.Add(-time.Hour)
		s := Next(in(web(), c, runs("b")), now).Steps[0]
		got = append(got, s.Backoff.String())
		c.Backoff, c.Restarts = s.Backoff, s.Restarts
	}
	if want := []string{"10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s", "5m0s"}; !slices.Equal(got, want) {
		t.Errorf("delays %v, want %v", got, want)
	}
	if c.Restarts != 8 {
		t.Errorf("restarts %d", c.Restarts)
	}
	got, c.Backoff = nil, 0
	for range 8 {
		fast := change(in(web(), c, runs("b")), func(i *Input) { i.MinBackoff, i.MaxBackoff = time.Second, time.Minute })
		s := Next(fast, now).Steps[0]
		got = append(got, s.Backoff.String())
		c.Backoff, c.Restarts = s.Backoff, s.Restarts
	}
	if want := []string{"1s", "2s", "4s", "8s", "16s", "32s", "1m0s", "1m0s"}; !slices.Equal(got, want) {
		t.Errorf("faster delays %v, want %v", got, want)
	}
}

func TestGrace(t *testing.T) {
	probe := int64(3)
	for _, c := range []struct {
		what string
		in   Input
		now  time.Time
		want time.Duration
	}{
		{"all of it", change(in(web(), runs("a")), func(i *Input) { i.End = &End{At: now, Grace: 30 * time.Second} }), now, 30 * time.Second},
		{"what is left of it", change(in(web(inits("s!")), runs("s")), func(i *Input) { i.End = &End{At: now, Grace: 30 * time.Second} }), now.Add(20 * time.Second), 10 * time.Second},
		{"never less than the minimum", change(in(web(inits("s!")), runs("s")), func(i *Input) { i.End = &End{At: now, Grace: 30 * time.Second} }), now.Add(time.Hour), MinGrace},
		{"none", change(in(web(), runs("a")), func(i *Input) { i.End = &End{At: now} }), now, 0},
		{"the probe's own", change(in(web(), runs("a"), runs("b")), func(i *Input) { i.Probes["a1"] = Probe{Failed: "x", Grace: &probe} }), now, 3 * time.Second},
	} {
		steps := Next(c.in, c.now).Steps
		if len(steps) != 1 || steps[0].Kind != Kill || steps[0].Grace != c.want {
			t.Errorf("%s: %+v, want %v", c.what, steps, c.want)
		}
	}
}
