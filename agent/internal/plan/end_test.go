package plan

import (
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
