package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// retries is how often one host is asked again without any progress.
const retries = 3

const manifestTypes = ocispec.MediaTypeImageIndex + ", " + ocispec.MediaTypeImageManifest +
	", application/vnd.docker.distribution.manifest.list.v2+json" +
	", application/vnd.docker.distribution.manifest.v2+json"

// Manifest is a manifest or index as a registry gave it, its digest computed.
type Manifest struct {
	Data      []byte
	MediaType string
	Digest    digest.Digest
}

// Resolve fetches what the reference names. A tag is only asked of hosts that
// may say what it means; a digest of all.
func (r *Repository) Resolve(ctx context.Context, limit int64) (Manifest, error) {
	if d, ok := r.name.(reference.Digested); ok {
		return r.Manifest(ctx, d.Digest(), limit)
	}
	tag := "latest"
	if t, ok := r.name.(reference.Tagged); ok {
		tag = t.Tag()
	}
	return r.manifest(ctx, tag, "", docker.HostCapabilityResolve, limit)
}

// Manifest fetches a manifest by digest.
func (r *Repository) Manifest(ctx context.Context, d digest.Digest, limit int64) (Manifest, error) {
	return r.manifest(ctx, d.String(), d, docker.HostCapabilityPull, limit)
}

func (r *Repository) manifest(ctx context.Context, ref string, want digest.Digest, need docker.HostCapabilities, limit int64) (m Manifest, err error) {
	err = r.eachHost(ctx, need, func(_ int, h docker.RegistryHost) error {
		m, err = r.manifestFrom(ctx, h, ref, want, limit)
		return err
	})
	return m, err
}

func (r *Repository) manifestFrom(ctx context.Context, h docker.RegistryHost, ref string, want digest.Digest, limit int64) (Manifest, error) {
	resp, err := r.get(ctx, h, "manifests/"+ref, http.Header{"Accept": {manifestTypes}})
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return Manifest{}, err
	}
	if int64(len(b)) > limit {
		return Manifest{}, fmt.Errorf("%w: manifest from %s has more than %d bytes", ErrTooLarge, h.Host, limit)
	}
	m := Manifest{Data: b, Digest: digest.FromBytes(b)}
	m.MediaType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
	if want == "" {
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	if want != "" && want.Algorithm() == digest.SHA256 && want != m.Digest {
		return Manifest{}, fmt.Errorf("%w: manifest from %s is %s, not %.80s", ErrDigest, h.Host, m.Digest, want)
	}
	return m, nil
}

// eachHost asks hosts in their order until one has done it, each again while
// its failure may pass.
func (r *Repository) eachHost(ctx context.Context, need docker.HostCapabilities, ask func(i int, h docker.RegistryHost) error) error {
	var errs []error
	for i, h := range r.hosts {
		if !h.Capabilities.Has(need) {
			continue
		}
		for try := 0; ; try++ {
			err := ask(i, h)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if try == retries || !isTransient(err) {
				errs = append(errs, err)
				break
			}
			if err := pause(ctx, try, err); err != nil {
				return err
			}
		}
	}
	return allFailed(errs)
}

// allFailed joins what all hosts said. The class of the whole is that of the
// last one, which is the reference's own host.
func allFailed(errs []error) error {
	switch len(errs) {
	case 0:
		return fmt.Errorf("%w: no host may answer that", ErrConfig)
	case 1:
		return errs[0]
	}
	last := errs[len(errs)-1]
	var before []string
	for _, e := range errs[:len(errs)-1] {
		before = append(before, e.Error())
	}
	return fmt.Errorf("%w (before that: %s)", last, strings.Join(before, "; "))
}

// transfer is a blob on its way to a writer.
type transfer struct {
	r       *Repository
	desc    ocispec.Descriptor
	w       io.Writer
	hash    hash.Hash
	offset  int64 // bytes written and hashed
	buf     []byte
	noRange bool // a host could not do with the range asked for
	retried func()
}

// writeError is a failure on this side, which no registry can help.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// Blob writes a blob to w and returns nil only if digest and size are right. A
// transfer that breaks off or stalls goes on from there, on the same host or
// the next one. If a host's bytes were wrong they are in w already: the error
// is then an ErrDigest, and also an ErrElsewhere if a second call can ask
// another host.
func (r *Repository) Blob(ctx context.Context, d ocispec.Descriptor, w io.Writer, retried func()) error {
	t := &transfer{r: r, desc: d, w: w, hash: sha256.New(), buf: make([]byte, 256<<10), retried: retried}
	var errs []error
	left := 0
	for i := range r.hosts {
		if !r.isBad(i, d.Digest) {
			left++
		}
	}
	for i, h := range r.hosts {
		if r.isBad(i, d.Digest) {
			continue
		}
		left--
		err := t.from(ctx, h)
		var local *writeError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &local):
			return local.err
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrDigest):
			r.markBad(i, d.Digest)
			if left > 0 {
				err = fmt.Errorf("%w (%w)", err, ErrElsewhere)
			}
			return err
		}
		r.cfg.Log.Info("registry does not give a blob", "host", h.Host, "blob", d.Digest.String(), "err", err)
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return fmt.Errorf("%w: every host gave wrong bytes for %s", ErrDigest, d.Digest)
	}
	return allFailed(errs)
}

func (r *Repository) isBad(host int, d digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bad[badBlob{host, d}]
}

func (r *Repository) markBad(host int, d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad[badBlob{host, d}] = true
}

// from goes on with the transfer from one host.
func (t *transfer) from(ctx context.Context, h docker.RegistryHost) error {
	// A host that sends a little each time before it breaks off is not asked
	// for ever.
	const mostRetries = 50
	for try, total := 0, 0; ; total++ {
		before := t.offset
		err := t.once(ctx, h)
		if err == nil {
			return nil
		}
		if t.offset > before {
			try = 0
		}
		var answer *httpError
		if errors.As(err, &answer) && answer.status == http.StatusRequestedRangeNotSatisfiable && !t.noRange {
			t.noRange = true
			continue
		}
		if ctx.Err() != nil || try == retries || total == mostRetries || !isTransient(err) {
			return err
		}
		if err := pause(ctx, try, err); err != nil {
			return err
		}
		try++
		t.retried()
	}
}

func (t *transfer) once(ctx context.Context, h docker.RegistryHost) error {
	header := http.Header{}
	if t.offset > 0 && !t.noRange {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", t.offset, t.desc.Size-1))
	}
	resp, err := t.r.get(ctx, h, "blobs/"+t.desc.Digest.String(), header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	skip := int64(0)
	if resp.StatusCode == http.StatusPartialContent {
		var first, last int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &first, &last); err != nil || first != t.offset {
			return fmt.Errorf("%w: %s answers bytes from %d with %.60q", ErrUnavailable, h.Host, t.offset, resp.Header.Get("Content-Range"))
		}
	} else {
		skip = t.offset // it has no ranges: begin again, and pass over what we have
	}
	if n := resp.ContentLength; n >= 0 && n-skip != t.desc.Size-t.offset {
		return fmt.Errorf("%w: %s has %d bytes of blob %s, the manifest says %d",
			ErrDigest, h.Host, t.offset-skip+n, t.desc.Digest, t.desc.Size)
	}
	if err := t.read(resp.Body, skip); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, t.hash); got != t.desc.Digest {
		return fmt.Errorf("%w: blob from %s is %s, not %s", ErrDigest, h.Host, got, t.desc.Digest)
	}
	return nil
}

func (t *transfer) read(body io.Reader, skip int64) error {
	for {
		n, err := body.Read(t.buf)
		b := t.buf[:n]
		if m := min(skip, int64(n)); m > 0 {
			skip -= m
			b = b[m:]
		}
		if int64(len(b)) > t.desc.Size-t.offset {
			return fmt.Errorf("%w: blob %s is longer than %d bytes", ErrDigest, t.desc.Digest, t.desc.Size)
		}
		if len(b) > 0 {
			t.hash.Write(b)
			if _, err := t.w.Write(b); err != nil {
				return &writeError{err}
			}
			t.offset += int64(len(b))
		}
		if err == io.EOF {
			if t.offset < t.desc.Size {
				return fmt.Errorf("%w: blob %s breaks off at %d of %d bytes", ErrUnavailable, t.desc.Digest, t.offset, t.desc.Size)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
