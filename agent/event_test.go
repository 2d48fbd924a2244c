package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/observe"
)

// news are the events of a pod, with how often there was each.
func (b *bench) news(pod string) (list []string) {
	for _, e := range b.agent.node.events.Of("default", pod) {
		list = append(list, fmt.Sprintf("%s %s %d: %s", e.Type, e.Reason, e.Count, e.Message))
	}
	return list
}

func (b *bench) hasNews(pod string, want ...string) {
	b.Helper()
	got := b.news(pod)
	for _, w := range want {
		if !slices.Contains(got, w) {
			b.Errorf("no event %q; there are\n%s", w, strings.Join(got, "\n"))
		}
	}
}

func TestBackoffIsAnEvent(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(string, uint32) life { return life{runs: time.Second, exit: 3} }
		b.apply(web)
		b.after(45 * time.Second) // restarts at once, after 10 s and after 20 s; then 40 s
		uid := string(b.pod("web").UID)
		b.hasNews("web", "Warning BackOff 3: Back-off restarting failed container app in pod web_default("+uid+")",
			"Normal Created 4: Container created", "Normal Started 4: Container started")
	})
}

func TestPullsAreEvents(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.fail = func(verb, name string) error {
			if verb == "PullImage" {
				return errors.New("RegistryUnavailable: no route")
			}
			return nil
		}
		b.apply(strings.Replace(web, "app:1", "far:1", 1))
		w := b.container("web", 0).State.Waiting
		if w == nil || w.Reason != "RegistryUnavailable" || w.Message != "image pull failed for far:1 because the registry is unavailable: no route" {
			t.Errorf("at first it waits: %v", w)
		}
		b.after(5 * time.Second)
		if w = b.container("web", 0).State.Waiting; w == nil || w.Reason != "ImagePullBackOff" ||
			w.Message != `Back-off pulling image "far:1": RegistryUnavailable: image pull failed for far:1 because the registry is unavailable: no route` {
			t.Errorf("then it waits: %v", w)
		}
		b.hasNews("web", `Normal Pulling 1: Pulling image "far:1"`, `Warning Failed 1: Failed to pull image "far:1": RegistryUnavailable: no route`,
			"Warning Failed 1: Error: RegistryUnavailable", `Normal BackOff 1: Back-off pulling image "far:1"`, "Warning Failed 1: Error: ImagePullBackOff")
		b.rt.script(func() { b.rt.fail, b.rt.slow = nil, func(string, string) time.Duration { return time.Second } })
		b.after(time.Minute)
		b.hasNews("web", `Normal Pulled 1: Successfully pulled image "far:1" in 1s (1s including waiting). Image size: 1 bytes.`)
	})
}

// TestPostStartTakesItsTime: a hook that takes long is not ended, and one whose
// server answers with an error has succeeded, as with a kubelet.
func TestPostStartTakesItsTime(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.slow = func(verb, _ string) time.Duration {
			if verb == "ExecSync" {
				return time.Hour
			}
			return 0
		}
		b.apply(strings.Replace(web, `image: "app:1"`, `image: "app:1", livenessProbe: {exec: {command: [check]}, periodSeconds: 5}, lifecycle: {postStart: {exec: {command: [init]}}}`, 1))
		b.after(time.Minute)
		if c := b.container("web", 0); c.State.Waiting == nil || c.State.Waiting.Reason != "ContainerCreating" || c.Ready || b.pod("web").Status.Phase != corev1.PodPending {
			t.Errorf("at its hook: %s, %+v", b.pod("web").Status.Phase, c)
		}
		if got := b.rt.made("ExecSync", "app"); len(got) != 1 {
			t.Errorf("%d commands were run, the hook and probes", len(got))
		}
		b.after(60 * time.Minute)
		if c := b.container("web", 0); c.State.Running == nil || c.RestartCount != 0 || !b.ready("web") {
			t.Errorf("after a hook of an hour: %+v", c)
		}
	})
}

// TestPostStartFails: the container is killed, and restarted as after any other end.
func TestPostStartFails(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.exec = func(string, []string) (int32, error) { return 1, nil }
		b.apply(strings.Replace(web, `image: "app:1"`, `image: "app:1", lifecycle: {postStart: {exec: {command: [init]}}}`, 1))
		b.after(45 * time.Second)
		if got := gaps(b.rt.made("StartContainer", "app")); !slices.Equal(got, []int{0, 10, 20}) {
			t.Errorf("seconds between starts: %v", got)
		}
		if got := b.waiting("web", 0); got != "CrashLoopBackOff" || b.container("web", 0).RestartCount != 3 {
			t.Errorf("waits: %q, restarts: %d", got, b.container("web", 0).RestartCount)
		}
		b.hasNews("web", "Normal Killing 4: FailedPostStartHook")
		b.rt.script(func() { b.rt.exec = nil })
		b.after(time.Minute)
		if !b.ready("web") {
			t.Error("not ready after its hook succeeded")
		}
	})
}

// TestLeastGrace: whatever grace a pod or a probe gives, a container has two seconds
// between TERM and KILL, unless its pod is deleted at once.
func TestLeastGrace(t *testing.T) {
	for _, c := range []struct{ pod, probe string }{{"0", ""}, {"30", ", terminationGracePeriodSeconds: 1"}} {
		simulate(t, func(b *bench) {
			b.rt.exec = func(string, []string) (int32, error) { return 1, nil }
			b.apply(strings.NewReplacer("spec:", "spec:\n  terminationGracePeriodSeconds: "+c.pod,
				`image: "app:1"`, `image: "app:1", livenessProbe: {exec: {command: [check]}, periodSeconds: 1, failureThreshold: 1`+c.probe+`}`).Replace(web))
			b.after(1500 * time.Millisecond)
			if got := b.rt.timeouts("app"); !slices.Equal(got, []int64{2}) {
				b.Errorf("a pod with %s and a probe with %q: stopped with %v", c.pod, c.probe, got)
			}
			b.rt.script(func() { b.rt.calls = nil })
			now := time.Duration(0)
			b.delete("web", &now)
			if got := b.rt.timeouts("app"); !slices.Equal(got, []int64{0}) {
				b.Errorf("deleted at once: stopped with %v", got)
			}
		})
	}
}

func TestSandboxChangeIsAnEvent(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(web)
		b.after(time.Second)
		b.apply(strings.Replace(web, "spec:", "spec:\n  hostname: other", 1))
		b.after(time.Minute)
		b.hasNews("web", "Normal SandboxChanged 1: Pod sandbox changed, it will be killed and re-created.")
	})
}

// TestEndingPodsAreNotProbedForLife: nobody wants to know of a pod that is shutting
// down whether it lives.
func TestEndingPodsAreNotProbedForLife(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(string, uint32) life { return life{ignores: 25 * time.Second} }
		b.apply(strings.Replace(web, `image: "app:1"`, `image: "app:1", livenessProbe: {exec: {command: [check]}, periodSeconds: 5}`, 1))
		b.after(12 * time.Second)
		b.rt.script(func() {
			b.rt.exec = func(string, []string) (int32, error) { return 1, nil }
			b.rt.calls = nil
		})
		b.delete("web", nil)
		b.after(20 * time.Second)
		if got := b.rt.made("ExecSync", "app"); len(got) > 0 {
			t.Errorf("probed %d times while it ended", len(got))
		}
		if got := b.news("web"); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "Unhealthy") }) {
			t.Errorf("events: %q", got)
		}
	})
}

// TestTerminationMessages are the end of what was written, and of all containers
// together not more than the kubelet shows.
func TestTerminationMessages(t *testing.T) {
	dir := t.TempDir()
	pods := filepath.Join(dir, "pods", "u")
	if err := os.MkdirAll(pods, 0o755); err != nil {
		t.Fatal(err)
	}
	w := &worker{node: &node{podsDir: filepath.Join(dir, "pods")}, uid: "u"}
	said := func(text, log string) string {
		file := filepath.Join(w.node.podDir("u"), "message")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		logs := filepath.Join(dir, "log")
		for path, data := range map[string]string{file: text, logs: log} {
			if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return w.message(&observe.Container{State: observe.Exited, ExitCode: 1, LogPath: logs}, map[string]string{
			observe.AnnotationMessageFile: file, observe.AnnotationMessagePolicy: string(corev1.TerminationMessageFallbackToLogsOnError)})
	}
	if got := said("begin"+strings.Repeat("x", maxMessage)+"end", ""); len(got) != maxMessage || !strings.HasSuffix(got, "xend") {
		t.Errorf("%d bytes, which end with %q", len(got), got[len(got)-10:])
	}
	if got := said("", "t stdout F one\nt stdout P tw\nt stdout F o\n"); got != "one\ntwo\n" {
		t.Errorf("of the log: %q", got)
	}
}
