package stats

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/fsusage"
	"podstead/agent/internal/pressure"
	"podstead/agent/internal/volume"
)

// measureEvery is how old figures may be, if nobody says it.
const measureEvery = time.Minute

func (s *Source) every() time.Duration {
	if s.Every == 0 {
		return measureEvery
	}
	return s.Every
}

// measured is what a pod's directories took of the disk.
type measured struct {
	at      metav1.Time
	volumes map[string]eviction.Disk
	logs    map[string]eviction.Disk // by container
}

// fileSystem tells of the file system at a path of the node's own; nil if there
// is none.
func fileSystem(path string) *stats.FsStats {
	if path == "" {
		return nil
	}
	u, err := fsusage.Of(path)
	if err != nil {
		return nil
	}
	return fsStats(u, metav1.Now())
}

func fsStats(u fsusage.Usage, at metav1.Time) *stats.FsStats {
	return &stats.FsStats{Time: at, CapacityBytes: &u.Capacity, AvailableBytes: &u.Available, UsedBytes: &u.Used,
		Inodes: &u.Inodes, InodesFree: &u.InodesFree, InodesUsed: &u.InodesUsed}
}

// addDisk adds what a pod has on the disk, and its other volumes.
func (s *Source) addDisk(ctx context.Context, pod *corev1.Pod, known volumes, out *stats.PodStats) {
	places := known.places[string(pod.UID)]
	m := s.measure(ctx, pod, places)
	sum := eviction.Disk{}
	for _, v := range pod.Spec.Volumes {
		if d, ok := m.volumes[v.Name]; ok {
			if v.EmptyDir != nil || v.ConfigMap != nil { // as the kubelet
				sum.Bytes, sum.Inodes = sum.Bytes+d.Bytes, sum.Inodes+d.Inodes
			}
			if fs := used(places[v.Name].Path, m.at, d); fs != nil {
				out.VolumeStats = append(out.VolumeStats, stats.VolumeStats{FsStats: *fs, Name: v.Name})
			}
			continue
		}
		if one, ok := known.of(pod, v.Name); ok {
			out.VolumeStats = append(out.VolumeStats, one)
		}
	}
	for i := range out.Containers {
		c := &out.Containers[i]
		if d, ok := m.logs[c.Name]; ok {
			sum.Bytes, sum.Inodes = sum.Bytes+d.Bytes, sum.Inodes+d.Inodes
			c.Logs = used(s.NodeFs, m.at, d)
		}
		if c.Rootfs != nil && c.Rootfs.UsedBytes != nil {
			sum.Bytes += int64(*c.Rootfs.UsedBytes)
		}
		if c.Rootfs != nil && c.Rootfs.InodesUsed != nil {
			sum.Inodes += int64(*c.Rootfs.InodesUsed)
		}
	}
	out.EphemeralStorage = used(s.NodeFs, m.at, sum)
}

// used is the file system of a directory with what something takes of it.
func used(path string, at metav1.Time, d eviction.Disk) *stats.FsStats {
	fs := fileSystem(path)
	if fs == nil {
		return nil
	}
	bytes, inodes := uint64(d.Bytes), uint64(d.Inodes)
	fs.Time, fs.UsedBytes, fs.InodesUsed = at, &bytes, &inodes
	return fs
}

// measure looks at a pod's directories, or at what was seen a moment ago.
// Directories that cannot be read count as far as they could.
func (s *Source) measure(ctx context.Context, pod *corev1.Pod, places map[string]volume.Place) measured {
	s.mu.Lock()
	m, ok := s.disks[string(pod.UID)]
	s.mu.Unlock()
	fresh := s.every()
	if fresh < 0 {
		fresh = measureEvery // of logs
	}
	if ok && time.Since(m.at.Time) < fresh {
		return m
	}
	m = measured{at: metav1.Now(), volumes: map[string]eviction.Disk{}, logs: map[string]eviction.Disk{}}
	for name, at := range places {
		if at.Walked {
			m.volumes[name], _ = s.Measure(ctx, pod, at.Path)
		}
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			m.logs[list[i].Name], _ = pressure.Measure(ctx, s.Logs(pod, list[i].Name))
		}
	}
	if ctx.Err() != nil {
		return m // half of it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.disks == nil {
		s.disks = map[string]measured{}
	}
	s.disks[string(pod.UID)] = m
	return m
}

// forget drops what was measured of pods that are gone.
func (s *Source) forget(known map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid := range s.disks {
		if !known[uid] {
			delete(s.disks, uid)
		}
	}
}
