package daemon

import (
	"runtime"
	"sync"
	"time"
)

// processors are those that Go runs on. What the supervisor has to do as a rule, a
// launch or an exit, is so short that it takes longer to wake up a second
// processor for a part of it; also, a fork interrupts all others on which it runs.
// So it has one, beside its system calls, unless there is output without a pause.
type processors struct {
	all   int // how many there may be
	pause time.Duration

	mu     sync.Mutex
	since  time.Time // of the work that goes on, zero if none does
	wide   bool
	narrow *time.Timer // back to one
}

const (
	// busyAfter is how long there must be work without a pause for more than one
	// processor.
	busyAfter = 20 * time.Millisecond
	// pauseAfter is how long there must be none for one to do.
	pauseAfter = time.Second
)

func newProcessors() *processors {
	return &processors{all: runtime.GOMAXPROCS(1), pause: pauseAfter}
}

// working is told of work that began, or goes on.
func (p *processors) working(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		p.since = now
		if p.narrow != nil {
			p.narrow.Stop()
		}
	}
	if !p.wide && p.all > 1 && now.Sub(p.since) >= busyAfter {
		p.wide = true
		runtime.GOMAXPROCS(p.all)
	}
}

// resting is told that there is no more work.
func (p *processors) resting() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = time.Time{}
	if p.wide {
		p.narrow = time.AfterFunc(p.pause, p.back)
	}
}

func (p *processors) back() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wide && p.since.IsZero() {
		p.wide = false
		runtime.GOMAXPROCS(1)
	}
}
