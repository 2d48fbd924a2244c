package allocation

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// preempt has pods go for one that does not fit, as few and as small ones as the
// kubelet would choose; if that is not enough, or not needed, nobody goes.
func (l *Ledger) preempt(r Request) {
	used := l.staying(r.UID)
	for uid, w := range l.waiting {
		if uid != r.UID && w.Preempts && w.Priority >= r.Priority {
			count(used, w) // what others go for is not for this one
		}
	}
	need := lack{}
	short := l.shortages(r.Requests, used)
	for _, s := range short {
		need[s.Resource] = s.Requested - (s.Capacity - s.Used)
	}
	var may []Request
	for _, uid := range slices.Sorted(maps.Keys(l.held)) {
		if h := l.held[uid]; uid != r.UID && !h.going && h.Yield != nil && h.Priority < r.Priority {
			may = append(may, h.Request)
		}
	}
	for _, victim := range victims(need, may) {
		h := l.held[victim.UID]
		h.going = true
		l.held[victim.UID] = h
		victim.Yield(short[0].Resource)
	}
}

// staying is what pods have that will keep it.
func (l *Ledger) staying(except string) map[corev1.ResourceName]int64 {
	used := map[corev1.ResourceName]int64{}
	for uid, h := range l.held {
		if uid != except && !h.going {
			count(used, h.Request)
		}
	}
	return used
}

// lack is how much is missing.
type lack map[corev1.ResourceName]int64

// victims chooses who goes, as the kubelet does (pkg/kubelet/preemption): pods of
// the class Guaranteed only for what the others cannot give, Burstable before
// them, BestEffort first; of a class always the one that leaves the least to be
// found, and of such the smallest. Nobody, if all together are not enough.
func victims(need lack, pods []Request) []Request {
	of := map[corev1.PodQOSClass][]Request{}
	for _, p := range pods {
		of[p.QoS] = append(of[p.QoS], p)
	}
	if len(need) == 0 || len(need.without(pods)) > 0 {
		return nil
	}
	low, mid, high := of[corev1.PodQOSBestEffort], of[corev1.PodQOSBurstable], of[corev1.PodQOSGuaranteed]
	highest := nearest(need.without(low).without(mid), high)
	middle := nearest(need.without(low).without(highest), mid)
	lowest := nearest(need.without(middle).without(highest), low)
	return slices.Concat(lowest, middle, highest)
}

// nearest takes pods until nothing is missing.
func nearest(need lack, pods []Request) (chosen []Request) {
	pods = slices.Clone(pods)
	for len(need) > 0 && len(pods) > 0 {
		best := 0
		for i := range pods {
			a, b := need.distance(pods[i]), need.distance(pods[best])
			if a < b || a == b && smaller(pods[i], pods[best]) {
				best = i
			}
		}
		chosen = append(chosen, pods[best])
		need = need.without(pods[best : best+1])
		pods = slices.Delete(pods, best, best+1)
	}
	return chosen
}

func (n lack) without(pods []Request) lack {
	left := lack{}
	for name, much := range n {
		for _, p := range pods {
			much -= p.of(name)
		}
		if much > 0 {
			left[name] = much
		}
	}
	return left
}

// distance is how far a pod's going is from being enough: the sum of the squares
// of the parts that would still be missing.
func (n lack) distance(p Request) (d float64) {
	for name, much := range n {
		if left := float64(much - p.of(name)); left > 0 {
			d += left / float64(much) * left / float64(much)
		}
	}
	return d
}

func smaller(a, b Request) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceCPU} {
		if x, y := a.of(name), b.of(name); x != y {
			return x < y
		}
	}
	return false
}

func (r Request) of(name corev1.ResourceName) int64 {
	if name == corev1.ResourcePods {
		return 1
	}
	return amount(r.Requests, name)
}
