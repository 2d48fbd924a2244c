package metric

import (
	"errors"
	"flag"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podstead/cri/remote"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-update rewrites it):\n%s", path, got)
	}
}

// page is what a scraper gets, without what differs from run to run: the figures
// of this process, and versions.
func page(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	version := regexp.MustCompile(`(go_version|platform)="[^"]*"`)
	var out []string
	for line := range strings.Lines(w.Body.String()) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			out = append(out, version.ReplaceAllString(line, `$1=""`))
		}
	}
	return strings.Join(out, "")
}

func pods() []*corev1.Pod {
	running := corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	ended := corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}
	created := corev1.ContainerStatus{ContainerID: "podstead://1"}
	return []*corev1.Pod{
		{ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{"kubernetes.io/config.source": "file"}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, InitContainerStatuses: []corev1.ContainerStatus{ended}, ContainerStatuses: []corev1.ContainerStatus{running, running}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Status: corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{created, {}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "d", DeletionTimestamp: &metav1.Time{}}, Spec: corev1.PodSpec{EphemeralContainers: make([]corev1.EphemeralContainer, 2)},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodResizePending, Reason: corev1.PodReasonDeferred}, {Type: corev1.PodResizeInProgress}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Status: corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{ended}}},
	}
}

// TestNamesAreTheKubelets: the pages have what dashboards and alerts for kubelets
// ask for, by name, label and bucket.
func TestNamesAreTheKubelets(t *testing.T) {
	m := New("node1", "v1.2.3", 2, pods)
	m.Operation("run_podsandbox", 30*time.Millisecond, nil)
	m.Operation("run_podsandbox", 2*time.Second, errors.New("no"))
	m.Operation("create_container", 3*time.Millisecond, nil)
	m.Pulled(2*time.Second, 3<<20)
	m.Pulled(time.Minute, 0)
	m.Pulled(time.Hour, 200<<30)
	m.Started("container", "")
	m.Started("init_container", "RunContainerError")
	m.Sandbox("runc", false, 30*time.Millisecond, nil)
	m.Sandbox("", true, 2*time.Second, nil)
	m.Sandbox("", true, 2*time.Second, errors.New("no"))
	m.Terminated("container", 137, "OOMKilled")
	m.Orphan()
	m.Collected("space")
	m.Cgroup("create", time.Millisecond)
	m.Evicted("memory.available")
	m.Preempted("cpu")
	m.Running(4 * time.Second)
	m.AllRunning(40*time.Second, 38*time.Second, false, true)
	m.AllRunning(3*time.Second, 0, false, true)
	m.AllRunning(5*time.Second, 0, true, true)
	m.Worked("create", 30*time.Millisecond)
	m.Resized(30*time.Millisecond, true)
	m.Losing("1.38.0")
	m.Request("GET", "metrics", "readwrite", false)
	m.ImageVolumes(2, true)
	m.ImageVolumes(1, false)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1"}}
	m.Probe(pod, "c", "Liveness", true, nil, 2*time.Millisecond)
	m.Probe(pod, "c", "Liveness", false, nil, 2*time.Millisecond)
	m.Probe(pod, "c", "Readiness", false, errors.New("no"), 20*time.Millisecond)
	m.Health("ping", true)
	m.Health("syncloop", false)
	for file, r := range map[string]*prometheus.Registry{"metrics.golden": m.Registry, "probes.golden": m.Probes, "slis.golden": m.SLIs} {
		golden(t, "testdata/"+file, page(t, r))
	}
	m.Forget(pod)
	if left := page(t, m.Probes); strings.Contains(left, `"web"`) {
		t.Errorf("of a pod that is gone:\n%s", left)
	}
}

func TestNobodyCounts(t *testing.T) {
	var m *Metrics
	m.Operation("x", 0, nil)
	m.Pulled(0, 0)
	m.Started("container", "")
	m.Evicted("x")
	m.Preempted("x")
	m.Sandbox("", true, 0, nil)
	m.Terminated("container", 0, "")
	m.Orphan()
	m.Collected("age")
	m.Cgroup("create", 0)
	m.Health("ping", true)
	m.ResetHealth()
	m.Running(0)
	m.AllRunning(0, 0, false, true)
	m.Worked("", 0)
	m.Resized(0, true)
	m.Losing("")
	m.Request("", "", "", true)()
	m.Shutdown(true)
	m.ImageVolumes(1, true)
	m.Probe(&corev1.Pod{}, "", "", true, nil, 0)
	m.Forget(&corev1.Pod{})
}

func TestSizeClasses(t *testing.T) {
	for size, want := range map[uint64]string{0: "N/A", 1: "0-10MB", 10<<20 - 1: "0-10MB", 10 << 20: "10MB-100MB", 500 << 20: "500MB-1GB",
		1 << 30: "1GB-5GB", 99 << 30: "60GB-100GB", 100 << 30: "GT100GB"} {
		if got := sizeClass(size); got != want {
			t.Errorf("%d is %s, want %s", size, got, want)
		}
	}
}

// TestCallsHaveTheKubeletsWords: each verb of a runtime is counted under the
// kubelet's word for it, and as failed if it fails.
func TestCallsHaveTheKubeletsWords(t *testing.T) {
	nobody, err := remote.New(filepath.Join(t.TempDir(), "nobody.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	m := New("n", "", 1, func() []*corev1.Pod { return nil })
	r := reflect.ValueOf(Runtime{nobody, m})
	var got []string
	for i := range r.NumMethod() {
		method := r.Type().Method(i)
		if method.Type.NumIn() != 3 || method.Type.NumOut() != 2 {
			continue // events
		}
		before := failures(t, m)
		out := r.Method(i).Call([]reflect.Value{reflect.ValueOf(t.Context()), reflect.New(method.Type.In(2).Elem())})
		if err, _ := out[1].Interface().(error); err == nil {
			t.Errorf("%s succeeds without a runtime", method.Name)
		}
		word := "-"
		for w, n := range failures(t, m) {
			if n != before[w] {
				word = w
			}
		}
		got = append(got, method.Name+" "+word)
	}
	golden(t, "testdata/calls.golden", strings.Join(got, "\n")+"\n")
}

func failures(t *testing.T, m *Metrics) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, match := range regexp.MustCompile(`kubelet_runtime_operations_errors_total\{operation_type="(\w+)"\} (\d+)`).FindAllStringSubmatch(page(t, m.Registry), -1) {
		out[match[1]] = match[2]
	}
	return out
}
