package metric

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// more are the metrics of machinery around pods.
type more struct {
	podStartSLI  prometheus.Histogram
	firstNetwork prometheus.Gauge
	networkOnce  sync.Once
	work         *prometheus.HistogramVec
	resize       *prometheus.HistogramVec
	losing       *prometheus.GaugeVec
	requests     *prometheus.CounterVec
	requestTime  *prometheus.HistogramVec
	underWay     *prometheus.GaugeVec
	shutdown     [2]prometheus.Gauge // its beginning and its end
	imageVolumes [3]prometheus.Counter
}

// ofRequest are the kubelet's labels of HTTP requests.
func ofRequest() []string { return []string{"method", "path", "server_type", "long_running"} }

// addMore registers them.
func (m *Metrics) addMore() {
	add := func(list ...prometheus.Collector) { m.Registry.MustRegister(list...) }
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		add(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		add(c)
		return c
	}
	histograms := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		add(v)
		return v
	}
	m.podStartSLI = histograms("kubelet_pod_start_sli_duration_seconds", "From a pod's creation to all its containers' running, without pulls of images and init containers; of pods whose volumes are their own.", podTime).WithLabelValues().(prometheus.Histogram)
	m.firstNetwork = gauge("kubelet_first_network_pod_start_sli_duration_seconds", "The same of the first pod with a network of its own.")
	m.work = histograms("kubelet_pod_worker_duration_seconds", "Duration of the steps that are done for pods.", prometheus.DefBuckets, "operation_type")
	m.resize = histograms("kubelet_pod_resize_duration_milliseconds", "Milliseconds that it took to give a pod its cpu and memory.", prometheus.ExponentialBuckets(10, 2, 15), "success")
	m.losing = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelet_cri_losing_support", Help: "The version of the kubelet that will not work with this runtime."}, []string{"version"})
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubelet_http_requests_total", Help: "HTTP requests."}, ofRequest())
	m.requestTime = histograms("kubelet_http_requests_duration_seconds", "Duration of HTTP requests.", prometheus.DefBuckets, ofRequest()...)
	m.underWay = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelet_http_inflight_requests", Help: "HTTP requests that are being answered."}, ofRequest())
	add(m.losing, m.requests, m.underWay)
	m.shutdown = [2]prometheus.Gauge{gauge("kubelet_graceful_shutdown_start_time_seconds", "When the last shutdown of the node began, since the epoch."),
		gauge("kubelet_graceful_shutdown_end_time_seconds", "When the pods had ended for it, since the epoch.")}
	m.imageVolumes = [3]prometheus.Counter{counter("kubelet_image_volume_requested_total", "Image volumes that containers were to mount."),
		counter("kubelet_image_volume_mounted_succeed_total", "Image volumes that were mounted."),
		counter("kubelet_image_volume_mounted_errors_total", "Image volumes that could not be mounted.")}
}

// AllRunning notes that all containers of a new pod run, so long after it was
// first seen, of which images and init containers took some. Pods with volumes
// that outlive them, which others have to make, are not measured by what is left;
// network: it has one of its own.
func (m *Metrics) AllRunning(took, images time.Duration, stateful, network bool) {
	if m == nil {
		return
	}
	m.podStartTotal.Observe(took.Seconds())
	if stateful {
		return
	}
	m.podStartSLI.Observe((took - images).Seconds())
	if network {
		m.networkOnce.Do(func() { m.firstNetwork.Set((took - images).Seconds()) })
	}
}

// Worked notes a step that was done for a pod: "create", "sync", "update" or
// "kill".
func (m *Metrics) Worked(what string, took time.Duration) {
	if m != nil {
		m.work.WithLabelValues(what).Observe(took.Seconds())
	}
}

// Resized notes that a pod was given its cpu and memory, or was not.
func (m *Metrics) Resized(took time.Duration, ok bool) {
	if m != nil {
		m.resize.WithLabelValues(map[bool]string{true: "true", false: "false"}[ok]).Observe(float64(took.Milliseconds()))
	}
}

// Losing notes which kubelet will not work with the runtime any more.
func (m *Metrics) Losing(version string) {
	if m != nil {
		m.losing.WithLabelValues(version).Set(1)
	}
}

// Request notes the beginning of an HTTP request; done its end.
func (m *Metrics) Request(method, path, server string, long bool) (done func()) {
	if m == nil {
		return func() {}
	}
	labels := []string{method, path, server, map[bool]string{true: "true", false: "false"}[long]}
	began := time.Now()
	m.requests.WithLabelValues(labels...).Inc()
	m.underWay.WithLabelValues(labels...).Inc()
	return func() {
		m.underWay.WithLabelValues(labels...).Dec()
		m.requestTime.WithLabelValues(labels...).Observe(time.Since(began).Seconds())
	}
}

// Shutdown notes that pods begin to end for the machine's going down, or have
// ended.
func (m *Metrics) Shutdown(over bool) {
	if m == nil {
		return
	}
	if over {
		m.shutdown[1].Set(float64(time.Now().UnixMilli()) / 1000)
		return
	}
	m.shutdown[0].Set(float64(time.Now().UnixMilli()) / 1000)
	m.shutdown[1].Set(0)
}

// ImageVolumes notes that a container was to mount so many, and what became of it.
func (m *Metrics) ImageVolumes(n int, ok bool) {
	if m == nil || n == 0 {
		return
	}
	m.imageVolumes[0].Add(float64(n))
	if ok {
		m.imageVolumes[1].Add(float64(n))
	} else {
		m.imageVolumes[2].Add(float64(n))
	}
}
