package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/sys"
)

// Count is how far a probe is on its way to a threshold.
type Count struct {
	OK bool
	N  int32 // equal results in a row; no more than the threshold says
	// At is when the result came that changed it; the probe is due whole periods
	// after that.
	At time.Time
	// Probe tells definitions apart: counts of another one say nothing.
	Probe string
}

// Counts are those of one container, by the kind of probe.
type Counts map[string]Count

// add counts a result and tells whether anything is different.
func (c *Count) add(p *corev1.Probe, ok bool, at time.Time) (changed bool) {
	threshold := p.FailureThreshold
	if ok {
		threshold = p.SuccessThreshold
	}
	if c.N > 0 && c.OK == ok && c.N >= threshold {
		return false
	}
	if c.N == 0 || c.OK != ok {
		c.OK, c.N = ok, 0
	}
	c.N++
	c.At, c.Probe = at, name(p)
	return true
}

// reached tells whether as many results came as it takes.
func (c *Count) reached(p *corev1.Probe) bool {
	if c.OK {
		return c.N >= p.SuccessThreshold
	}
	return c.N >= p.FailureThreshold
}

// next is how long it is until the probe is due again.
func (c *Count) next(now time.Time, period time.Duration) (wait time.Duration, known bool) {
	past := now.Sub(c.At)
	if c.N == 0 || past < 0 { // the clock was set back
		return 0, false
	}
	return period - past%period, true
}

// name is the same for equal definitions only.
func name(p *corev1.Probe) string {
	data, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	h := fnv.New64a()
	h.Write(data)
	return fmt.Sprintf("%x", h.Sum64())
}

// Book keeps the counts of one pod's containers over a restart of the agent, in a
// file on tmpfs that is written when a count changes: not by probes that go on
// saying the same. A container is known by its ID, so that no count is ever taken
// for another instance's. Nil is a book that keeps nothing.
type Book struct {
	path string

	mu     sync.Mutex
	counts map[string]Counts // by container ID
}

// OpenBook reads the file, if it is there and whole.
func OpenBook(path string) *Book {
	b := &Book{path: path, counts: map[string]Counts{}}
	if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &b.counts) != nil || b.counts == nil {
		b.counts = map[string]Counts{}
	}
	return b
}

// Of returns a container's counts.
func (b *Book) Of(id string) Counts {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.counts[id])
}

// Keep writes down a count.
func (b *Book) Keep(id, kind string, c Count) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.counts[id] == nil {
		b.counts[id] = Counts{}
	}
	b.counts[id][kind] = c
	return b.write()
}

// Only forgets all containers but those that run.
func (b *Book) Only(run map[string]bool) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.counts)
	maps.DeleteFunc(b.counts, func(id string, _ Counts) bool { return !run[id] })
	if len(b.counts) == before {
		return nil
	}
	return b.write()
}

func (b *Book) write() error {
	if len(b.counts) == 0 {
		if err := os.Remove(b.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("counts of probes: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(b.counts)
	if err == nil {
		err = sys.WriteFileAtomic(b.path, data, 0o600, false)
	}
	if err != nil {
		return fmt.Errorf("counts of probes: %w", err)
	}
	return nil
}
