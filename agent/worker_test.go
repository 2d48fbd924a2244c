package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
	"podstead/agent/internal/numa"
	"podstead/agent/internal/source"
)

// bench runs an agent over a fake runtime in a bubble of virtual time.
type bench struct {
	*testing.T
	rt    *fakeRuntime
	dir   string
	agent *Agent
	host  fakeHost
	// allocatable, if there is any, is what pods may have.
	allocatable corev1.ResourceList
	policy      *Policy
	machine     *numa.Machine
	stop        func()
}

// simulate runs f with an agent, and ends the agent afterwards.
func simulate(t *testing.T, f func(b *bench)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, rt: newFake(t), dir: dir}
		b.boot()
		f(b)
		b.stop()
	})
}

// boot starts an agent on the state that is there.
func (b *bench) boot() {
	b.Helper()
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	a, err := New(Config{Runtime: b.rt, StateDir: filepath.Join(b.dir, "state"), RunDir: filepath.Join(b.dir, "run"), PodLogsDir: filepath.Join(b.dir, "logs"),
		NodeName: "n1", Policy: b.policy, machine: b.machine, Log: slog.New(slog.NewTextHandler(b.Output(), &slog.HandlerOptions{Level: level}))})
	if err != nil {
		b.Fatal(err)
	}
	if b.allocatable != nil {
		a.node.ledger.Allocatable = b.allocatable
	}
	a.evictor.read, a.evictor.stalls = b.host.read, b.host.wait
	a.images.Disk = b.host.disk
	a.kernelLog = ""
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	b.agent = a
	b.stop = func() {
		b.Helper()
		cancel()
		if err := <-done; err != nil {
			b.Errorf("agent: %v", err)
		}
	}
	synctest.Wait()
}

// reboot takes what the runtime has, and the run directory. No agent may run.
func (b *bench) reboot() {
	b.Helper()
	b.rt.reboot()
	if err := os.RemoveAll(filepath.Join(b.dir, "run")); err != nil {
		b.Error(err)
	}
}

func (b *bench) apply(manifest string) client.ApplyResult {
	b.Helper()
	r, err := backend{b.agent}.Apply(b.Context(), []byte(manifest))
	if err != nil {
		b.Fatal(err)
	}
	synctest.Wait()
	return r
}

func (b *bench) delete(name string, grace *time.Duration) {
	b.Helper()
	if err := (backend{b.agent}).DeletePod(b.Context(), "default", name, grace); err != nil {
		b.Fatal(err)
	}
	synctest.Wait()
}

// after lets virtual time pass.
func (b *bench) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) pod(name string) *corev1.Pod {
	b.Helper()
	p, ok := b.agent.board.get("default", name)
	if !ok {
		b.Fatalf("no pod %s", name)
	}
	return p.pod
}

func (b *bench) container(pod string, i int) corev1.ContainerStatus {
	b.Helper()
	return b.pod(pod).Status.ContainerStatuses[i]
}

func (b *bench) ready(pod string) bool {
	b.Helper()
	for _, c := range b.pod(pod).Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (b *bench) waiting(pod string, i int) string {
	b.Helper()
	if w := b.container(pod, i).State.Waiting; w != nil {
		return w.Reason
	}
	return ""
}

// gone tells whether nothing is left of any pod.
func (b *bench) gone() {
	b.Helper()
	if !b.rt.empty() {
		b.Errorf("left in the runtime: %v %v", b.rt.sandboxes, b.rt.containers)
	}
	if pods := b.agent.board.list(); len(pods) > 0 {
		b.Errorf("still on the board: %s", pods[0].Name)
	}
	for _, dir := range []string{filepath.Join(b.dir, "state", "pods"), filepath.Join(b.dir, "logs")} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			b.Errorf("left in %s: %v", dir, left)
		}
	}
}

// gaps are the seconds between times.
func gaps(at []time.Time) (out []int) {
	for i := 1; i < len(at); i++ {
		out = append(out, int(at[i].Sub(at[i-1]).Round(time.Second)/time.Second))
	}
	return out
}

const web = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - {name: app, image: "app:1"}
`

func TestPodRuns(t *testing.T) {
	simulate(t, func(b *bench) {
		if r := b.apply(web); r.Objects[0].Action != client.Created {
			t.Errorf("first apply: %s", r.Objects[0].Action)
		}
		p := b.pod("web")
		if p.Status.Phase != corev1.PodRunning || !b.ready("web") {
			t.Errorf("phase %s, ready %v: %+v", p.Status.Phase, b.ready("web"), p.Status)
		}
		if p.Status.PodIP == "" || p.Status.HostIP == "" || p.Status.StartTime == nil || p.Status.QOSClass != corev1.PodQOSBestEffort {
			t.Errorf("status lacks facts: %+v", p.Status)
		}
		if r := b.apply(web); r.Objects[0].Action != client.Unchanged {
			t.Errorf("second apply: %s", r.Objects[0].Action)
		}
		b.after(time.Hour)
		if n := len(b.rt.made("StartContainer", "app")); n != 1 {
			t.Errorf("started %d times", n)
		}
	})
}

func TestCrashLoopBacksOffAsTheKubeletDoes(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(string, uint32) life { return life{runs: time.Second, exit: 1} }
		b.apply(web)
		b.after(5 * time.Second)
		if got := b.waiting("web", 0); got != "CrashLoopBackOff" {
			t.Errorf("waits for %q", got)
		}
		if last := b.container("web", 0).LastTerminationState.Terminated; last == nil || last.ExitCode != 1 || last.Reason != "Error" {
			t.Errorf("last state %+v", last)
		}
		b.after(30 * time.Minute)
		want := []int{1, 11, 21, 41, 81, 161, 301, 301}
		if got := gaps(b.rt.made("StartContainer", "app")); !slices.Equal(got[:len(want)], want) {
			t.Errorf("seconds between starts: %v", got)
		}
		if b.pod("web").Status.Phase != corev1.PodRunning {
			t.Errorf("phase %s", b.pod("web").Status.Phase)
		}
	})
}

func TestBackoffSurvivesTheAgentAndResets(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(_ string, attempt uint32) life {
			if attempt == 4 {
				return life{runs: 11 * time.Minute, exit: 1}
			}
			return life{runs: time.Second, exit: 1}
		}
		b.apply(web)
		b.after(15 * time.Second) // third instance has ended: 20 s to wait
		b.stop()
		b.boot()
		b.after(30 * time.Minute)
		got := gaps(b.rt.made("StartContainer", "app"))
		if want := []int{1, 11, 21, 41, 660, 11, 21}; !slices.Equal(got[:len(want)], want) {
			t.Errorf("seconds between starts: %v, want %v…", got, want)
		}
		if c := b.container("web", 0); c.RestartCount < 7 {
			t.Errorf("restart count %d", c.RestartCount)
		}
	})
}

func TestDeathIsActedOnAtOnce(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(web)
		b.after(time.Minute)
		before := time.Now()
		b.rt.kill(b.rt.running("app")[0], 1)
		synctest.Wait()
		if took := time.Since(before); len(b.rt.running("app")) != 1 || took > time.Millisecond {
			t.Errorf("restarted: %v, after %v", b.rt.running("app"), took)
		}
	})
}

func TestRuntimeWithoutEventsIsPolled(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, rt: newFake(t), dir: dir}
		b.rt.noEvents = true
		b.boot()
		b.apply(web)
		b.after(time.Minute)
		b.rt.kill(b.rt.running("app")[0], 1)
		b.after(1100 * time.Millisecond)
		if len(b.rt.running("app")) != 1 {
			t.Error("not restarted")
		}
		b.stop()
	})
}

func TestDeleteIsGracefulAndLeavesNothing(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(string, uint32) life { return life{ignores: 7 * time.Second} }
		b.apply(web)
		b.after(time.Second)
		b.delete("web", nil)
		if p := b.pod("web"); p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 30 {
			t.Errorf("not shown as ending: %v", p.DeletionTimestamp)
		}
		b.after(6 * time.Second)
		if len(b.rt.running("app")) != 1 {
			t.Error("killed before its grace was over")
		}
		b.after(2 * time.Second)
		if got := b.rt.timeouts("app"); !slices.Equal(got, []int64{30}) {
			t.Errorf("stopped with timeouts %v", got)
		}
		b.gone()
	})
}

func TestShorterGraceOvertakes(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(string, uint32) life { return life{ignores: time.Hour} }
		b.apply(web)
		b.after(time.Second)
		b.delete("web", nil)
		b.after(time.Second)
		zero := time.Duration(0)
		b.delete("web", &zero)
		b.after(time.Second)
		b.gone()
	})
}

func TestDeleteWhileItIsPulled(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.slow = func(verb, _ string) time.Duration {
			if verb == "PullImage" {
				return time.Hour
			}
			return 0
		}
		b.apply(strings.Replace(web, "app:1", "far:1", 1))
		b.after(time.Minute)
		b.delete("web", nil)
		b.after(time.Second)
		b.gone()
	})
}

func TestDeleteAndComeBack(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(string, uint32) life { return life{ignores: 5 * time.Second} }
		b.apply(web)
		b.after(time.Second)
		b.delete("web", nil)
		b.apply(web)
		b.after(10 * time.Second)
		if !b.ready("web") || b.container("web", 0).RestartCount != 0 {
			t.Errorf("not a new pod: %+v", b.pod("web").Status)
		}
	})
}

func TestAgentRestartChangesNothing(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: app
    image: app:1
    readinessProbe: {exec: {command: [check]}, periodSeconds: 5}
    startupProbe: {exec: {command: [check]}, periodSeconds: 5}
`)
		b.after(time.Minute)
		before := b.pod("web")
		if !b.ready("web") {
			t.Fatal("not ready")
		}
		b.stop()
		time.Sleep(time.Hour)
		b.boot()
		if !b.ready("web") {
			t.Errorf("readiness flipped: %+v", b.pod("web").Status.Conditions)
		}
		b.after(time.Minute)
		after := b.pod("web")
		if n := len(b.rt.made("StartContainer", "app")); n != 1 {
			t.Errorf("started %d times", n)
		}
		for i, c := range after.Status.Conditions {
			if !c.LastTransitionTime.Equal(&before.Status.Conditions[i].LastTransitionTime) {
				t.Errorf("condition %s changed at %v", c.Type, c.LastTransitionTime)
			}
		}
		if !after.Status.StartTime.Equal(before.Status.StartTime) {
			t.Errorf("start time changed")
		}
		b.rt.script(func() { b.rt.exec = func(string, []string) (int32, error) { return 1, nil } })
		b.after(20 * time.Second)
		if b.ready("web") {
			t.Error("probes do not go on")
		}
	})
}

func TestUnwantedPodsOfAnEarlierRunEnd(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(web)
		b.after(time.Second)
		b.stop()
		if err := os.RemoveAll(filepath.Join(b.dir, "state", "applied")); err != nil {
			t.Fatal(err)
		}
		b.boot()
		b.after(time.Second)
		if got := b.rt.timeouts("app"); !slices.Equal(got, []int64{30}) {
			t.Errorf("stopped with %v", got)
		}
		b.gone()
	})
}

func TestOrphansWithoutRecordEnd(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(web)
		b.after(time.Second)
		b.stop()
		for _, dir := range []string{"applied", "pods"} {
			if err := os.RemoveAll(filepath.Join(b.dir, "state", dir)); err != nil {
				t.Fatal(err)
			}
		}
		b.boot()
		b.after(time.Second)
		b.gone()
	})
}

func TestBadRecordsAreNotFatal(t *testing.T) {
	for _, content := range []string{"", "{", "null", "{}", `{"Pod": {}}`, `{"Pod": {"metadata": {"uid": "UID"}}}`, `{"Containers": [{}, {"State": 99}], "Probes": {"": {}}}`} {
		simulate(t, func(b *bench) {
			b.apply(web)
			b.after(time.Second)
			uid := string(b.pod("web").UID)
			b.stop()
			path := recordPath(filepath.Join(b.dir, "state", "pods", uid))
			write := func() {
				if err := os.WriteFile(path, []byte(strings.Replace(content, "UID", uid, 1)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write()
			b.boot()
			b.after(time.Second)
			if !b.ready("web") || len(b.rt.made("StartContainer", "app")) != 1 {
				t.Errorf("record %q: %+v", content, b.pod("web").Status)
			}
			b.stop()
			write()
			if err := os.RemoveAll(filepath.Join(b.dir, "state", "applied")); err != nil {
				t.Fatal(err)
			}
			b.boot()
			b.after(time.Second)
			b.gone()
		})
	}
}

func TestRebootBringsPodsBack(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(web)
		b.apply(strings.NewReplacer("name: web", "name: once", "spec:", "spec:\n  restartPolicy: Never").Replace(web))
		b.rt.script(func() { b.rt.life = func(string, uint32) life { return life{runs: time.Second} } })
		b.apply(strings.NewReplacer("name: web", "name: done", "spec:", "spec:\n  restartPolicy: Never").Replace(web))
		b.after(time.Minute)
		b.rt.script(func() { b.rt.life = nil })
		b.stop()
		b.reboot()
		b.boot()
		b.after(time.Second)
		if c := b.container("web", 0); !b.ready("web") || c.RestartCount != 1 || c.LastTerminationState.Terminated == nil {
			t.Errorf("web is not back: %+v", c)
		}
		if p := b.pod("once"); p.Status.Phase != corev1.PodFailed {
			t.Errorf("once is %s: %+v", p.Status.Phase, p.Status.ContainerStatuses)
		}
		if p := b.pod("done"); p.Status.Phase != corev1.PodSucceeded {
			t.Errorf("done is %s: %+v", p.Status.Phase, p.Status.ContainerStatuses)
		}
	})
}

func TestEditRestartsWhatChanged(t *testing.T) {
	const two = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - {name: app, image: "app:1"}
  - {name: side, image: "app:1"}
`
	simulate(t, func(b *bench) {
		b.apply(two)
		b.after(time.Minute)
		ip := b.pod("web").Status.PodIP
		r := b.apply(strings.Replace(two, `name: app, image: "app:1"`, `name: app, image: "app:2"`, 1))
		if r.Objects[0].Action != client.Configured {
			t.Errorf("action %s", r.Objects[0].Action)
		}
		b.after(time.Second)
		if a, s := b.container("web", 0), b.container("web", 1); a.RestartCount != 1 || s.RestartCount != 0 || a.Image != "app:2" {
			t.Errorf("app %d %s, side %d", a.RestartCount, a.Image, s.RestartCount)
		}
		if b.pod("web").Status.PodIP != ip {
			t.Error("the sandbox was replaced")
		}
		b.apply(strings.Replace(two, "spec:", "spec:\n  hostname: other", 1))
		b.after(time.Second)
		if b.pod("web").Status.PodIP == ip {
			t.Error("the sandbox was not replaced")
		}
		if !b.ready("web") {
			t.Errorf("not ready: %+v", b.pod("web").Status)
		}
	})
}

func TestEditAddsContainerAndVolume(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(web)
		b.after(time.Minute)
		b.apply(web + `  - {name: new, image: "app:1", volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /c, readOnly: true}]}
  volumes: [{name: v, configMap: {name: conf}}]
`)
		b.after(time.Second)
		if len(b.rt.running("new")) != 0 || len(b.rt.running("app")) != 1 {
			t.Error("the new container does not wait for its volume, or the old one does not go on")
		}
		b.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: conf}, data: {a: b}}")
		b.after(time.Second)
		if !b.ready("web") || b.container("web", 0).RestartCount != 0 {
			t.Errorf("%+v", b.pod("web").Status.ContainerStatuses)
		}
		b.apply(web)
		b.after(time.Second)
		if len(b.rt.running("new")) != 0 || !b.ready("web") || b.container("web", 0).RestartCount != 0 {
			t.Errorf("the removed container: %v", b.rt.running("new"))
		}
	})
}

func TestImageVolume(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(strings.Replace(web, `image: "app:1"`, `image: "app:1", volumeMounts: [{name: v, mountPath: /v, subPath: data}]`, 1) +
			`  volumes: [{name: v, image: {reference: "far:1"}}]
`)
		if !b.ready("web") || len(b.rt.made("PullImage", "far:1")) != 1 {
			t.Fatalf("%+v", b.container("web", 0))
		}
		for _, m := range b.rt.containers[b.rt.running("app")[0]].config.Mounts {
			if m.ContainerPath == "/v" && (m.Image.GetImage() != "far:1" || m.ImageSubPath != "data" || !m.Readonly) {
				t.Errorf("mount %v", m)
			}
		}
	})
}

func TestMissingObjectIsWaitedFor(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: app
    image: app:1
    env: [{name: A, valueFrom: {configMapKeyRef: {name: conf, key: a}}}]
`)
		b.after(time.Minute)
		if got := b.waiting("web", 0); got != "CreateContainerConfigError" {
			t.Errorf("waits for %q", got)
		}
		b.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: conf}, data: {a: b}}")
		if !b.ready("web") {
			t.Errorf("not started when the object came: %+v", b.container("web", 0))
		}
	})
}

func TestPullBackoff(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.fail = func(verb, name string) error {
			if verb == "PullImage" {
				return errors.New("no such image")
			}
			return nil
		}
		b.apply(strings.Replace(web, "app:1", "far:1", 1))
		if got := b.waiting("web", 0); got != "ErrImagePull" {
			t.Errorf("first %q", got)
		}
		b.after(5 * time.Second)
		if got := b.waiting("web", 0); got != "ImagePullBackOff" {
			t.Errorf("then %q", got)
		}
		b.after(10 * time.Minute)
		if got := gaps(b.rt.made("PullImage", "far:1")); !slices.Equal(got[:5], []int{10, 20, 40, 80, 160}) {
			t.Errorf("seconds between pulls: %v", got)
		}
		b.rt.script(func() { b.rt.fail = nil })
		b.after(6 * time.Minute)
		if !b.ready("web") {
			t.Error("not running after the registry came back")
		}
	})
}

func TestLivenessFailureRestarts(t *testing.T) {
	simulate(t, func(b *bench) {
		healthy := true
		b.rt.exec = func(string, []string) (int32, error) {
			if healthy {
				return 0, nil
			}
			return 1, nil
		}
		b.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: app
    image: app:1
    livenessProbe: {exec: {command: [check]}, periodSeconds: 10, terminationGracePeriodSeconds: 3}
`)
		b.after(time.Minute)
		b.rt.script(func() { healthy = false })
		b.after(31 * time.Second)
		b.rt.script(func() { healthy = true })
		if c := b.container("web", 0); c.RestartCount != 1 {
			t.Errorf("restarts: %d", c.RestartCount)
		}
		if got := b.rt.timeouts("app"); !slices.Equal(got, []int64{3}) {
			t.Errorf("stopped with %v", got)
		}
		var reasons []string
		for _, e := range b.agent.node.events.Of("default", "web") {
			reasons = append(reasons, e.Reason+": "+e.Message)
		}
		if !slices.Contains(reasons, "Killing: Container app failed liveness probe, will be restarted") {
			t.Errorf("events: %q", reasons)
		}
	})
}

// TestProbesGoOnWhereTheyWere restarts the agent when probes have failed two of
// the three times that it takes.
func TestProbesGoOnWhereTheyWere(t *testing.T) {
	simulate(t, func(b *bench) {
		healthy := true
		b.rt.exec = func(_ string, cmd []string) (int32, error) {
			if healthy {
				return 0, nil
			}
			return 1, nil
		}
		b.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - {name: app, image: "app:1", livenessProbe: {exec: {command: [alive]}, periodSeconds: 10}}
  - {name: web, image: "app:1", readinessProbe: {exec: {command: [ready]}, periodSeconds: 10}}
`)
		sick := func(after time.Duration) {
			b.rt.script(func() { healthy = false })
			b.after(after)
		}
		well := func() { b.rt.script(func() { healthy = true }) }
		restarts := func(want int32, when string) {
			t.Helper()
			if got := b.container("web", 0).RestartCount; got != want {
				t.Errorf("%s: %d restarts, want %d", when, got, want)
			}
		}
		b.after(5 * time.Second)
		sick(21 * time.Second)
		restarts(0, "two failures")
		if !b.ready("web") {
			t.Error("not ready after two failures")
		}
		b.stop()
		b.after(3 * time.Second) // the probes are due in the next second
		b.boot()
		if restarts(0, "a new agent"); !b.ready("web") {
			t.Error("readiness flipped")
		}
		b.after(2 * time.Second)
		b.after(2 * time.Second) // for what is restarted
		restarts(1, "the third failure")
		if b.container("web", 1).Ready {
			t.Error("ready after the third failure")
		}
		well()
		b.after(time.Minute)
		if !b.ready("web") {
			t.Error("not ready again")
		}
		sick(21 * time.Second)
		b.stop()
		well()
		b.boot()
		b.after(10 * time.Second)
		sick(21 * time.Second)
		restarts(1, "failures, but not in a row")
		b.stop()
		b.rt.kill(b.rt.running("app")[0], 1)
		b.boot()
		b.after(21 * time.Second)
		restarts(2, "of two failures only, after its predecessor's")
		b.stop()
		if left, err := filepath.Glob(filepath.Join(b.dir, "run", "probes", "*")); len(left) != 1 {
			t.Errorf("kept for one pod: %v %v", left, err)
		}
		b.boot()
		b.delete("web", nil)
		b.after(time.Minute)
		if left, _ := filepath.Glob(filepath.Join(b.dir, "run", "probes", "*")); len(left) != 0 {
			t.Errorf("left of no pod: %v", left)
		}
	})
}

func TestInitContainersAndSidecars(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.life = func(name string, attempt uint32) life {
			switch name {
			case "first":
				return life{runs: 2 * time.Second, exit: int32(1 - min(attempt, 1))} // fails once
			case "second":
				return life{runs: 2 * time.Second}
			}
			return life{ignores: time.Second}
		}
		b.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  initContainers:
  - {name: first, image: "app:1"}
  - {name: proxy, image: "app:1", restartPolicy: Always, startupProbe: {exec: {command: [check]}, initialDelaySeconds: 3}}
  - {name: second, image: "app:1"}
  - {name: logger, image: "app:1", restartPolicy: Always}
  containers:
  - {name: app, image: "app:1"}
`)
		if got := b.waiting("web", 0); got != "PodInitializing" {
			t.Errorf("app waits for %q", got)
		}
		b.after(time.Minute)
		if !b.ready("web") {
			t.Fatalf("not ready: %+v", b.pod("web").Status)
		}
		order := func(verb string) (names []string) {
			for _, c := range b.rt.calls {
				if c.verb == verb {
					names = append(names, c.name)
				}
			}
			return names
		}
		if got := order("StartContainer"); !slices.Equal(got, []string{"first", "first", "proxy", "second", "logger", "app"}) {
			t.Errorf("started in the order %v", got)
		}
		b.delete("web", nil)
		b.after(time.Minute)
		if got := order("StopContainer"); !slices.Equal(got, []string{"app", "logger", "proxy"}) {
			t.Errorf("stopped in the order %v", got)
		}
		b.gone()
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy string
		exit   int32
		phase  corev1.PodPhase
		starts int
	}{
		{"Never", 0, corev1.PodSucceeded, 1},
		{"Never", 3, corev1.PodFailed, 1},
		{"OnFailure", 0, corev1.PodSucceeded, 1},
	} {
		simulate(t, func(b *bench) {
			b.rt.life = func(string, uint32) life { return life{runs: time.Second, exit: c.exit} }
			b.apply(strings.Replace(web, "spec:", "spec:\n  restartPolicy: "+c.policy, 1))
			b.after(time.Hour)
			if got := b.pod("web").Status.Phase; got != c.phase {
				t.Errorf("%s, exit %d: %s", c.policy, c.exit, got)
			}
			if n := len(b.rt.made("StartContainer", "app")); n != c.starts {
				t.Errorf("%s, exit %d: started %d times", c.policy, c.exit, n)
			}
			b.delete("web", nil)
			b.after(time.Second)
			b.gone()
		})
	}
}

func TestActiveDeadline(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(strings.Replace(web, "spec:", "spec:\n  activeDeadlineSeconds: 60", 1))
		b.after(61 * time.Second)
		p := b.pod("web")
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "DeadlineExceeded" || len(b.rt.running("app")) != 0 {
			t.Errorf("%s %s, running %v", p.Status.Phase, p.Status.Reason, b.rt.running("app"))
		}
		b.stop()
		b.boot()
		b.after(time.Minute)
		if p := b.pod("web"); p.Status.Phase != corev1.PodFailed || len(b.rt.made("StartContainer", "app")) != 1 {
			t.Errorf("after a restart: %s", p.Status.Phase)
		}
		b.delete("web", nil)
		b.after(time.Second)
		b.gone()
	})
}

func TestPreStopSharesTheGrace(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - {name: app, image: "app:1", lifecycle: {preStop: {sleep: {seconds: 15}}}}
`)
		b.after(time.Second)
		b.delete("web", nil)
		b.after(14 * time.Second)
		if len(b.rt.running("app")) != 1 {
			t.Error("stopped during its hook")
		}
		b.after(2 * time.Second)
		if got := b.rt.timeouts("app"); !slices.Equal(got, []int64{5}) {
			t.Errorf("stopped with %v", got)
		}
		b.gone()
	})
}

func TestStuckContainerBlocksNoOther(t *testing.T) {
	simulate(t, func(b *bench) {
		b.rt.slow = func(verb, name string) time.Duration {
			if name == "stuck" && verb == "CreateContainer" {
				return time.Hour
			}
			return 0
		}
		b.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - {name: stuck, image: "app:1"}
  - {name: app, image: "app:1"}
`)
		if len(b.rt.running("app")) != 1 {
			t.Error("app does not run")
		}
		b.rt.kill(b.rt.running("app")[0], 1)
		b.after(time.Second)
		if len(b.rt.running("app")) != 1 {
			t.Error("app was not restarted")
		}
	})
}

// An idle pod costs nothing: the worker sleeps until something happens.
func TestIdlePodMakesNoCalls(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(web)
		b.after(time.Minute)
		b.rt.mu.Lock()
		before := len(b.rt.calls)
		b.rt.mu.Unlock()
		b.after(24 * time.Hour)
		b.rt.mu.Lock()
		defer b.rt.mu.Unlock()
		if n := len(b.rt.calls) - before; n > 0 {
			t.Errorf("%d calls in a day: %v", n, b.rt.calls[before:])
		}
	})
}

func TestObjectsOfFilesAndOfTheAPIDoNotMix(t *testing.T) {
	simulate(t, func(b *bench) {
		objects, _, err := b.agent.decoder.Decode([]byte(web))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.agent.do(b.Context(), func(loop context.Context) {
			b.agent.files = []source.File{{Path: "/m/web.yaml", Objects: objects}}
			b.agent.merge()
			b.agent.reconcile(loop)
		}); err != nil {
			t.Fatal(err)
		}
		b.after(time.Second)
		if _, err := (backend{b.agent}).Apply(b.Context(), []byte(web)); err == nil || !strings.Contains(err.Error(), "/m/web.yaml") {
			t.Errorf("apply: %v", err)
		}
		if err := (backend{b.agent}).DeletePod(b.Context(), "default", "web", nil); err == nil || !strings.Contains(err.Error(), "/m/web.yaml") {
			t.Errorf("delete: %v", err)
		}
		if b.pod("web").Annotations[client.AnnotationManifest] != "/m/web.yaml" {
			t.Errorf("annotations %v", b.pod("web").Annotations)
		}
	})
}

// TestHugeHostsFile: a container may write to /etc/hosts, and more than fits
// into the agent's memory.
func TestHugeHostsFile(t *testing.T) {
	simulate(t, func(b *bench) {
		b.apply(web)
		files, _ := filepath.Glob(filepath.Join(b.dir, "state", "pods", "*", "etc-hosts"))
		if len(files) != 1 {
			b.Fatal(files)
		}
		if err := os.Truncate(files[0], 1<<40); err != nil {
			b.Skip("no sparse file: ", err)
		}
		b.rt.kill(b.rt.running("app")[0], 1)
		b.after(time.Minute)
		if !b.ready("web") {
			b.Error("the container did not come back")
		}
		if st, err := os.Stat(files[0]); err != nil || st.Size() > 4096 {
			b.Errorf("the file was not made anew: %v, %v", st, err)
		}
	})
}
