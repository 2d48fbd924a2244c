package stats

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/pressure"
)

// measureEvery is how old what is said of a pod's directories may be (the
// kubelet's volumeStatsAggPeriod).
const measureEvery = time.Minute

// measured is what a pod's directories took of the disk.
type measured struct {
	at      metav1.Time
	volumes map[string]eviction.Disk
	logs    map[string]eviction.Disk // by container
}

// fileSystem tells of the file system at a path; nil if there is none.
func fileSystem(path string) *stats.FsStats {
	var st unix.Statfs_t
	if path == "" || unix.Statfs(path, &st) != nil {
		return nil
	}
	block := uint64(st.Bsize)
	size, free, used := st.Blocks*block, st.Bavail*block, (st.Blocks-st.Bfree)*block
	inodes, inodesUsed := st.Files, st.Files-st.Ffree
	return &stats.FsStats{Time: metav1.Now(), CapacityBytes: &size, AvailableBytes: &free, UsedBytes: &used,
		Inodes: &inodes, InodesFree: &st.Ffree, InodesUsed: &inodesUsed}
}

// addDisk adds what a pod has on the disk.
func (s *Source) addDisk(ctx context.Context, pod *corev1.Pod, out *stats.PodStats) {
	m := s.measure(ctx, pod)
	sum := eviction.Disk{}
	for _, v := range pod.Spec.Volumes {
		if d, ok := m.volumes[v.Name]; ok {
			sum.Bytes, sum.Inodes = sum.Bytes+d.Bytes, sum.Inodes+d.Inodes
			if fs := s.used(m, d); fs != nil {
				out.VolumeStats = append(out.VolumeStats, stats.VolumeStats{FsStats: *fs, Name: v.Name})
			}
		}
	}
	for i := range out.Containers {
		c := &out.Containers[i]
		if d, ok := m.logs[c.Name]; ok {
			sum.Bytes, sum.Inodes = sum.Bytes+d.Bytes, sum.Inodes+d.Inodes
			c.Logs = s.used(m, d)
		}
		if c.Rootfs != nil && c.Rootfs.UsedBytes != nil {
			sum.Bytes += int64(*c.Rootfs.UsedBytes)
		}
		if c.Rootfs != nil && c.Rootfs.InodesUsed != nil {
			sum.Inodes += int64(*c.Rootfs.InodesUsed)
		}
	}
	out.EphemeralStorage = s.used(m, sum)
}

// used is the file system of volumes with what something takes of it.
func (s *Source) used(m measured, d eviction.Disk) *stats.FsStats {
	fs := fileSystem(s.NodeFs)
	if fs == nil {
		return nil
	}
	bytes, inodes := uint64(d.Bytes), uint64(d.Inodes)
	fs.Time, fs.UsedBytes, fs.InodesUsed = m.at, &bytes, &inodes
	return fs
}

// measure looks at a pod's directories, or at what was seen a moment ago.
// Directories that cannot be read count as far as they could.
func (s *Source) measure(ctx context.Context, pod *corev1.Pod) measured {
	s.mu.Lock()
	m, ok := s.disks[string(pod.UID)]
	s.mu.Unlock()
	if ok && time.Since(m.at.Time) < measureEvery {
		return m
	}
	m = measured{at: metav1.Now(), volumes: map[string]eviction.Disk{}, logs: map[string]eviction.Disk{}}
	for name, dir := range s.Volumes(pod) {
		m.volumes[name], _ = s.Measure(ctx, pod, dir)
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
