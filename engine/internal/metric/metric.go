// Package metric turns what the engine measured of pods and containers into the
// metrics of the CRI: those that the kubelet's /metrics/cadvisor has had for
// each pod and container, by name, type, label keys and meaning, so that
// dashboards and alerts go on as they are. It is pure, keeps nothing, and is
// called by the engine alone.
//
// Values of the CRI are whole numbers: seconds are cut. A figure that the host
// does not tell is left out; it is never made up as 0.
//
// cadvisor.txt lists all of cAdvisor's names, and why this has not some of them.
// It has not iowaiting of container_tasks_state either: the kernel does not tell
// it of a thread.
package metric

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
)

// Labels are on every metric. A pod's own metrics have no container, image and
// name.
type Labels struct {
	Pod, Namespace string
	Container      string // its name in the pod
	Cgroup         string // path, as cAdvisor identifies what it measures
	Image          string // as the user wrote it
	ID             string // of the container
}

// baseKeys are the label keys in the order of Labels.values: containerd's, and
// cAdvisor's "name" after them.
func baseKeys() []string { return []string{"pod", "namespace", "container", "id", "image", "name"} }

func (l Labels) values() []string {
	return []string{l.Pod, l.Namespace, l.Container, l.Cgroup, l.Image, l.ID}
}

// Sample is what was measured of one pod or container. Parts that are not known
// are nil.
type Sample struct {
	Labels           Labels
	Seen             time.Time
	Created, Started time.Time
	Usage            *cgroup.Usage
	// OOMKills are those since the container started.
	OOMKills   *uint64
	Resources  *runtimeapi.LinuxContainerResources
	Disk       *Disk
	Processes  *Processes
	Interfaces []Interface
	// DeviceName names a block device; nil gives its numbers.
	DeviceName func(major, minor uint32) string
}

// Disk is the file system of a writable layer, and what of it the layer takes.
type Disk struct {
	Device     string
	Bytes      uint64
	Inodes     uint64
	InodesFree uint64
	Used       *uint64 // by the layer
	UsedAt     time.Time
}

// Processes are those of a container.
type Processes struct {
	Count     uint64
	OpenFiles *uint64
	Sockets   *uint64
	// MaxOpenFiles is the soft limit of the first process.
	MaxOpenFiles *uint64
	// Threads by state; nil if there were too many to look at.
	Threads *ThreadStates
}

// ThreadStates counts threads by what they do.
type ThreadStates struct {
	Running, Sleeping, Stopped, Uninterruptible uint64
}

// Interface is a network interface of a pod.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Set knows all metrics. It is safe for concurrent use.
type Set struct {
	metrics []metric
}

// NewSet makes the set.
func NewSet() *Set {
	s := &Set{}
	for _, group := range [][]metric{
		general(), processor(), memory(), hugepages(), disk(), blockIO(), network(), processes(), limits(), pressure(),
	} {
		s.metrics = append(s.metrics, group...)
	}
	return s
}

// metric is a descriptor, and how its values are got from a sample.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string // keys beside the base ones
	values     func(*Sample) []value
}

// value is one value of a metric, with the values of its own labels.
type value struct {
	n      uint64
	labels []string
	at     time.Time // when it was measured, if not now
}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// Descriptors lists what there can be, always the same and in the same order.
func (s *Set) Descriptors() []*runtimeapi.MetricDescriptor {
	all := make([]*runtimeapi.MetricDescriptor, 0, len(s.metrics))
	for _, m := range s.metrics {
		all = append(all, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(baseKeys(), m.labels...)})
	}
	return all
}

// Of makes the metrics of a sample, in the order of the descriptors. No two have
// the same name and labels.
func (s *Set) Of(sample *Sample) []*runtimeapi.Metric {
	var all []*runtimeapi.Metric
	base := sample.Labels.values()
	for _, m := range s.metrics {
		for _, v := range m.values(sample) {
			labels := make([]string, 0, len(base)+len(v.labels))
			labels = append(append(labels, base...), v.labels...)
			out := &runtimeapi.Metric{
				Name: m.name, MetricType: m.kind, LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: v.n},
			}
			if !v.at.IsZero() {
				out.Timestamp = v.at.UnixNano()
			}
			all = append(all, out)
		}
	}
	return all
}

// one is a value without labels of its own.
func one(n uint64, labels ...string) []value { return []value{{n: n, labels: labels}} }

// maybe is one unless it is not known.
func maybe(n *uint64, labels ...string) []value {
	if n == nil {
		return nil
	}
	return one(*n, labels...)
}

// seconds of a duration in nanoseconds, cut.
func seconds(nanoseconds uint64) uint64 { return nanoseconds / uint64(time.Second) }

// unix is a time in seconds since 1970; none for a time that has not come.
func unix(t time.Time) []value {
	if t.IsZero() {
		return nil
	}
	return one(uint64(t.Unix()))
}

// used makes a function of a sample of one of its cgroup's figures.
func used(f func(*cgroup.Usage) []value) func(*Sample) []value {
	return func(s *Sample) []value {
		if s.Usage == nil {
			return nil
		}
		return f(s.Usage)
	}
}
