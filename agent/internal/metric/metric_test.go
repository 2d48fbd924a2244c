package metric

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestNames notes one of everything, and reads it by the names that dashboards
// know from the kubelet.
func TestNames(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"}}
	m := New("n1", "v1", 2, func() []*corev1.Pod { return []*corev1.Pod{pod} })
	m.Operation("run_podsandbox", time.Second, nil)
	m.Operation("run_podsandbox", time.Second, errors.New("no"))
	m.Pulled(time.Second, 0)
	m.Pulled(time.Second, 30<<20)
	m.Started("container", "")
	m.Started("container", "ErrImagePull")
	m.Evicted("memory.available")
	m.Preempted("cpu")
	m.Running(2 * time.Second)
	m.Probe(pod, "c", "Liveness", true, nil, time.Second)
	m.Probe(pod, "c", "Liveness", false, nil, time.Second)
	m.Probe(pod, "c", "Readiness", false, errors.New("no"), time.Second)
	got := map[string]bool{}
	for _, r := range []interface {
		Gather() ([]*dto.MetricFamily, error)
	}{m.Registry, m.Probes} {
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, one := range f.Metric {
				var labels []string
				for _, l := range one.Label {
					labels = append(labels, l.GetName()+"="+l.GetValue())
				}
				value := one.GetCounter().GetValue() + one.GetGauge().GetValue() + float64(one.GetHistogram().GetSampleCount())
				got[fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(labels, ","), value)] = true
			}
		}
	}
	for _, want := range []string{
		"kubelet_runtime_operations_total{operation_type=run_podsandbox} 2", "kubelet_runtime_operations_errors_total{operation_type=run_podsandbox} 1",
		"kubelet_runtime_operations_duration_seconds{operation_type=run_podsandbox} 2", "kubelet_started_pods_total{} 1", "kubelet_started_pods_errors_total{} 1",
		"kubelet_image_pull_duration_seconds{image_size_in_bytes=N/A} 1", "kubelet_image_pull_duration_seconds{image_size_in_bytes=10MB-100MB} 1",
		"kubelet_started_containers_total{container_type=container} 2", "kubelet_started_containers_errors_total{code=ErrImagePull,container_type=container} 1",
		"kubelet_evictions{eviction_signal=memory.available} 1", "kubelet_preemptions{preemption_signal=cpu} 1", "kubelet_pod_start_duration_seconds{} 1",
		"kubelet_node_name{node=n1} 1", "kubelet_cgroup_version{} 2", "kubelet_desired_pods{static=} 1",
		"prober_probe_total{container=c,namespace=default,pod=web,pod_uid=u,probe_type=Liveness,result=successful} 1",
		"prober_probe_total{container=c,namespace=default,pod=web,pod_uid=u,probe_type=Liveness,result=failed} 1",
		"prober_probe_total{container=c,namespace=default,pod=web,pod_uid=u,probe_type=Readiness,result=unknown} 1",
	} {
		if !got[want] {
			t.Errorf("there is no %s", want)
			name, _, _ := strings.Cut(want, "{")
			for have := range got {
				if strings.HasPrefix(have, name+"{") {
					t.Logf("but %s", have)
				}
			}
		}
	}
	m.Forget(pod)
	families, err := m.Probes.Gather()
	if err != nil || len(families) > 0 {
		t.Errorf("of a pod that has gone: %v, %v", families, err)
	}
	var none *Metrics // of tests
	none.Operation("x", 0, nil)
	none.Evicted("x")
	none.Preempted("x")
	none.Probe(pod, "c", "Liveness", true, nil, 0)
}
