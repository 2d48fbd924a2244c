package agent

import (
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
	"podstead/agent/internal/flight"
)

// board shows the pods as the workers last described them, and tells watchers
// what changes. What is on it is never changed, only replaced.
type board struct {
	mu       sync.Mutex
	pods     map[string]posted // by UID
	watchers map[*watcher]bool
}

type posted struct {
	pod    *corev1.Pod
	why    client.Why
	flight *flight.Recorder
	moment moment
}

// watcher is one subscriber. A slow one is cut off rather than waited for.
type watcher struct {
	ch chan client.Change
}

// watchBuffer is how many changes a watcher may be behind.
const watchBuffer = 1024

func newBoard() *board {
	return &board{pods: map[string]posted{}, watchers: map[*watcher]bool{}}
}

func (b *board) publish(p posted) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kind, uid := client.Modified, string(p.pod.UID)
	if _, ok := b.pods[uid]; !ok {
		kind = client.Added
	}
	b.pods[uid] = p
	b.send(client.Change{Type: kind, Pod: p.pod})
}

func (b *board) has(uid string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.pods[uid]
	return ok
}

func (b *board) remove(uid string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.pods[uid]; ok {
		delete(b.pods, uid)
		b.send(client.Change{Type: client.Gone, Pod: p.pod})
	}
}

// event tells watchers of an event of a pod.
func (b *board) event(namespace, name string, e corev1.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.pods {
		if p.pod.Namespace == namespace && p.pod.Name == name {
			b.send(client.Change{Type: client.Modified, Pod: p.pod, Event: &e})
			return
		}
	}
}

func (b *board) send(c client.Change) {
	for w := range b.watchers {
		select {
		case w.ch <- c:
		default:
			delete(b.watchers, w)
			close(w.ch)
		}
	}
}

// list returns all pods, by namespace and name.
func (b *board) list() []*corev1.Pod {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sorted()
}

func (b *board) sorted() []*corev1.Pod {
	out := make([]*corev1.Pod, 0, len(b.pods))
	for _, p := range b.pods {
		out = append(out, p.pod)
	}
	slices.SortFunc(out, func(x, y *corev1.Pod) int {
		if x.Namespace != y.Namespace {
			return strings.Compare(x.Namespace, y.Namespace)
		}
		return strings.Compare(x.Name, y.Name)
	})
	return out
}

func (b *board) get(namespace, name string) (posted, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.pods {
		if p.pod.Namespace == namespace && p.pod.Name == name {
			return p, true
		}
	}
	return posted{}, false
}

// watch returns what is there and a channel of what follows, which is closed
// if the reader falls too far behind.
func (b *board) watch() (now []*corev1.Pod, changes <-chan client.Change, stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &watcher{ch: make(chan client.Change, watchBuffer)}
	b.watchers[w] = true
	return b.sorted(), w.ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watchers, w)
	}
}
