package stats

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent/internal/fsusage"
	"podstead/agent/internal/volume"
)

const (
	// answerSoon is how long a request waits for what volumes have not told yet,
	// answerLast how long they have for it.
	answerSoon = time.Second
	answerLast = 10 * time.Second
)

// asked are the answers of volumes, by path. A volume that does not answer is not
// asked again before it has: there is one goroutine for it, and no more, however
// often somebody wants to know.
type asked struct {
	mu      sync.Mutex
	answers map[string]*answer
}

type answer struct {
	fsusage.Usage
	at   time.Time // of the last answer
	ok   bool      // it was one
	busy chan struct{}
}

// volumes is what is known of them.
type volumes struct {
	places  map[string]map[string]volume.Place // by pod UID and name
	answers map[string]answer                  // by path
}

// volumes has volumes measured whose figures are old, and returns what is known
// of them all. Figures are left out when new ones should have come.
func (s *Source) volumes(ctx context.Context, pods []*corev1.Pod) volumes {
	out := volumes{answers: map[string]answer{}}
	every := s.every()
	if every < 0 {
		return out
	}
	out.places = s.Volumes(ctx, pods)
	paths := map[string]volume.Place{}
	for _, of := range out.places {
		for _, at := range of {
			if !at.Walked {
				paths[at.Path] = at
			}
		}
	}
	soon, cancel := context.WithTimeout(ctx, answerSoon)
	defer cancel()
	for path, begun := range s.asked.begin(ctx, paths, every, s.Ask) {
		select {
		case <-begun:
		case <-soon.Done():
			select {
			case <-begun: // it was waited for another one
				continue
			default:
			}
			if s.Log != nil && ctx.Err() == nil {
				s.Log.Warn("a volume does not answer; it is left out of the figures until it does", "path", path)
			}
		}
	}
	s.asked.mu.Lock()
	defer s.asked.mu.Unlock()
	for path := range paths {
		if a := s.asked.answers[path]; a.ok && time.Since(a.at) < every+answerLast {
			out.answers[path] = *a
		}
	}
	return out
}

// begin asks those whose answers are older than every, and are not being asked,
// and forgets what was asked before and is not any more. It returns what is
// closed when they have answered.
func (a *asked) begin(ctx context.Context, paths map[string]volume.Place, every time.Duration, ask func(context.Context, volume.Place) (fsusage.Usage, error)) map[string]<-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answers == nil {
		a.answers = map[string]*answer{}
	}
	for path, one := range a.answers {
		if _, still := paths[path]; !still && one.busy == nil {
			delete(a.answers, path)
		}
	}
	begun := map[string]<-chan struct{}{}
	for path, at := range paths {
		one := a.answers[path]
		if one == nil {
			one = &answer{}
			a.answers[path] = one
		}
		if one.busy != nil || time.Since(one.at) < every {
			continue
		}
		one.busy = make(chan struct{})
		begun[path] = one.busy
		go func() {
			// Whoever asked may be gone by now; others want to know, too.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerLast)
			defer cancel()
			u, err := ask(ctx, at)
			a.mu.Lock()
			defer a.mu.Unlock()
			one.at = time.Now()
			if one.ok = err == nil; one.ok {
				one.Usage = u
			}
			close(one.busy)
			one.busy = nil
		}()
	}
	return begun
}

// of is what is known of a volume that has figures of its own.
func (v volumes) of(pod *corev1.Pod, name string) (stats.VolumeStats, bool) {
	at, ok := v.places[string(pod.UID)][name]
	a, known := v.answers[at.Path]
	if !ok || !known || at.Walked {
		return stats.VolumeStats{}, false
	}
	out := stats.VolumeStats{FsStats: *fsStats(a.Usage, metav1.NewTime(a.at)), Name: name}
	if at.Claim != "" {
		out.PVCRef = &stats.PVCReference{Name: at.Claim, Namespace: pod.Namespace}
	}
	return out, true
}

// Claims tells of the volumes of claims, each once, whoever uses it.
func (s *Source) Claims(ctx context.Context) (list []stats.VolumeStats) {
	pods := s.Pods()
	known := s.volumes(ctx, pods)
	seen := map[stats.PVCReference]bool{}
	for _, pod := range pods {
		for _, v := range pod.Spec.Volumes {
			if one, ok := known.of(pod, v.Name); ok && one.PVCRef != nil && !seen[*one.PVCRef] {
				seen[*one.PVCRef] = true
				list = append(list, one)
			}
		}
	}
	return list
}
