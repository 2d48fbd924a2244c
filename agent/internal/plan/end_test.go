package plan

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// A kill under way goes on undisturbed, however often the plan is asked, unless
// the pod is now to end sooner.
func TestKillUnderWayIsOvertakenByAShorterGraceOnly(t *testing.T) {
	at := time.Unix(1000, 0)
	pod := &corev1.Pod{}
	pod.Spec.Containers = []corev1.Container{{Name: "app"}}
	input := func(grace time.Duration, busyUntil time.Time) Input {
		in := Input{
			Pod: pod,
			Seen: observe.Pod{
				Sandboxes:  []observe.Sandbox{{ID: "s", Ready: true}},
				Containers: []observe.Container{{ID: "c", Name: "app", State: observe.Running, SandboxID: "s"}},
			},
			Busy: map[string]Busy{},
			End:  &End{At: at, Grace: grace},
		}
		if !busyUntil.IsZero() {
			in.Busy["app"] = Busy{Kind: Kill, Deadline: busyUntil}
		}
		return in
	}
	for _, c := range []struct {
		what      string
		grace     time.Duration
		busyUntil time.Time
		now       time.Time
		kills     bool
	}{
		{"first", 30 * time.Second, time.Time{}, at, true},
		{"same, told a moment later than planned", 30 * time.Second, at.Add(30*time.Second + time.Millisecond), at.Add(time.Millisecond), false},
		{"same, long after", 30 * time.Second, at.Add(30 * time.Second), at.Add(20 * time.Second), false},
		{"same, past its end with the least grace", time.Second, at.Add(2 * time.Second), at.Add(1500 * time.Millisecond), false},
		{"shorter now", 5 * time.Second, at.Add(30 * time.Second), at.Add(time.Second), true},
		{"at once now", 0, at.Add(30 * time.Second), at.Add(time.Second), true},
	} {
		plan := Next(input(c.grace, c.busyUntil), c.now)
		kills := len(plan.Steps) == 1 && plan.Steps[0].Kind == Kill
		if kills != c.kills || !c.kills && len(plan.Steps) > 0 {
			t.Errorf("%s: steps %v, want a kill: %t", c.what, plan.Steps, c.kills)
		}
	}
}

// A sandbox that is being made when the pod is to end appears later, even if its
// caller has left: the pod is not gone before.
func TestEndWaitsForTheSandboxThatIsBeingMade(t *testing.T) {
	at := time.Unix(1000, 0)
	in := Input{Pod: &corev1.Pod{}, Busy: map[string]Busy{"": {Kind: CreateSandbox}}, End: &End{At: at}}
	if p := Next(in, at); len(p.Steps) > 0 || p.Gone {
		t.Errorf("steps %v, gone %t while it is being made", p.Steps, p.Gone)
	}
	in.Busy, in.Seen.Sandboxes = nil, []observe.Sandbox{{ID: "s", Ready: true}}
	if p := Next(in, at); len(p.Steps) != 1 || p.Steps[0].Kind != StopSandbox {
		t.Errorf("steps %v once it is there, want to stop it", p.Steps)
	}
}

// What a runtime went on making for somebody who had left is stopped, and nobody
// else is disturbed.
func TestStraySandboxIsStopped(t *testing.T) {
	pod := &corev1.Pod{}
	pod.Spec.Containers = []corev1.Container{{Name: "app"}}
	in := Input{
		Pod: pod, Prepared: true,
		Seen: observe.Pod{
			Sandboxes:  []observe.Sandbox{{ID: "late", Ready: true, Attempt: 1}, {ID: "s", Ready: true}},
			Containers: []observe.Container{{ID: "c", Name: "app", State: observe.Running, SandboxID: "s"}},
		},
		Probes: map[string]Probe{"c": {Started: true, Ready: true}},
	}
	in.Seen.Sort()
	p := Next(in, time.Unix(1000, 0))
	if len(p.Steps) != 1 || p.Steps[0].Kind != StopSandbox || p.Steps[0].ID != "late" {
		t.Errorf("steps %v", p.Steps)
	}
}

// A pod that begins anew in another sandbox ends in order: its sidecars last, and
// not while another container may just be starting.
func TestSandboxChangeEndsSidecarsLast(t *testing.T) {
	always, grace := corev1.ContainerRestartPolicyAlways, int64(30)
	pod := &corev1.Pod{}
	pod.Spec.TerminationGracePeriodSeconds = &grace
	pod.Spec.InitContainers = []corev1.Container{{Name: "side", RestartPolicy: &always}}
	pod.Spec.Containers = []corev1.Container{{Name: "app"}}
	running := func(name string) observe.Container {
		return observe.Container{ID: name, Name: name, State: observe.Running, SandboxID: "s"}
	}
	for _, c := range []struct {
		what string
		seen []observe.Container
		busy map[string]Busy
		want string
	}{
		{"both run", []observe.Container{running("app"), running("side")}, nil, "[kill app app]"},
		{"the other starts", []observe.Container{running("side")}, map[string]Busy{"app": {Kind: Start}}, "[cancel app]"},
		{"the sidecar is left", []observe.Container{running("side")}, nil, "[kill side side]"},
	} {
		in := Input{Pod: pod, Prepared: true, Hashes: Hashes{Sandbox: "new"}, Busy: c.busy,
			Seen: observe.Pod{Sandboxes: []observe.Sandbox{{ID: "s", Ready: true, Hash: "old"}}, Containers: c.seen}}
		if got := fmt.Sprint(Next(in, time.Unix(1000, 0)).Steps); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

// An init container that was made and never started is removed before another is
// made: it might be started yet.
func TestInitContainerThatNeverStartedIsRemoved(t *testing.T) {
	pod := &corev1.Pod{}
	pod.Spec.InitContainers = []corev1.Container{{Name: "init"}}
	pod.Spec.Containers = []corev1.Container{{Name: "app"}}
	p := Next(Input{Pod: pod, Prepared: true, Seen: observe.Pod{
		Sandboxes:  []observe.Sandbox{{ID: "s", Ready: true}},
		Containers: []observe.Container{{ID: "i", Name: "init", State: observe.Created, SandboxID: "s"}},
	}}, time.Unix(1000, 0))
	if got := fmt.Sprint(p.Steps); got != "[remove container init i]" {
		t.Error(got)
	}
}
