// Package metric counts what the agent does, under the names that a kubelet's
// dashboards and alerts know, for Prometheus. The metrics of the kubelet that
// tell of machinery which is not here (relists, the API server's client) have no equivalent and are left out.
package metric

import (
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	corev1 "k8s.io/api/core/v1"
)

// Metrics are the agent's. Safe for concurrent use; the methods of a nil one do
// nothing.
type Metrics struct {
	Registry *prometheus.Registry // /metrics
	Probes   *prometheus.Registry // /metrics/probes
	SLIs     *prometheus.Registry // /metrics/slis

	operations        *prometheus.CounterVec
	operationErrors   *prometheus.CounterVec
	operationDuration *prometheus.HistogramVec
	pullDuration      *prometheus.HistogramVec
	started           *prometheus.CounterVec
	startErrors       *prometheus.CounterVec
	startedPods       prometheus.Counter
	startedPodsErrors prometheus.Counter
	sandboxDuration   *prometheus.HistogramVec
	sandboxErrors     *prometheus.CounterVec
	userPods          prometheus.Counter
	userPodsErrors    prometheus.Counter
	terminated        *prometheus.CounterVec
	orphans           prometheus.Counter
	imagesCollected   *prometheus.CounterVec
	cgroupDuration    *prometheus.HistogramVec
	podStartTotal     prometheus.Histogram
	evictions         *prometheus.CounterVec
	preemptions       *prometheus.CounterVec
	podStart          prometheus.Histogram
	probes            *prometheus.CounterVec
	probeDuration     *prometheus.HistogramVec
	pinRequests       map[string]prometheus.Counter // by what was asked for
	pinErrors         map[string]prometheus.Counter
	pinDuration       prometheus.Histogram
	sharedCPUs        prometheus.Gauge
	exclusiveCPUs     prometheus.Gauge
	nodeCPUs          *prometheus.GaugeVec
	healthy           *prometheus.GaugeVec
	healthchecks      *prometheus.CounterVec
	more
}

// Buckets in seconds, the kubelet's.
var (
	podTime = []float64{0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}
	pulls   = []float64{1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}
)

// New returns metrics of a node; pods are those that it has now.
func New(node, version string, cgroupVersion int, pods func() []*corev1.Pod) *Metrics {
	m := &Metrics{Registry: prometheus.NewRegistry(), Probes: prometheus.NewRegistry()}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.Registry.MustRegister(v)
		return v
	}
	histograms := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.Registry.MustRegister(v)
		return v
	}
	gauge := func(name, help string, value float64, labels prometheus.Labels) {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
		g.Set(value)
		m.Registry.MustRegister(g)
	}
	m.operations = counters("kubelet_runtime_operations_total", "Calls of the runtime, by type.", "operation_type")
	m.operationErrors = counters("kubelet_runtime_operations_errors_total", "Calls of the runtime that failed, by type.", "operation_type")
	m.operationDuration = histograms("kubelet_runtime_operations_duration_seconds", "Duration of calls of the runtime, by type.", prometheus.ExponentialBuckets(0.005, 2.5, 14), "operation_type")
	m.pullDuration = histograms("kubelet_image_pull_duration_seconds", "Duration of image pulls, by size of the image.", pulls, "image_size_in_bytes")
	m.started = counters("kubelet_started_containers_total", "Containers that were started.", "container_type")
	m.startErrors = counters("kubelet_started_containers_errors_total", "Containers that could not be started.", "container_type", "code")
	m.startedPods = counters("kubelet_started_pods_total", "Pods whose sandbox was started.").WithLabelValues()
	m.startedPodsErrors = counters("kubelet_started_pods_errors_total", "Pods whose sandbox could not be started.").WithLabelValues()
	m.sandboxDuration = histograms("kubelet_run_podsandbox_duration_seconds", "Duration of the making of sandboxes, by handler.", prometheus.DefBuckets, "runtime_handler")
	m.sandboxErrors = counters("kubelet_run_podsandbox_errors_total", "Sandboxes that could not be made, by handler.", "runtime_handler")
	m.userPods = counters("kubelet_started_user_namespaced_pods_total", "Pods with users of their own whose sandbox was started.").WithLabelValues()
	m.userPodsErrors = counters("kubelet_started_user_namespaced_pods_errors_total", "Pods with users of their own whose sandbox could not be started.").WithLabelValues()
	m.terminated = counters("kubelet_terminated_containers_total", "Containers that have ended.", "container_type", "exit_code", "reason")
	m.orphans = counters("kubelet_orphaned_runtime_pods_total", "Pods that the runtime had and nobody wanted.").WithLabelValues()
	m.imagesCollected = counters("kubelet_image_garbage_collected_total", "Images that were removed because nobody used them, by the reason.", "reason")
	m.cgroupDuration = histograms("kubelet_cgroup_manager_duration_seconds", "Duration of changes of pods' cgroups.", prometheus.DefBuckets, "operation_type")
	m.podStartTotal = histograms("kubelet_pod_start_total_duration_seconds", "From a pod's creation to its running, images and init containers included.", podTime).WithLabelValues().(prometheus.Histogram)
	m.preemptions = counters("kubelet_preemptions", "Pods that went for a critical one, by what that lacked.", "preemption_signal")
	m.evictions = counters("kubelet_evictions", "Pods that were evicted, by signal.", "eviction_signal")
	m.podStart = histograms("kubelet_pod_start_duration_seconds", "From the first sight of a pod to its running, images that had to be pulled included.", podTime).WithLabelValues().(prometheus.Histogram)
	m.pinRequests = map[string]prometheus.Counter{
		"cpu":      counters("kubelet_cpu_manager_pinning_requests_total", "Pods that asked for processors of their own.").WithLabelValues(),
		"memory":   counters("kubelet_memory_manager_pinning_requests_total", "Pods that asked for memory of their own.").WithLabelValues(),
		"topology": counters("kubelet_topology_manager_admission_requests_total", "Pods for which NUMA nodes were looked for.").WithLabelValues()}
	m.pinErrors = map[string]prometheus.Counter{
		"cpu":      counters("kubelet_cpu_manager_pinning_errors_total", "Pods that had to wait for processors of their own.").WithLabelValues(),
		"memory":   counters("kubelet_memory_manager_pinning_errors_total", "Pods that had to wait for memory of their own.").WithLabelValues(),
		"topology": counters("kubelet_topology_manager_admission_errors_total", "Pods that had to wait for NUMA nodes.").WithLabelValues()}
	m.pinDuration = histograms("kubelet_topology_manager_admission_duration_ms", "Duration of the search for NUMA nodes, in milliseconds.", prometheus.ExponentialBuckets(.05, 2, 15)).WithLabelValues().(prometheus.Histogram)
	m.sharedCPUs = prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubelet_cpu_manager_shared_pool_size_millicores", Help: "Processors that containers share, in thousandths."})
	m.exclusiveCPUs = prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubelet_cpu_manager_exclusive_cpu_allocation_count", Help: "Processors that containers have for themselves."})
	m.nodeCPUs = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelet_cpu_manager_allocation_per_numa", Help: "Processors that containers have for themselves, by NUMA node."}, []string{"numa_node"})
	m.Registry.MustRegister(m.sharedCPUs, m.exclusiveCPUs, m.nodeCPUs)
	gauge("kubelet_node_name", "The node's name.", 1, prometheus.Labels{"node": node})
	gauge("kubelet_cgroup_version", "The version of the host's cgroups.", float64(cgroupVersion), nil)
	gauge("kubernetes_build_info", "What is running here.", 1, prometheus.Labels{"git_version": version, "go_version": runtime.Version(),
		"compiler": runtime.Compiler, "platform": runtime.GOOS + "/" + runtime.GOARCH})
	m.addMore()
	m.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), podCollector{pods})

	m.probes = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "prober_probe_total", Help: "Probes, by result."},
		[]string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"})
	m.probeDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "prober_probe_duration_seconds", Help: "Duration of probes.",
		Buckets: prometheus.DefBuckets}, []string{"probe_type", "container", "pod", "namespace"})
	m.Probes.MustRegister(m.probes, m.probeDuration)

	m.SLIs = prometheus.NewRegistry()
	m.healthy = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubernetes_healthcheck", Help: "What a health check found last."}, []string{"name", "type"})
	m.healthchecks = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubernetes_healthchecks_total", Help: "Health checks, by result."}, []string{"name", "type", "status"})
	m.SLIs.MustRegister(m.healthy, m.healthchecks, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Pinned notes that a pod asked for something of its own ("cpu", "memory"), or for NUMA
// nodes ("topology").
func (m *Metrics) Pinned(what string, refused bool, took time.Duration) {
	if m == nil {
		return
	}
	if m.pinRequests[what].Inc(); refused {
		m.pinErrors[what].Inc()
	}
	if what == "topology" {
		m.pinDuration.Observe(float64(took) / float64(time.Millisecond))
	}
}

// CPUs are how many processors containers share, and have for themselves, the latter by
// the NUMA node's ID, too.
func (m *Metrics) CPUs(shared, exclusive int, nodes map[int]int) {
	if m == nil {
		return
	}
	m.sharedCPUs.Set(float64(shared) * 1000)
	m.exclusiveCPUs.Set(float64(exclusive))
	for id, n := range nodes {
		m.nodeCPUs.WithLabelValues(strconv.Itoa(id)).Set(float64(n))
	}
}

// Health notes what a check of /healthz found.
func (m *Metrics) Health(name string, ok bool) {
	if m == nil {
		return
	}
	value, status := 1.0, "success"
	if !ok {
		value, status = 0, "error"
	}
	m.healthy.WithLabelValues(name, "healthz").Set(value)
	m.healthchecks.WithLabelValues(name, "healthz", status).Inc()
}

// ResetHealth forgets what checks found.
func (m *Metrics) ResetHealth() {
	if m != nil {
		m.healthy.Reset()
		m.healthchecks.Reset()
	}
}

// Operation notes a call of the runtime ("create_container").
func (m *Metrics) Operation(kind string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.operations.WithLabelValues(kind).Inc()
	m.operationDuration.WithLabelValues(kind).Observe(took.Seconds())
	if err != nil {
		m.operationErrors.WithLabelValues(kind).Inc()
	}
}

// Sandbox notes that a sandbox was made by a handler, or was not; users: with
// users of its own.
func (m *Metrics) Sandbox(handler string, users bool, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.sandboxDuration.WithLabelValues(handler).Observe(took.Seconds())
	if err != nil {
		m.sandboxErrors.WithLabelValues(handler).Inc()
	}
	for _, c := range []struct {
		counts         bool
		started, error prometheus.Counter
	}{{true, m.startedPods, m.startedPodsErrors}, {users, m.userPods, m.userPodsErrors}} {
		switch {
		case c.counts && err != nil:
			c.error.Inc()
		case c.counts:
			c.started.Inc()
		}
	}
}

// Terminated notes the end of a container, of the kinds of Started.
func (m *Metrics) Terminated(kind string, code int32, reason string) {
	if m != nil {
		m.terminated.WithLabelValues(kind, strconv.Itoa(int(code)), reason).Inc()
	}
}

// Orphan notes a pod that the runtime has and nobody wants.
func (m *Metrics) Orphan() {
	if m != nil {
		m.orphans.Inc()
	}
}

// Collected notes that an image was removed, for "age" or "space".
func (m *Metrics) Collected(reason string) {
	if m != nil {
		m.imagesCollected.WithLabelValues(reason).Inc()
	}
}

// Cgroup notes what was done to a pod's cgroup ("create", "update", "destroy").
func (m *Metrics) Cgroup(what string, took time.Duration) {
	if m != nil {
		m.cgroupDuration.WithLabelValues(what).Observe(took.Seconds())
	}
}

// Pulled notes a pull of an image with so many bytes.
func (m *Metrics) Pulled(took time.Duration, size uint64) {
	if m != nil {
		m.pullDuration.WithLabelValues(sizeClass(size)).Observe(took.Seconds())
	}
}

// sizeClass is the kubelet's: N/A stands for an image without size.
func sizeClass(size uint64) string {
	const mib, gib = 1 << 20, 1 << 30
	if size == 0 {
		return "N/A"
	}
	for _, c := range []struct {
		below uint64
		name  string
	}{{10 * mib, "0-10MB"}, {100 * mib, "10MB-100MB"}, {500 * mib, "100MB-500MB"}, {gib, "500MB-1GB"},
		{5 * gib, "1GB-5GB"}, {10 * gib, "5GB-10GB"}, {20 * gib, "10GB-20GB"}, {30 * gib, "20GB-30GB"},
		{40 * gib, "30GB-40GB"}, {60 * gib, "40GB-60GB"}, {100 * gib, "60GB-100GB"}} {
		if size < c.below {
			return c.name
		}
	}
	return "GT100GB"
}

// Started notes the start of a container ("container", "init_container",
// "ephemeral_container"); reason is "" or why it failed.
func (m *Metrics) Started(kind, reason string) {
	if m == nil {
		return
	}
	m.started.WithLabelValues(kind).Inc()
	if reason != "" {
		m.startErrors.WithLabelValues(kind, reason).Inc()
	}
}

// Evicted notes an eviction for a signal ("memory.available").
func (m *Metrics) Evicted(signal string) {
	if m != nil {
		m.evictions.WithLabelValues(signal).Inc()
	}
}

// Preempted notes that a pod goes for a critical one, which lacks a resource.
func (m *Metrics) Preempted(resource string) {
	if m != nil {
		m.preemptions.WithLabelValues(resource).Inc()
	}
}

// Running notes that a pod runs, so long after it was first seen.
func (m *Metrics) Running(took time.Duration) {
	if m != nil {
		m.podStart.Observe(took.Seconds())
	}
}

// Probe notes a probe of a container. The kind is that of its message
// ("Liveness").
func (m *Metrics) Probe(pod *corev1.Pod, container, kind string, ok bool, err error, took time.Duration) {
	if m == nil {
		return
	}
	result := "successful"
	switch {
	case err != nil:
		result = "unknown"
	case !ok:
		result = "failed"
	}
	m.probes.WithLabelValues(kind, result, container, pod.Name, pod.Namespace, string(pod.UID)).Inc()
	m.probeDuration.WithLabelValues(kind, container, pod.Name, pod.Namespace).Observe(took.Seconds())
}

// Forget drops the probes of a pod that is gone.
func (m *Metrics) Forget(pod *corev1.Pod) {
	if m != nil {
		m.probes.DeletePartialMatch(prometheus.Labels{"pod_uid": string(pod.UID)})
		m.probeDuration.DeletePartialMatch(prometheus.Labels{"pod": pod.Name, "namespace": pod.Namespace})
	}
}

// podCollector counts the pods that there are, when it is asked.
type podCollector struct{ pods func() []*corev1.Pod }

var (
	desiredPods       = desc("kubelet_desired_pods", "Pods that are to run here.", "static")
	activePods        = desc("kubelet_active_pods", "Pods that are here and not over.", "static")
	runningPods       = desc("kubelet_running_pods", "Pods that have a running sandbox.")
	runningContainers = desc("kubelet_running_containers", "Containers, by state.", "container_state")
	workingPods       = desc("kubelet_working_pods", "Pods, by what is done with them.", "lifecycle", "config", "static")
	ephemeral         = desc("kubelet_managed_ephemeral_containers", "Ephemeral containers of pods.")
	pendingResizes    = desc("kubelet_pod_pending_resizes", "Pods that have not been given their cpu and memory.", "reason")
	resizesUnderWay   = desc("kubelet_pod_in_progress_resizes", "Pods that are being given their cpu and memory.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func (c podCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c podCollector) Collect(ch chan<- prometheus.Metric) {
	desired, active, running := map[bool]float64{}, map[bool]float64{}, 0.0
	states := map[string]float64{"created": 0, "running": 0, "exited": 0}
	for _, p := range c.pods() {
		static := p.Annotations["kubernetes.io/config.source"] == "file"
		desired[static]++
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			active[static]++
		}
		if p.Status.Phase == corev1.PodRunning {
			running++
		}
		for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
			for i := range list {
				switch s := list[i].State; {
				case s.Running != nil:
					states["running"]++
				case s.Terminated != nil:
					states["exited"]++
				case list[i].ContainerID != "":
					states["created"]++
				}
			}
		}
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, static := range []bool{false, true} {
		text := ""
		if static {
			text = "true"
		}
		gauge(desiredPods, desired[static], text)
		gauge(activePods, active[static], text)
	}
	gauge(runningPods, running)
	for state, n := range states {
		gauge(runningContainers, n, state)
	}
	c.details(gauge)
}

// details counts pods by what is done with them.
func (c podCollector) details(gauge func(*prometheus.Desc, float64, ...string)) {
	type work struct{ lifecycle, config, static string }
	working, pending := map[work]float64{}, map[string]float64{"deferred": 0, "infeasible": 0}
	looked, resizing := 0.0, 0.0
	for _, p := range c.pods() {
		k := work{"sync", "desired", ""}
		if p.Annotations["kubernetes.io/config.source"] == "file" {
			k.static = "true"
		}
		switch {
		case p.DeletionTimestamp != nil:
			k.lifecycle, k.config = "terminating", "orphan"
		case p.Status.Phase == corev1.PodSucceeded, p.Status.Phase == corev1.PodFailed:
			k.lifecycle = "terminated"
		}
		working[k]++
		looked += float64(len(p.Spec.EphemeralContainers))
		for _, x := range p.Status.Conditions {
			switch x.Type {
			case corev1.PodResizePending:
				pending[strings.ToLower(x.Reason)]++
			case corev1.PodResizeInProgress:
				resizing++
			}
		}
	}
	for k, n := range working {
		gauge(workingPods, n, k.lifecycle, k.config, k.static)
	}
	for reason, n := range pending {
		gauge(pendingResizes, n, reason)
	}
	gauge(ephemeral, looked)
	gauge(resizesUnderWay, resizing)
}
