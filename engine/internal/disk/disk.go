// Package disk tells how much disk the writable layers of containers take. Where
// a layer is a project of a file system that counts those (package sys/quota), the
// kernel is asked, which takes microseconds. Else the layer's tree is walked, but
// not for every question:
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
// still open is not seen, as it is not by du. The kernel does see it, and in its
// figures is the directory that an overlay works in, some KiB, and what XFS keeps
// ready behind growing files.
//
// A container without a user namespace can take its files out of their project.
// So its layer is walked, too, every ten minutes while the container runs, and
// what that finds beyond the kernel's figure is added to it from then on: figures
// are never below those of the last walk. As long as there is something to add,
// walks follow each other by the rules above.
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

	"podstead/sys/quota"
)

// How old a walk's figures may get, at least, before a layer is walked again: those
// that are told, and those that the kernel's are compared with.
const (
	minAge     = 10 * time.Second
	auditAge   = 10 * time.Minute
	costFactor = 20
)

// Usage is what a layer takes.
type Usage struct {
	Bytes, Inodes uint64
	At            time.Time // when it took that
	// Partial says that there is more: something could not be looked at.
	Partial bool
}

// Tree is what a layer is on disk.
type Tree struct {
	Dir     string
	Project uint32 // of its files, if the file system counts projects, else 0
	// Sealed says that who writes to it cannot change the project of files.
	Sealed bool
}

// Layer remembers the figures of one layer. The zero value is ready.
type Layer struct {
	mu    sync.Mutex
	usage Usage
	known bool
	// hidden is what the last walk found that the kernel does not count.
	hidden   quota.Usage
	warned   bool
	walked   time.Time     // when the last walk began; zero: there was none
	activity uint64        // the container's, then
	took     time.Duration // the last walk
	counting chan struct{} // closed when the walk under way, or to come, is over
}

// Usage returns the last figures; ok is false if there are none yet.
func (l *Layer) Usage() (u Usage, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.usage, l.known
}

// Projects tells what the files of a project take; *quota.Pool does.
type Projects interface {
	Usage(project uint32) (quota.Usage, error)
}

// Surveyor counts layers.
type Surveyor struct {
	life     context.Context
	spawn    func(func()) // starts a goroutine that is waited for at the end
	log      *slog.Logger
	projects Projects // nil: walk all

	mu      sync.Mutex
	queue   []job
	working bool
	refused bool // the kernel has not told of a project, and that is logged
}

type job struct {
	layer    *Layer
	tree     Tree
	activity uint64
}

// NewSurveyor makes one that works until life ends, in goroutines that spawn
// starts. Without projects all layers are walked.
func NewSurveyor(life context.Context, spawn func(func()), log *slog.Logger, projects Projects) *Surveyor {
	return &Surveyor{life: life, spawn: spawn, log: log, projects: projects}
}

// Survey sees to it that a layer's figures are as new as the rules have it.
// activity grows whenever the container runs. The result is nil if the figures
// are good, and else closed when they are.
func (s *Surveyor) Survey(l *Layer, t Tree, activity uint64) <-chan struct{} {
	now := time.Now()
	counted, ok := s.ask(&t)
	l.mu.Lock()
	defer l.mu.Unlock()
	age := minAge
	if ok {
		l.tell(counted, now)
		if t.Sealed {
			return nil
		}
		if l.hidden == (quota.Usage{}) {
			age = auditAge
		}
	}
	switch {
	case l.counting != nil:
	case !l.walked.IsZero() && l.activity == activity:
		l.usage.At = now
		return nil
	case !l.walked.IsZero() && now.Sub(l.walked) < max(age, costFactor*l.took):
		return nil
	default:
		l.counting = make(chan struct{})
		s.enqueue(job{l, t, activity})
	}
	if age == auditAge && !l.walked.IsZero() {
		return nil // the figures are good as they are, most likely
	}
	return l.counting
}

// ask has the kernel tell what a tree takes. A tree of which it does not tell has
// no project from then on.
func (s *Surveyor) ask(t *Tree) (u quota.Usage, ok bool) {
	if t.Project == 0 || s.projects == nil {
		t.Project = 0
		return u, false
	}
	u, err := s.projects.Usage(t.Project)
	if err == nil {
		return u, true
	}
	t.Project = 0
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.refused {
		s.refused = true
		s.log.Warn("the kernel does not tell of a project any more; writable layers are walked", "error", err)
	}
	return u, false
}

// tell sets the figures to what the kernel counts and what it does not.
func (l *Layer) tell(counted quota.Usage, at time.Time) {
	l.usage = Usage{Bytes: counted.Bytes + l.hidden.Bytes, Inodes: counted.Inodes + l.hidden.Inodes, At: at}
	l.known = true
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

// count walks a layer. One that cannot be walked, which is one on its way out,
// keeps its figures.
func (s *Surveyor) count(j job) {
	before, _ := s.ask(&j.tree)
	began := time.Now()
	u, err := walk(s.life, j.tree.Dir)
	u.At = began
	after, counted := s.ask(&j.tree)
	l := j.layer
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() {
		close(l.counting)
		l.counting = nil
	}()
	if err != nil {
		return
	}
	if u.Partial && !l.usage.Partial && !counted {
		s.log.Warn("not all of a writable layer could be counted", "directory", j.tree.Dir, "bytes", u.Bytes, "inodes", u.Inodes)
	}
	l.walked, l.activity, l.took = began, j.activity, time.Since(began)
	if !counted {
		l.usage, l.known, l.hidden = u, true, quota.Usage{}
		return
	}
	// What changed meanwhile is not hidden.
	hidden := quota.Usage{Bytes: beyond(u.Bytes, before.Bytes, after.Bytes), Inodes: beyond(u.Inodes, before.Inodes, after.Inodes)}
	if hidden != (quota.Usage{}) && l.hidden != (quota.Usage{}) && !l.warned {
		l.warned = true // twice: what is moved during a walk may be met twice
		s.log.Warn("a container has taken files out of their quota project; its writable layer is walked",
			"directory", j.tree.Dir, "bytes", hidden.Bytes, "inodes", hidden.Inodes)
	}
	l.hidden = hidden
	l.tell(after, time.Now())
}

// beyond is how much n is above both a and b.
func beyond(n, a, b uint64) uint64 { return n - min(n, max(a, b)) }
