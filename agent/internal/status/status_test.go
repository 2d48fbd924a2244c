package status

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podstead/agent/internal/observe"
	"podstead/agent/internal/plan"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func input(policy corev1.RestartPolicy, containers ...observe.Container) Input {
	always := corev1.ContainerRestartPolicyAlways
	in := Input{
		Pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns"},
			Spec: corev1.PodSpec{RestartPolicy: policy,
				InitContainers: []corev1.Container{{Name: "i"}, {Name: "s", RestartPolicy: &always}},
				Containers:     []corev1.Container{{Name: "a", Image: "img"}}},
		},
		Seen:    observe.Pod{Sandboxes: []observe.Sandbox{{ID: "s1", Ready: true, IPs: []string{"10.0.0.2"}}}, Containers: containers},
		Probes:  map[string]plan.Probe{},
		Runtime: "fake", HostIPs: []string{"1.2.3.4"}, StartTime: now, Now: now,
	}
	for _, c := range containers {
		if c.State == observe.Running {
			in.Probes[c.ID] = plan.Probe{Started: true, Ready: true}
		}
	}
	return in
}

func run(name string) observe.Container {
	return observe.Container{ID: name + "1", Name: name, State: observe.Running, Started: now}
}

func end(name string, code int32) observe.Container {
	return observe.Container{ID: name + "1", Name: name, State: observe.Exited, ExitCode: code, Finished: now}
}

// short describes a status in a line: phase, the containers i, s, a, and the
// conditions that are true.
func short(s corev1.PodStatus) string {
	out := []string{string(s.Phase)}
	for _, cs := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
		text := cs.Name + ":"
		switch {
		case cs.State.Waiting != nil:
			text += cs.State.Waiting.Reason
		case cs.State.Running != nil:
			text += "running"
		case cs.State.Terminated != nil:
			text += fmt.Sprintf("%s(%d)", cs.State.Terminated.Reason, cs.State.Terminated.ExitCode)
		}
		if last := cs.LastTerminationState.Terminated; last != nil {
			text += fmt.Sprintf("<%d", last.ExitCode)
		}
		if cs.Ready {
			text += "+"
		}
		out = append(out, text)
	}
	var yes []string
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue && c.Type != corev1.PodScheduled {
			yes = append(yes, strings.TrimPrefix(string(c.Type), "Pod"))
		}
	}
	return strings.Join(out, " ") + " [" + strings.Join(yes, " ") + "]"
}

func TestMake(t *testing.T) {
	always, never := corev1.RestartPolicyAlways, corev1.RestartPolicyNever
	change := func(in Input, f func(*Input)) Input { f(&in); return in }
	over := func(in Input) Input { in.Over = true; return in }
	for _, c := range []struct {
		what string
		in   Input
		want string
	}{
		{"nothing yet", change(input(always), func(i *Input) { i.Seen.Sandboxes = nil }),
			"Pending i:PodInitializing s:PodInitializing a:PodInitializing []"},
		{"init runs", input(always, run("i")),
			"Pending i:running s:PodInitializing a:PodInitializing [ReadyToStartContainers]"},
		{"init done", input(always, end("i", 0)),
			"Pending i:Completed(0)+ s:PodInitializing a:PodInitializing [ReadyToStartContainers]"},
		{"init failed, Never", over(input(never, end("i", 2))),
			"Failed i:Error(2) s:PodInitializing a:PodInitializing [ReadyToStartContainers]"},
		{"sidecar up", input(always, end("i", 0), run("s")),
			"Pending i:Completed(0)+ s:running+ a:PodInitializing [ReadyToStartContainers Initialized]"},
		{"all up", input(always, end("i", 0), run("s"), run("a")),
			"Running i:Completed(0)+ s:running+ a:running+ [ReadyToStartContainers Initialized Ready ContainersReady]"},
		{"probe not passed", change(input(always, end("i", 0), run("s"), run("a")), func(i *Input) { i.Probes["a1"] = plan.Probe{Started: true} }),
			"Running i:Completed(0)+ s:running+ a:running [ReadyToStartContainers Initialized]"},
		{"image cannot be pulled", change(input(always, end("i", 0), run("s")), func(i *Input) {
			i.Waits = map[string]plan.Wait{"a": {Reason: "ImagePullBackOff"}}
		}), "Pending i:Completed(0)+ s:running+ a:ImagePullBackOff [ReadyToStartContainers Initialized]"},
		{"a failure shows while the next try runs", change(input(always, end("i", 0), run("s")), func(i *Input) {
			i.Failures = map[string]plan.Failure{"a": {Reason: "CreateContainerError"}}
		}), "Pending i:Completed(0)+ s:running+ a:CreateContainerError [ReadyToStartContainers Initialized]"},
		{"crash loop", change(input(always, end("i", 0), run("s"), end("a", 7)), func(i *Input) {
			i.Waits = map[string]plan.Wait{"a": {Reason: "CrashLoopBackOff"}}
		}), "Running i:Completed(0)+ s:running+ a:CrashLoopBackOff<7 [ReadyToStartContainers Initialized]"},
		{"being restarted", input(always, end("i", 0), run("s"), end("a", 7)),
			"Running i:Completed(0)+ s:running+ a:Error(7) [ReadyToStartContainers Initialized]"},
		{"restarted", input(always, end("i", 0), run("s"), observe.Container{ID: "a2", Name: "a", Restarts: 1, State: observe.Running}, end("a", 7)),
			"Running i:Completed(0)+ s:running+ a:running<7+ [ReadyToStartContainers Initialized Ready ContainersReady]"},
		{"to be restarted by its own policy", change(input(never, end("i", 0), end("s", 0), end("a", 1)), func(i *Input) {
			own := corev1.ContainerRestartPolicyOnFailure
			i.Pod.Spec.Containers[0].RestartPolicy = &own
		}), "Running i:Completed(0)+ s:Completed(0) a:Error(1) [ReadyToStartContainers]"},
		{"succeeded", over(input(never, end("i", 0), end("s", 0), end("a", 0))),
			"Succeeded i:Completed(0)+ s:Completed(0) a:Completed(0) [ReadyToStartContainers Initialized]"},
		{"failed", over(input(never, end("i", 0), end("s", 0), end("a", 1))),
			"Failed i:Completed(0)+ s:Completed(0) a:Error(1) [ReadyToStartContainers]"},
		{"lost", over(input(never, end("i", 0), end("s", 0), observe.Container{ID: "a1", Name: "a", State: observe.Unknown})),
			"Failed i:Completed(0)+ s:Completed(0) a:ContainerStatusUnknown(137) [ReadyToStartContainers]"},
		{"failed, about to be replaced", input(never, end("i", 0), end("s", 0), end("a", 1)),
			"Running i:Completed(0)+ s:Completed(0) a:Error(1) [ReadyToStartContainers]"},
		{"finished, a sidecar ends", over(input(never, end("i", 0), run("s"), end("a", 0))),
			"Running i:Completed(0)+ s:running+ a:Completed(0) [ReadyToStartContainers Initialized]"},
		{"deadline, not ended", change(input(always, end("i", 0), run("s"), end("a", 143)), func(i *Input) { i.Failed = &Failed{Reason: "DeadlineExceeded"} }),
			"Running i:Completed(0)+ s:running+ a:Error(143) [ReadyToStartContainers Initialized]"},
		{"deadline", change(over(input(always, end("i", 0), end("s", 0), end("a", 143))), func(i *Input) { i.Failed = &Failed{Reason: "DeadlineExceeded"} }),
			"Failed i:Completed(0)+ s:Completed(0) a:Error(143) [ReadyToStartContainers]"},
	} {
		got := short(Make(c.in))
		if got != c.want {
			t.Errorf("%s:\n\t%s, want\n\t%s", c.what, got, c.want)
		}
	}
}

func TestConditionsSayWhyAndSinceWhen(t *testing.T) {
	in := input(corev1.RestartPolicyAlways, end("i", 0), run("s"), run("a"))
	in.Probes["a1"] = plan.Probe{}
	first := Make(in)
	in.Prev, in.Now = &first, now.Add(time.Minute)
	in.Probes["a1"] = plan.Probe{Started: true, Ready: true}
	second := Make(in)
	for i, c := range second.Conditions {
		changed := c.Status != first.Conditions[i].Status
		if moved := !c.LastTransitionTime.Equal(&first.Conditions[i].LastTransitionTime); moved != changed {
			t.Errorf("%s changed %t, its time %t", c.Type, changed, moved)
		}
	}
	for _, c := range first.Conditions {
		if c.Type == corev1.ContainersReady && (c.Reason != "ContainersNotReady" || c.Message != "containers with unready status: [a]") {
			t.Errorf("%+v", c)
		}
	}
	if first.PodIP != "10.0.0.2" || first.HostIP != "1.2.3.4" || first.ContainerStatuses[0].ContainerID != "fake://a1" {
		t.Errorf("%s %s %s", first.PodIP, first.HostIP, first.ContainerStatuses[0].ContainerID)
	}
}

// TestVolumeMounts tells of a container's mounts what its definition does not.
func TestVolumeMounts(t *testing.T) {
	c := run("a")
	c.Mounts = []observe.Mount{{Path: "/img", Image: "sha256:1"}, {Path: "/deep", Recursive: true}}
	in := input(corev1.RestartPolicyAlways, c)
	in.Pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "x"}}}, {Name: "d"}}
	in.Pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/img"}, {Name: "d", MountPath: "/deep/", ReadOnly: true},
		{Name: "d", MountPath: "flat", ReadOnly: true}, {Name: "d", MountPath: "/w"}}
	in.Devices = map[string][]corev1.ResourceStatus{"a": {{Name: "example.com/gpu"}}}
	s := Make(in).ContainerStatuses[0]
	on, off := corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyDisabled
	want := []corev1.VolumeMountStatus{
		{Name: "v", MountPath: "/img", VolumeStatus: &corev1.VolumeStatus{Image: &corev1.ImageVolumeStatus{ImageRef: "sha256:1"}}},
		{Name: "d", MountPath: "/deep/", ReadOnly: true, RecursiveReadOnly: &on},
		{Name: "d", MountPath: "flat", ReadOnly: true, RecursiveReadOnly: &off},
		{Name: "d", MountPath: "/w"},
	}
	if !reflect.DeepEqual(s.VolumeMounts, want) {
		t.Errorf("%+v", s.VolumeMounts)
	}
	if len(s.AllocatedResourcesStatus) != 1 {
		t.Errorf("devices: %+v", s.AllocatedResourcesStatus)
	}
}

// TestMessagesShareTheirRoom: what containers said at their ends is 12 KiB together.
func TestMessagesShareTheirRoom(t *testing.T) {
	long := end("a", 1)
	long.Message = strings.Repeat("ä", 2<<10)
	in := input(corev1.RestartPolicyNever, end("i", 0), long)
	in.Over = true
	if got := Make(in).ContainerStatuses[0].State.Terminated.Message; got != long.Message {
		t.Errorf("of three containers one says %d bytes", len(got))
	}
	for i := range 4 {
		in.Pod.Spec.Containers = append(in.Pod.Spec.Containers, corev1.Container{Name: fmt.Sprint("more", i)})
	}
	if got := Make(in).ContainerStatuses[0].State.Terminated.Message; len(got) > maxMessages/7 || len(got) < maxMessages/7-1 || strings.Trim(got, "ä") != "" {
		t.Errorf("of seven containers one says %d bytes, %q", len(got), got[max(0, len(got)-3):])
	}
}
