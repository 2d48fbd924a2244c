// Package disk tells how much disk the writable layers of containers take,
// without walking their trees for every question:
//
//   - A layer is counted when somebody asks, never otherwise.
//   - It is not counted again while its container has not used the processor:
//     who has not run has not written.
//   - It is not counted again within 10 seconds, nor within 20 times the time
//     that the last count took.
//   - One layer is counted at a time, and a count that is not over at once takes
//     a fifth of one processor at most. Who asks waits a moment for it and else
//     gets the last figures, with the time they are of.
//
// Memory and descriptors are bounded whatever the container has built. Hard
// links count once, sparse files by their blocks; a file that is deleted but
// still open is not seen, as it is not by du.
//
// Where nothing is known of a container's use of the processor the figures are
// as old as the other rules make them. The package is called by the engine
// alone; what it knows is lost with the process.
package disk

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// How old figures may get, at least, before a layer is counted again.
const (
	minAge     = 10 * time.Second
	costFactor = 20
)

// Usage is what a layer takes.
type Usage struct {
	Bytes, Inodes uint64
	At            time.Time // when it took that
	// Partial says that there is more: something could not be looked at.
	Partial bool
}

// Layer remembers the figures of one layer. The zero value is ready.
type Layer struct {
	mu       sync.Mutex
	usage    Usage
	known    bool
	activity uint64        // the container's, when the last count began
	took     time.Duration // the last count
	counting chan struct{} // closed when the count under way, or to come, is over
}

// Usage returns the last figures; ok is false if there are none yet.
func (l *Layer) Usage() (u Usage, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.usage, l.known
}

// Surveyor counts layers.
type Surveyor struct {
	life  context.Context
	spawn func(func()) // starts a goroutine that is waited for at the end
	log   *slog.Logger

	mu      sync.Mutex
	queue   []job
	working bool
}

type job struct {
	layer    *Layer
	dir      string
	activity uint64
}

// NewSurveyor makes one that works until life ends, in goroutines that spawn
// starts.
func NewSurveyor(life context.Context, spawn func(func()), log *slog.Logger) *Surveyor {
	return &Surveyor{life: life, spawn: spawn, log: log}
}

// Survey sees to it that a layer's figures are as new as the rules have it.
// activity grows whenever the container runs. The result is nil if the figures
// are good, and else closed when they are.
func (s *Surveyor) Survey(l *Layer, dir string, activity uint64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	switch {
	case l.counting != nil:
		return l.counting
	case l.known && l.activity == activity:
		l.usage.At = now
		return nil
	case l.known && now.Sub(l.usage.At) < max(minAge, costFactor*l.took):
		return nil
	}
	l.counting = make(chan struct{})
	s.enqueue(job{l, dir, activity})
	return l.counting
}

func (s *Surveyor) enqueue(j job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, j)
	if !s.working {
		s.working = true
		s.spawn(s.work)
	}
}

// work counts until nothing is left to count.
func (s *Surveyor) work() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.working = false
			s.mu.Unlock()
			return
		}
		j := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		s.count(j)
	}
}

// count gives a layer new figures. A layer that cannot be counted, which is one
// on its way out, keeps the old ones.
func (s *Surveyor) count(j job) {
	began := time.Now()
	u, err := walk(s.life, j.dir)
	u.At = began
	l := j.layer
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && u.Partial && !l.usage.Partial {
		s.log.Warn("not all of a writable layer could be counted", "directory", j.dir, "bytes", u.Bytes, "inodes", u.Inodes)
	}
	if err == nil {
		l.usage, l.known, l.activity, l.took = u, true, j.activity, time.Since(began)
	}
	close(l.counting)
	l.counting = nil
}
