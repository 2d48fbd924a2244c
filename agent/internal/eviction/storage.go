package eviction

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Limited tells whether a pod has a limit for what it puts on disk, and whether
// one is for what its containers write beside volumes.
func Limited(pod *corev1.Pod) (any, containers bool) {
	_, containers = total(pod, corev1.ResourceEphemeralStorage, limits)
	any = containers
	for _, v := range pod.Spec.Volumes {
		any = any || SizeLimit(v) > 0
	}
	return any, containers
}

func limits(r corev1.ResourceRequirements) corev1.ResourceList { return r.Limits }

// SizeLimit is that of an emptyDir on disk; 0: none. One in memory bounds itself.
func SizeLimit(v corev1.Volume) int64 {
	e := v.EmptyDir
	if e == nil || e.SizeLimit == nil || e.Medium != corev1.StorageMediumDefault {
		return 0
	}
	return max(e.SizeLimit.Value(), 0)
}

// Limits of a pod's own that it may exceed, as they are counted by.
const (
	EmptyDirLimit  Signal = "emptydirfs.limit"
	PodLimit       Signal = "ephemeralpodfs.limit"
	ContainerLimit Signal = "ephemeralcontainerfs.limit"
)

// Exceeds tells whether a pod uses more of the disk than its own limits allow,
// which limit that is, with the kubelet's message, and else how many bytes are
// left to the nearest.
func Exceeds(u Usage) (limit Signal, message string, left int64) {
	left = 1 << 62
	for _, v := range u.Pod.Spec.Volumes {
		limit := SizeLimit(v)
		if limit == 0 {
			continue
		}
		used := u.Volumes[v.Name].Bytes
		if used > limit {
			return EmptyDirLimit, fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String()), 0
		}
		left = min(left, limit-used)
	}
	if limit, any := total(u.Pod, corev1.ResourceEphemeralStorage, limits); any {
		used := int64(0)
		for _, v := range u.Volumes {
			used += v.Bytes
		}
		for _, c := range u.Containers {
			used += c.disk().Bytes
		}
		if used > limit {
			return PodLimit, fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", bytes(limit)), 0
		}
		left = min(left, limit-used)
	}
	for _, c := range u.Pod.Spec.Containers {
		limit, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]
		if !ok {
			continue
		}
		used := u.Containers[c.Name].disk().Bytes
		if used > limit.Value() {
			return ContainerLimit, fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String()), 0
		}
		left = min(left, limit.Value()-used)
	}
	return "", "", left
}

// How often what pods put on disk is measured, which takes walking through
// their directories.
const (
	often  = time.Minute      // while the file systems change
	seldom = 10 * time.Minute // while they do not: one change may hide another
)

// Pace tells when to measure: file systems tell at no cost how full they are,
// and no pod can have used up what it had left while they hardly filled up.
type Pace struct {
	at    time.Time
	pods  string // whose limits were measured
	bytes int64
	left  int64
}

// Due tells whether to measure now; pods identifies those that have limits, and
// bytes is what their file systems hold.
func (p *Pace) Due(now time.Time, pods string, bytes int64) bool {
	if p.at.IsZero() || pods != p.pods || bytes-p.bytes >= p.left {
		return true
	}
	age := now.Sub(p.at)
	return age >= seldom || age >= often && bytes != p.bytes
}

// Measured tells what was found: how much the pod has left that has the least.
func (p *Pace) Measured(now time.Time, pods string, bytes, left int64) {
	*p = Pace{at: now, pods: pods, bytes: bytes, left: max(left, 1)}
}
