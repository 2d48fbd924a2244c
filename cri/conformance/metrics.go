package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var metricTests = []test{
	{"descriptors stay", "ListMetricDescriptors ListMetricDescriptorsResponse.* MetricDescriptor.*", func(t *testing.T, s *suite) {
		first := s.descriptors(t)
		if !proto.Equal(first, s.descriptors(t)) {
			t.Error("the second list differs from the first")
		}
		seen := map[string]bool{}
		for _, d := range first.GetDescriptors() {
			if seen[d.GetName()] {
				t.Errorf("%s is there twice", d.GetName())
			}
			seen[d.GetName()] = true
			if d.GetHelp() == "" {
				t.Errorf("%s has no help", d.GetName())
			}
			for _, key := range []string{"id", "image", "pod", "namespace", "container"} {
				if !slices.Contains(d.GetLabelKeys(), key) {
					t.Errorf("%s has no label %s", d.GetName(), key)
				}
			}
		}
	}},
	{"of a pod and its containers", "ListPodSandboxMetrics ListPodSandboxMetricsResponse.* PodSandboxMetrics.* " +
		"ContainerMetrics.* Metric.*", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("busy", burn)
		config.Linux.Resources = memory(64 * mebibyte)
		c := p.start(t, config)
		c.says(t, "ready\n")
		ended := p.sh(t, "true")
		ended.exited(t)
		descriptors := s.descriptors(t)
		var got *runtimeapi.PodSandboxMetrics
		eventually(t, "the container has metrics", func() bool {
			got = s.metricsOf(t, p.id)
			return len(got.GetContainerMetrics()) > 0
		})
		if list := got.GetContainerMetrics(); len(list) != 1 || list[0].GetContainerId() != c.id {
			t.Fatalf("containers with metrics are %v, want %s alone", list, c.id)
		}
		m := p.config.GetMetadata()
		pod := readMetrics(t, descriptors, got.GetMetrics(), map[string]string{"pod": m.GetName(), "namespace": m.GetNamespace(), "container": ""})
		of := readMetrics(t, descriptors, got.GetContainerMetrics()[0].GetMetrics(),
			map[string]string{"pod": m.GetName(), "namespace": m.GetNamespace(), "container": "busy", "image": s.Image})
		for _, name := range []string{"container_network_receive_bytes_total", "container_network_transmit_packets_total"} {
			if _, ok := pod[name]; !ok {
				t.Errorf("the pod has no %s", name)
			}
		}
		for name, least := range atLeast() {
			if value, ok := of[name]; !ok || value < least {
				t.Errorf("%s is %d (there: %v), want at least %d", name, value, ok, least)
			}
		}
		if got := of["container_spec_memory_limit_bytes"]; got != 64*mebibyte {
			t.Errorf("the memory limit is %d", got)
		}
	}},
	{"OOM kills are counted", "Metric.value", func(t *testing.T, s *suite) {
		p := s.pod(t)
		// The child is killed, and the container goes on.
		c := p.sh(t, "exec 2>/dev/null; dd if=/dev/zero of=/dev/null bs=100M count=1; echo survived; sleep 1000", limited(16*mebibyte))
		c.says(t, "survived\n")
		descriptors := s.descriptors(t)
		eventually(t, "the kill is counted", func() bool {
			list := s.metricsOf(t, p.id).GetContainerMetrics()
			return len(list) == 1 && readMetrics(t, descriptors, list[0].GetMetrics(), nil)["container_oom_events_total"] == 1
		})
	}},
}

// atLeast lists metrics that a container must have on any host, and the least
// that the one which runs the script burn has used.
func atLeast() map[string]uint64 {
	return map[string]uint64{
		"container_last_seen":                    1_700_000_000,
		"container_start_time_seconds":           1_700_000_000,
		"container_cpu_usage_seconds_total":      0,
		"container_cpu_user_seconds_total":       0,
		"container_cpu_system_seconds_total":     0,
		"container_memory_usage_bytes":           1,
		"container_memory_working_set_bytes":     1,
		"container_memory_rss":                   1,
		"container_memory_cache":                 0,
		"container_memory_failures_total":        1,
		"container_oom_events_total":             0,
		"container_fs_usage_bytes":               100_000,
		"container_fs_limit_bytes":               1,
		"container_fs_inodes_total":              0,
		"container_fs_inodes_free":               0,
		"container_processes":                    1,
		"container_threads":                      1,
		"container_threads_max":                  0,
		"container_file_descriptors":             2,
		"container_sockets":                      0,
		"container_ulimits_soft":                 1,
		"container_spec_cpu_period":              100_000,
		"container_spec_cpu_shares":              512,
		"container_spec_memory_limit_bytes":      64 * mebibyte,
		"container_spec_memory_swap_limit_bytes": 0,
	}
}

func (s *suite) descriptors(t *testing.T) *runtimeapi.ListMetricDescriptorsResponse {
	t.Helper()
	r, err := s.Runtime.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatalf("list metric descriptors: %v", err)
	}
	return r
}

// metricsOf returns a sandbox's metrics, nil if it has none.
func (s *suite) metricsOf(t *testing.T, sandbox string) *runtimeapi.PodSandboxMetrics {
	t.Helper()
	r, err := s.Runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatalf("list metrics: %v", err)
	}
	for _, p := range r.GetPodMetrics() {
		if p.GetPodSandboxId() == sandbox {
			return p
		}
	}
	return nil
}

// readMetrics checks each metric against its descriptor and returns the highest
// value by name. Labels must have the values of want.
func readMetrics(t *testing.T, descriptors *runtimeapi.ListMetricDescriptorsResponse, metrics []*runtimeapi.Metric, want map[string]string) map[string]uint64 {
	t.Helper()
	keys := map[string][]string{}
	for _, d := range descriptors.GetDescriptors() {
		keys[d.GetName()] = d.GetLabelKeys()
	}
	values, seen := map[string]uint64{}, map[string]bool{}
	for _, m := range metrics {
		name := m.GetName()
		of, known := keys[name]
		if !known || len(of) != len(m.GetLabelValues()) {
			t.Fatalf("%s has labels %q, its descriptor has keys %q (there: %v)", name, m.GetLabelValues(), of, known)
		}
		identity := fmt.Sprint(name, m.GetLabelValues())
		if seen[identity] {
			t.Errorf("%s is there twice", identity)
		}
		seen[identity] = true
		for key, value := range want {
			if got := m.GetLabelValues()[slices.Index(of, key)]; got != value {
				t.Errorf("%s has %s=%q, want %q", name, key, got, value)
			}
		}
		if strings.HasSuffix(name, "_total") && name != "container_fs_inodes_total" && m.GetMetricType() != runtimeapi.MetricType_COUNTER {
			t.Errorf("%s is no counter", name)
		}
		values[name] = max(values[name], m.GetValue().GetValue())
	}
	return values
}
