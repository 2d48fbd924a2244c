package image

import (
	"slices"
	"strings"
	"sync"
	"time"

	"podstead/image/internal/registry"
)

// pull is one pull of a reference under way, shared by its callers.
type pull struct {
	ref     string
	started time.Time
	cancel  func()
	callers int           // guarded by Store.mu
	done    chan struct{} // closed at the end; img and err are set then
	img     Image
	err     error

	mu     sync.Mutex
	stage  string
	repo   *registry.Repository // nil: none is asked yet
	layers []watched
}

// watched is what the progress of a layer is read from.
type watched struct {
	digest string
	total  int64
	work   *layerWork // nil: shared
}

// The methods work on nil too, for a load that nobody watches.

func (p *pull) setStage(stage string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = stage
}

// asks notes the repository that the image comes from.
func (p *pull) asks(repo *registry.Repository) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.repo = repo
}

// host is the one that was asked last: a mirror, or the reference's own.
func (p *pull) host() string {
	if p == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.repo == nil {
		return ""
	}
	return p.repo.Host()
}

func (p *pull) watch(layers []*assembledLayer) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = "fetching"
	p.layers = nil
	for _, l := range layers {
		p.layers = append(p.layers, watched{l.rec.Blob.Digest, l.rec.Blob.Size, l.work})
	}
}

func (p *pull) setWork(layer int, w *layerWork) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers[layer].work = w
}

// Pulls returns all pulls under way, oldest first.
func (s *Store) Pulls() []Progress {
	s.mu.Lock()
	var ps []*pull
	for _, p := range s.pulls {
		ps = append(ps, p)
	}
	s.mu.Unlock()
	list := make([]Progress, 0, len(ps))
	for _, p := range ps {
		list = append(list, p.progress())
	}
	slices.SortFunc(list, func(a, b Progress) int {
		if c := a.Started.Compare(b.Started); c != 0 {
			return c
		}
		return strings.Compare(a.Ref, b.Ref)
	})
	return list
}

func (p *pull) progress() Progress {
	host := p.host()
	p.mu.Lock()
	defer p.mu.Unlock()
	pr := Progress{Ref: p.ref, Host: host, Stage: p.stage, Started: p.started}
	for _, l := range p.layers {
		pr.Layers = append(pr.Layers, l.progress())
	}
	return pr
}

func (l watched) progress() LayerProgress {
	lp := LayerProgress{Digest: l.digest, Total: l.total, Stage: "shared"}
	if l.work == nil {
		return lp
	}
	select {
	case <-l.work.blobReady:
	default:
		lp.Stage = "waiting"
		return lp
	}
	lp.Unpacked = l.work.unpacked.Load()
	lp.Stage = "fetching"
	if b := l.work.blob; b != nil {
		written, ended, _, _ := b.state()
		lp.Bytes, lp.Retries = written, int(b.retries.Load())
		if ended {
			lp.Stage = "unpacking"
		}
		if t := time.Since(b.started).Seconds(); t > 0 && !ended {
			lp.BytesPerSecond = int64(float64(written) / t)
		}
	}
	select {
	case <-l.work.done:
		lp.Stage = "done"
	default:
	}
	return lp
}
