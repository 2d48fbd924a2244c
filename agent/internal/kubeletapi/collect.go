package kubeletapi

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// resourceCollector gives /metrics/resource: what the resource metrics API and
// autoscalers live on.
type resourceCollector struct {
	server *Server
	ctx    context.Context
}

// Labels are in the kubelet's order.
var (
	ofPod       = []string{"pod", "namespace"}
	ofContainer = []string{"container", "pod", "namespace"}

	nodeCPU         = prometheus.NewDesc("node_cpu_usage_seconds_total", "Processor time that the node has used, in core-seconds.", nil, nil)
	nodeMemory      = prometheus.NewDesc("node_memory_working_set_bytes", "Working set of the node.", nil, nil)
	nodeSwap        = prometheus.NewDesc("node_swap_usage_bytes", "Swap that the node uses.", nil, nil)
	podCPU          = prometheus.NewDesc("pod_cpu_usage_seconds_total", "Processor time that the pod has used, in core-seconds.", ofPod, nil)
	podMemory       = prometheus.NewDesc("pod_memory_working_set_bytes", "Working set of the pod.", ofPod, nil)
	podSwap         = prometheus.NewDesc("pod_swap_usage_bytes", "Swap that the pod uses.", ofPod, nil)
	containerCPU    = prometheus.NewDesc("container_cpu_usage_seconds_total", "Processor time that the container has used, in core-seconds.", ofContainer, nil)
	containerMemory = prometheus.NewDesc("container_memory_working_set_bytes", "Working set of the container.", ofContainer, nil)
	containerSwap   = prometheus.NewDesc("container_swap_usage_bytes", "Swap that the container uses.", ofContainer, nil)
	containerLimit  = prometheus.NewDesc("container_swap_limit_bytes", "Swap that the container may use.", ofContainer, nil)
	containerStart  = prometheus.NewDesc("container_start_time_seconds", "When the container was started, since the epoch.", ofContainer, nil)
	scrapeError     = prometheus.NewDesc("resource_scrape_error", "1 if figures of containers are missing.", nil, nil)
	oldScrapeError  = prometheus.NewDesc("scrape_error", "1 if figures of containers are missing.", nil, nil)
)

func (c resourceCollector) Describe(chan<- *prometheus.Desc) {} // unchecked: what there is differs

func (c resourceCollector) Collect(ch chan<- prometheus.Metric) {
	sum, err := c.server.Stats.Summary(c.ctx, true)
	failed := 0.0
	if err != nil {
		c.server.Log.Error("metrics of resources are incomplete", "error", err)
		failed = 1
	}
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	gauge(scrapeError, failed)
	gauge(oldScrapeError, failed)
	if sum == nil {
		return
	}
	usage(ch, sum.Node.CPU, sum.Node.Memory, sum.Node.Swap, [3]*prometheus.Desc{nodeCPU, nodeMemory, nodeSwap})
	for _, p := range sum.Pods {
		usage(ch, p.CPU, p.Memory, p.Swap, [3]*prometheus.Desc{podCPU, podMemory, podSwap}, p.PodRef.Name, p.PodRef.Namespace)
		for _, ctr := range p.Containers {
			labels := []string{ctr.Name, p.PodRef.Name, p.PodRef.Namespace}
			usage(ch, ctr.CPU, ctr.Memory, ctr.Swap, [3]*prometheus.Desc{containerCPU, containerMemory, containerSwap}, labels...)
			if ctr.Swap != nil && ctr.Swap.SwapAvailableBytes != nil && ctr.Swap.SwapUsageBytes != nil {
				send(ch, containerLimit, prometheus.GaugeValue, float64(*ctr.Swap.SwapAvailableBytes+*ctr.Swap.SwapUsageBytes), ctr.Swap.Time, labels)
			}
			if !ctr.StartTime.IsZero() {
				ch <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, float64(ctr.StartTime.UnixNano())/1e9, labels...)
			}
		}
	}
}

// usage sends processor time, working set and swap, as far as they are known,
// with the times at which they were read.
func usage(ch chan<- prometheus.Metric, cpu *stats.CPUStats, memory *stats.MemoryStats, swap *stats.SwapStats, d [3]*prometheus.Desc, labels ...string) {
	if cpu != nil && cpu.UsageCoreNanoSeconds != nil {
		send(ch, d[0], prometheus.CounterValue, float64(*cpu.UsageCoreNanoSeconds)/1e9, cpu.Time, labels)
	}
	if memory != nil && memory.WorkingSetBytes != nil {
		send(ch, d[1], prometheus.GaugeValue, float64(*memory.WorkingSetBytes), memory.Time, labels)
	}
	if swap != nil && swap.SwapUsageBytes != nil {
		send(ch, d[2], prometheus.GaugeValue, float64(*swap.SwapUsageBytes), swap.Time, labels)
	}
}

func send(ch chan<- prometheus.Metric, d *prometheus.Desc, t prometheus.ValueType, v float64, at metav1.Time, labels []string) {
	m := prometheus.MustNewConstMetric(d, t, v, labels...)
	if !at.IsZero() {
		m = prometheus.NewMetricWithTimestamp(at.Time, m)
	}
	ch <- m
}

// volumeCollector adds to /metrics how full the volumes of claims are.
type volumeCollector struct {
	server *Server
	ctx    context.Context
}

var (
	ofClaim = []string{"namespace", "persistentvolumeclaim"}

	volumeCapacity   = prometheus.NewDesc("kubelet_volume_stats_capacity_bytes", "Size of the volume.", ofClaim, nil)
	volumeAvailable  = prometheus.NewDesc("kubelet_volume_stats_available_bytes", "Bytes that are left in the volume.", ofClaim, nil)
	volumeUsed       = prometheus.NewDesc("kubelet_volume_stats_used_bytes", "Bytes of the volume that are used.", ofClaim, nil)
	volumeInodes     = prometheus.NewDesc("kubelet_volume_stats_inodes", "Inodes of the volume.", ofClaim, nil)
	volumeInodesFree = prometheus.NewDesc("kubelet_volume_stats_inodes_free", "Inodes that are left in the volume.", ofClaim, nil)
	volumeInodesUsed = prometheus.NewDesc("kubelet_volume_stats_inodes_used", "Inodes of the volume that are used.", ofClaim, nil)
)

func (c volumeCollector) Describe(chan<- *prometheus.Desc) {}

func (c volumeCollector) Collect(ch chan<- prometheus.Metric) {
	for _, v := range c.server.Stats.Claims(c.ctx) {
		gauge := func(d *prometheus.Desc, n float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, v.PVCRef.Namespace, v.PVCRef.Name)
		}
		for d, n := range map[*prometheus.Desc]*uint64{volumeCapacity: v.CapacityBytes, volumeAvailable: v.AvailableBytes, volumeUsed: v.UsedBytes,
			volumeInodes: v.Inodes, volumeInodesFree: v.InodesFree, volumeInodesUsed: v.InodesUsed} {
			gauge(d, float64(*n))
		}
	}
}

// runtimeCollector gives /metrics/cadvisor: what the runtime has for a monitoring
// system (CRI's ListPodSandboxMetrics), under cAdvisor's names.
type runtimeCollector struct {
	server *Server
	ctx    context.Context
}

func (c runtimeCollector) Describe(chan<- *prometheus.Desc) {}

func (c runtimeCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.server
	described, err := s.Runtime.ListMetricDescriptors(c.ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		s.Log.Error("metrics of the runtime are missing", "error", err)
		return
	}
	values, err := s.Runtime.ListPodSandboxMetrics(c.ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		s.Log.Error("metrics of the runtime are missing", "error", err)
		return
	}
	descs := map[string]*prometheus.Desc{}
	for _, d := range described.Descriptors {
		descs[d.Name] = prometheus.NewDesc(d.Name, d.Help, d.LabelKeys, nil)
	}
	for _, pod := range values.PodMetrics {
		c.send(ch, descs, pod.Metrics)
		for _, ctr := range pod.ContainerMetrics {
			c.send(ch, descs, ctr.Metrics)
		}
	}
}

func (c runtimeCollector) send(ch chan<- prometheus.Metric, descs map[string]*prometheus.Desc, list []*runtimeapi.Metric) {
	for _, m := range list {
		d := descs[m.Name]
		if d == nil {
			continue // the runtime has not announced it
		}
		kind := prometheus.GaugeValue
		if m.MetricType == runtimeapi.MetricType_COUNTER {
			kind = prometheus.CounterValue
		}
		one, err := prometheus.NewConstMetric(d, kind, float64(m.GetValue().GetValue()), m.LabelValues...)
		if err != nil {
			c.server.Log.Warn("a metric of the runtime is left out", "metric", m.Name, "error", err)
			continue
		}
		if m.Timestamp != 0 {
			one = prometheus.NewMetricWithTimestamp(time.Unix(0, m.Timestamp), one)
		}
		ch <- one
	}
}
