package daemon

import (
	"sync"
	"time"

	"podstead/supervisor/internal/crilog"
)

// scratch is the memory that a job works in: what idle containers do not need.
type scratch struct {
	read [64 << 10]byte
	log  crilog.Scratch
}

// pool runs the jobs of all strands on a few goroutines, which exist only while
// there is work. When every one of them is stuck (a log on a dead disk), it
// adds more, so that the others go on.
type pool struct {
	memory     sync.Pool // of *scratch
	processors *processors

	mu      sync.Mutex
	queue   []*strand
	workers int
	limit   int    // of workers
	done    uint64 // jobs, to see progress
	relief  *time.Timer
}

const (
	reliefAfter = 50 * time.Millisecond
	maxWorkers  = 256
)

func newPool(p *processors) *pool {
	return &pool{
		memory:     sync.Pool{New: func() any { return new(scratch) }},
		processors: p,
		limit:      p.all + 2,
	}
}

// A strand is a queue of jobs that run one after another, in order, and in
// parallel with those of other strands. The state that only a strand's jobs
// touch needs no lock.
type strand struct {
	pool *pool
	// jobs and queued are guarded by pool.mu.
	jobs   []func(*scratch)
	queued bool
}

// do adds a job. It never blocks.
func (s *strand) do(job func(*scratch)) {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	s.jobs = append(s.jobs, job)
	if !s.queued {
		s.queued = true
		p.queue = append(p.queue, s)
		p.hire()
	}
}

// idle tells whether no job waits or runs.
func (p *pool) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers == 0 && len(p.queue) == 0
}

// hire starts a worker, or a timer that looks whether one more is needed.
func (p *pool) hire() {
	if p.workers < p.limit {
		p.workers++
		go p.work()
		return
	}
	if p.relief != nil || p.limit >= maxWorkers {
		return
	}
	seen := p.done
	p.relief = time.AfterFunc(reliefAfter, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.relief = nil
		if len(p.queue) == 0 {
			return
		}
		if p.done == seen {
			p.limit++
		}
		p.hire()
	})
}

func (p *pool) work() {
	mem := p.memory.Get().(*scratch)
	p.mu.Lock()
	for len(p.queue) > 0 {
		s := p.queue[0]
		p.queue[0] = nil
		p.queue = p.queue[1:]
		job := s.jobs[0]
		s.jobs[0] = nil
		s.jobs = s.jobs[1:]
		p.mu.Unlock()
		p.processors.working(time.Now())
		job(mem)
		p.mu.Lock()
		p.done++
		if len(s.jobs) > 0 {
			p.queue = append(p.queue, s) // the others first
		} else {
			s.jobs, s.queued = nil, false
		}
	}
	p.queue = nil
	p.workers--
	if p.workers < p.processors.all+2 {
		p.limit = p.processors.all + 2
	}
	if p.workers == 0 {
		p.processors.resting()
	}
	p.mu.Unlock()
	p.memory.Put(mem)
}
