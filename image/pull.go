package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"podstead/image/internal/layer"
	"podstead/image/internal/registry"
)

// Pull brings an image for this machine's platform and records it under ref
// ("busybox", "host:5000/a/b:tag", "name@sha256:…"). A tag is asked for anew
// each time; layers that are there are not fetched again. Concurrent pulls of
// the same reference with the same credential join; other concurrent pulls
// share layers under way. When all callers have cancelled, the pull ends and
// nothing of it stays.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth) (Image, error) {
	name, err := parseName(ref)
	if err != nil {
		return Image{}, &PullError{ref, ReasonInvalidName, err}
	}
	p, err := s.joinPull(ctx, name, auth)
	if err != nil {
		return Image{}, pullError(name.String(), err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	s.leavePull(p)
	select {
	case <-p.done:
		return p.img, p.err
	default:
		return Image{}, pullError(name.String(), ctx.Err())
	}
}

// joinPull joins a pull under way or starts it, apart from any caller but for
// the trace that it belongs to.
func (s *Store) joinPull(caller context.Context, name reference.Named, auth Auth) (*pull, error) {
	// Who has not shown the same credential must not profit from it.
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", []string{auth.Username, auth.Password,
		auth.IdentityToken, auth.RegistryToken, auth.ServerAddress}))
	key := name.String() + " " + string(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pulls[key]; p != nil && p.callers > 0 {
		p.callers++
		return p, nil
	}
	if s.closed {
		return nil, context.Canceled
	}
	ctx, cancel := context.WithCancel(trace.ContextWithSpan(s.ctx, trace.SpanFromContext(caller)))
	p := &pull{ref: name.String(), stage: "resolving", started: time.Now(),
		cancel: cancel, callers: 1, done: make(chan struct{})}
	s.pulls[key] = p
	s.work.Go(func() {
		defer cancel()
		p.img, p.err = s.pullImage(ctx, name, auth, p)
		if p.err != nil {
			p.err = pullError(p.ref, p.err)
			s.log.Warn("image not pulled", "image", p.ref, "took", time.Since(p.started), "err", p.err)
		} else {
			s.log.Info("image pulled", "image", p.ref, "id", p.img.ID, "took", time.Since(p.started))
		}
		s.mu.Lock()
		if s.pulls[key] == p {
			delete(s.pulls, key)
		}
		s.mu.Unlock()
		close(p.done)
	})
	return p, nil
}

// leavePull ends the pull when its last caller goes, and waits until nothing of
// it is left.
func (s *Store) leavePull(p *pull) {
	s.mu.Lock()
	p.callers--
	last := p.callers == 0
	s.mu.Unlock()
	if last {
		p.cancel()
		<-p.done
	}
}

func (s *Store) pullImage(ctx context.Context, name reference.Named, auth Auth, p *pull) (Image, error) {
	how := s.fetching.Load()
	repo, err := registry.Open(ctx, registry.Config{CertsDir: how.CertsDir, Stall: how.StallTimeout, Log: s.log},
		name, registry.Auth(auth))
	if err != nil {
		return Image{}, err
	}
	defer repo.Close()
	p.asks(repo)
	resolving, end := span(ctx, "resolve", attribute.String("container.image.name", name.String()))
	a, err := s.resolve(resolving, repo, name)
	end(err, append(a.found(), attribute.String("server.address", repo.Host()))...)
	if err != nil {
		return Image{}, err
	}
	a.progress = p
	return s.assemble(ctx, a)
}

// resolve finds the image that a name means for this machine, and fetches its
// manifest and configuration, but no layer.
func (s *Store) resolve(ctx context.Context, repo *registry.Repository, name reference.Named) (*assembly, error) {
	m, err := repo.Resolve(ctx, maxManifest)
	if err != nil {
		return nil, err
	}
	a := &assembly{fetcher: remote{repo}}
	if _, ok := name.(reference.Tagged); ok {
		a.tags = []string{name.String()}
	}
	a.digests = []string{name.Name() + "@" + m.Digest.String()}
	doc, err := parseDocument(m.Data, m.MediaType)
	const depth = 3
	for n := 0; err == nil && doc.Manifests != nil; n++ {
		if n == depth {
			return nil, invalid("indexes are nested too deep")
		}
		var d ocispec.Descriptor
		if d, err = choose(doc.Manifests); err != nil {
			return nil, err
		}
		if err := checkDescriptor(d, maxManifest); err != nil {
			return nil, invalid("index: %w", err)
		}
		if m, err = repo.Manifest(ctx, d.Digest, maxManifest); err != nil {
			return nil, err
		}
		doc, err = parseDocument(m.Data, m.MediaType)
	}
	if err != nil {
		return nil, err
	}
	if err := checkManifest(doc); err != nil {
		return nil, err
	}
	a.doc, a.rawDoc = doc, m.Data
	a.manifest = blobRecord{m.Digest.String(), doc.MediaType, int64(len(m.Data))}
	if a.rawConf, err = s.fetchConfig(ctx, repo, *doc.Config); err != nil {
		return nil, err
	}
	a.config, err = checkConfig(a.rawConf, len(doc.Layers))
	return a, err
}

// fetchConfig brings a configuration, from the store if it is there.
func (s *Store) fetchConfig(ctx context.Context, repo *registry.Repository, d ocispec.Descriptor) ([]byte, error) {
	s.mu.Lock()
	_, have := s.images[d.Digest.String()]
	s.mu.Unlock()
	if have {
		b, err := s.readSmallBlob(blobRecord{d.Digest.String(), d.MediaType, d.Size})
		if err == nil && int64(len(b)) == d.Size {
			return b, nil
		}
	}
	const attempts = 4
	for n := 1; ; n++ {
		var buf bytes.Buffer
		err := repo.Blob(ctx, d, &buf, func() {})
		if errors.Is(err, registry.ErrElsewhere) && n < attempts {
			continue
		}
		return buf.Bytes(), err
	}
}

// remote is a registry as the fetcher of an image's blobs.
type remote struct{ repo *registry.Repository }

func (r remote) fetch(ctx context.Context, d ocispec.Descriptor, w io.Writer, retried func()) error {
	err := r.repo.Blob(ctx, d, w, retried)
	if errors.Is(err, registry.ErrElsewhere) {
		return &retryElsewhereError{err}
	}
	return err
}

func (r remote) local(ocispec.Descriptor) string { return "" }

// pullError names the reason of a failure.
func pullError(ref string, err error) error {
	return &PullError{ref, reason(err), err}
}

func reason(err error) string {
	var known *reasonError
	var format *layer.FormatError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return ReasonCancelled
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return ReasonNoSpace
	case errors.As(err, &known):
		return known.reason
	case errors.Is(err, registry.ErrDigest):
		return ReasonDigestMismatch
	case errors.As(err, &format), errors.Is(err, registry.ErrTooLarge):
		return ReasonInvalidImage
	case errors.Is(err, registry.ErrUnauthorized):
		return ReasonUnauthorized
	case errors.Is(err, registry.ErrNotFound):
		return ReasonNotFound
	case errors.Is(err, registry.ErrUnavailable):
		return ReasonUnavailable
	}
	return ReasonInternal
}
