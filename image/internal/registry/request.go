package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/log"
	"github.com/distribution/reference"
)

// errStalled ends a request that makes no progress.
var errStalled = errors.New("no progress")

// get asks one host for a path below the repository ("manifests/latest"). It
// returns an answer with status 200 or 206; its body gives up when it stalls.
func (r *Repository) get(ctx context.Context, h docker.RegistryHost, path string, header http.Header) (*http.Response, error) {
	r.asked.Store(&h.Host)
	u := url.URL{Scheme: h.Scheme, Host: h.Host, Path: h.Path + "/" + reference.Path(r.name) + "/" + path}
	if r.isMirror(h) {
		u.RawQuery = url.Values{"ns": {reference.Domain(r.name)}}.Encode()
	}
	ctx = docker.ContextWithAppendPullRepositoryScope(log.WithLogger(ctx, r.quiet), reference.Path(r.name))
	var answers []*http.Response
	const attempts = 4 // a first one, a token, a fresh token
	for {
		resp, err := r.once(ctx, h, u.String(), header)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			return resp, nil
		}
		err = statusError(resp)
		resp.Body.Close()
		answers = append(answers, resp)
		if resp.StatusCode != http.StatusUnauthorized || len(answers) == attempts || h.Authorizer == nil {
			return nil, err
		}
		if realmErr := checkRealm(resp); realmErr != nil {
			return nil, realmErr
		}
		if authErr := h.Authorizer.AddResponses(ctx, answers); authErr != nil {
			return nil, fmt.Errorf("%w (%w)", err, authErr)
		}
	}
}

// once makes one request, whatever its answer.
func (r *Repository) once(ctx context.Context, h docker.RegistryHost, url string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for _, hdr := range []http.Header{h.Header, header} {
		for k, v := range hdr {
			req.Header[http.CanonicalHeaderKey(k)] = v
		}
	}
	req.Header.Set("User-Agent", "podstead")
	// What is compressed is compressed already, and digests are of that.
	req.Header.Set("Accept-Encoding", "identity")
	watch := time.AfterFunc(r.cfg.Stall, func() { cancel(errStalled) })
	if err := r.authorize(ctx, h, req); err != nil {
		watch.Stop()
		cancel(nil)
		return nil, err
	}
	resp, err := h.Client.Do(req)
	watch.Stop()
	if err != nil {
		err = transportError(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &watchedBody{resp.Body, ctx, cancel, watch, r.cfg.Stall}
	return resp, nil
}

func (r *Repository) authorize(ctx context.Context, h docker.RegistryHost, req *http.Request) error {
	if r.auth.RegistryToken != "" && r.isOurs(req.URL.Host) {
		req.Header.Set("Authorization", "Bearer "+r.auth.RegistryToken)
		return nil
	}
	if h.Authorizer == nil {
		return nil
	}
	err := h.Authorizer.Authorize(ctx, req)
	if err == nil {
		return nil
	}
	class := ErrUnavailable
	var status remoteerrors.ErrUnexpectedStatus
	if errors.Is(err, docker.ErrInvalidAuthorization) {
		class = ErrUnauthorized
	} else if errors.As(err, &status) && status.StatusCode < 500 && status.StatusCode != http.StatusTooManyRequests {
		class = ErrUnauthorized
	}
	return fmt.Errorf("%w: token for %s: %w", class, h.Host, transportCause(ctx, err))
}

// checkRealm refuses to send a credential in clear text where the registry
// itself is encrypted.
func checkRealm(resp *http.Response) error {
	for _, c := range auth.ParseAuthHeader(resp.Header) {
		realm := c.Parameters["realm"]
		if c.Scheme == auth.BearerAuth && resp.TLS != nil && !strings.HasPrefix(realm, "https://") {
			return fmt.Errorf("%w: %s sends for a token to %.200q, which is not https", ErrUnauthorized, resp.Request.URL.Host, realm)
		}
	}
	return nil
}

// checkRedirect follows redirects, which registries use for blobs. To another
// host go the question and the range, no credential and no configured header
// (CVE-2020-15157); from https it never goes to http.
func checkRedirect(req *http.Request, via []*http.Request) error {
	const most = 10
	if len(via) >= most {
		return fmt.Errorf("more than %d redirects", most)
	}
	first := via[0]
	// The scheme alone does not tell: a loopback registry named by https may
	// have been reached by http.
	if req.Response != nil && req.Response.TLS != nil && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %s://%s is refused", req.URL.Scheme, req.URL.Host)
	}
	req.Header.Del("Referer") // its query may be a signature
	if req.URL.Host == first.URL.Host && req.URL.Scheme == first.URL.Scheme {
		return nil
	}
	for k := range req.Header {
		switch k {
		case "Accept", "Accept-Encoding", "Range", "User-Agent":
		default:
			delete(req.Header, k)
		}
	}
	return nil
}

// watchedBody gives up when a Read lasts too long. The time between reads does
// not count: then it is we who are slow.
type watchedBody struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *time.Timer
	stall  time.Duration
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.Reset(b.stall)
	n, err := b.body.Read(p)
	b.watch.Stop()
	if err != nil && err != io.EOF {
		err = transportError(b.ctx, err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.Stop()
	b.cancel(nil)
	return b.body.Close()
}

func transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errStalled) {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, transportCause(ctx, err))
}

func transportCause(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	// The URL of a redirect is a credential if its query is a signature; errors
	// end in logs and events.
	var where *url.Error
	if errors.As(err, &where) {
		if u, perr := url.Parse(where.URL); perr == nil {
			return fmt.Errorf("%s %s://%s: %w", where.Op, u.Scheme, u.Host, where.Err)
		}
		return where.Err
	}
	return err
}

// httpError is an answer other than success.
type httpError struct {
	class      error
	host       string
	status     int
	message    string // of the registry, bounded and quoted
	retryAfter time.Duration
}

func (e *httpError) Error() string {
	s := fmt.Sprintf("%s answers %d %s", e.host, e.status, http.StatusText(e.status))
	if e.message != "" {
		s += ": " + e.message
	}
	return s
}

func (e *httpError) Unwrap() error { return e.class }

func statusError(resp *http.Response) error {
	e := &httpError{class: ErrUnavailable, host: resp.Request.URL.Host, status: resp.StatusCode}
	switch resp.StatusCode {
	case http.StatusNotFound:
		e.class = ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		e.class = ErrUnauthorized
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.retryAfter = time.Duration(min(s, 10)) * time.Second
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	var m struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &m) == nil && len(m.Errors) > 0 {
		e.message = fmt.Sprintf("%.60q %.200q", m.Errors[0].Code, m.Errors[0].Message)
	}
	return e
}

// isTransient says whether asking the same host again may help.
func isTransient(err error) bool {
	if !errors.Is(err, ErrUnavailable) {
		return false
	}
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return false
	}
	var h *httpError
	if errors.As(err, &h) {
		return h.status >= 500 || h.status == http.StatusTooManyRequests || h.status == http.StatusRequestTimeout
	}
	return true
}

// pause waits before the n-th retry, or as long as the registry asked.
func pause(ctx context.Context, n int, err error) error {
	d := 100 * time.Millisecond << n
	var h *httpError
	if errors.As(err, &h) && h.retryAfter > 0 {
		d = h.retryAfter
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
