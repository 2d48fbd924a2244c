// Package image brings images to the node for containers: pull policies,
// credentials from pull secrets, one pull per image at a time however many pods
// wait for it, and the kubelet's back-off and reasons. The store itself is the
// runtime's. Nothing is kept on disk; a failed pull is forgotten by a restart.
package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// Reasons of containers that wait for their image.
const (
	ErrImagePull      = "ErrImagePull"
	ImagePullBackOff  = "ImagePullBackOff"
	ErrImageNeverPull = "ErrImageNeverPull"
	InvalidImageName  = "InvalidImageName"
	ImageInspectError = "ImageInspectError"
)

// Error is why a container has no image. Reason is one of the above, or what
// the runtime named (RegistryUnavailable, SignatureValidationFailed).
type Error struct {
	Reason  string
	Message string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// Puller is shared by all pods.
type Puller struct {
	images cri.Images
	slots  chan struct{} // one for each pull that may run; nil: no bound

	mu    sync.Mutex
	pulls map[string]*pull
}

// pull is one under way; done is closed at its end.
type pull struct {
	done   chan struct{}
	cancel context.CancelFunc
	users  int
	ref    string
	err    error
}

// New returns a puller of the runtime's images that pulls so many at a time; 0 is
// no bound.
func New(images cri.Images, parallel int) *Puller {
	p := &Puller{images: images, pulls: map[string]*pull{}}
	if parallel > 0 {
		p.slots = make(chan struct{}, parallel)
	}
	return p
}

// Request says what a container needs.
type Request struct {
	Image   string
	Policy  corev1.PullPolicy
	Secrets []*corev1.Secret
	Handler string // runtime handler
	// Pulling is called when a pull begins, Pulled when the image is there.
	Pulling func()
	Pulled  func(took time.Duration, present bool, size uint64)
}

// Ensure makes the image available and returns it. Errors are *Error.
func (p *Puller) Ensure(ctx context.Context, r Request) (*runtimeapi.Image, error) {
	spec := &runtimeapi.ImageSpec{Image: withTag(r.Image), UserSpecifiedImage: r.Image, RuntimeHandler: r.Handler}
	have, err := p.status(ctx, spec)
	if err != nil {
		return nil, &Error{ImageInspectError, fmt.Sprintf("Failed to inspect image %q: %v", r.Image, err)}
	}
	if have != nil && r.Policy != corev1.PullAlways {
		r.Pulled(0, true, have.Size)
		return have, nil
	}
	if r.Policy == corev1.PullNever {
		return nil, &Error{ErrImageNeverPull, fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image)}
	}
	began := time.Now()
	ref, err := p.pull(ctx, spec, r)
	if err != nil {
		return nil, pullError(r.Image, err)
	}
	got, err := p.status(ctx, &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: r.Handler})
	if err == nil && got == nil {
		got, err = p.status(ctx, spec)
	}
	if err != nil || got == nil {
		return nil, &Error{ImageInspectError, fmt.Sprintf("Failed to inspect image %q after its pull: %v", r.Image, err)}
	}
	r.Pulled(time.Since(began), false, got.Size)
	return got, nil
}

// withTag is the name a runtime knows the image by: without tag and digest it
// is the latest.
func withTag(image string) string {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil || !reference.IsNameOnly(ref) {
		return image
	}
	return image + ":latest"
}

func (p *Puller) status(ctx context.Context, spec *runtimeapi.ImageSpec) (*runtimeapi.Image, error) {
	resp, err := p.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, err
	}
	return resp.Image, nil
}

// pullError finds the runtime's own reason at the head of its message, as the
// kubelet does.
func pullError(image string, err error) error {
	text := err.Error()
	if i := strings.Index(text, "desc = "); i >= 0 {
		text = text[i+len("desc = "):]
	}
	reason := ErrImagePull
	for _, r := range []string{"RegistryUnavailable", "SignatureValidationFailed"} {
		if strings.HasPrefix(text, r) {
			reason = r
		}
	}
	return &Error{reason, fmt.Sprintf("failed to pull image %q: %s", image, text)}
}

// pull joins a pull of the same image with the same credentials, or starts it.
// It goes on as long as anybody waits for it.
func (p *Puller) pull(ctx context.Context, spec *runtimeapi.ImageSpec, r Request) (string, error) {
	auths := credentials(spec.Image, r.Secrets)
	key, err := json.Marshal([]any{spec.Image, spec.RuntimeHandler, auths})
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	run, joined := p.pulls[string(key)]
	if !joined {
		pctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		run = &pull{done: make(chan struct{}), cancel: cancel}
		p.pulls[string(key)] = run
		go p.run(pctx, string(key), run, spec, auths)
	}
	run.users++
	p.mu.Unlock()
	r.Pulling()
	select {
	case <-run.done:
		return run.ref, run.err
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		if run.users--; run.users == 0 {
			run.cancel()
			if p.pulls[string(key)] == run {
				delete(p.pulls, string(key)) // who comes now starts anew
			}
		}
		return "", ctx.Err()
	}
}

func (p *Puller) run(ctx context.Context, key string, run *pull, spec *runtimeapi.ImageSpec, auths []*runtimeapi.AuthConfig) {
	defer run.cancel()
	if len(auths) == 0 {
		auths = []*runtimeapi.AuthConfig{nil}
	}
	if p.slots != nil {
		select {
		case p.slots <- struct{}{}:
			defer func() { <-p.slots }()
		case <-ctx.Done():
			run.err, auths = ctx.Err(), nil
		}
	}
	for _, auth := range auths {
		var resp *runtimeapi.PullImageResponse
		resp, run.err = p.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec, Auth: auth})
		if run.err == nil {
			run.ref = resp.ImageRef
			break
		}
		if ctx.Err() != nil {
			break
		}
	}
	p.mu.Lock()
	if p.pulls[key] == run {
		delete(p.pulls, key)
	}
	p.mu.Unlock()
	close(run.done)
}

// dockerConfig is the content of a pull secret.
type dockerConfig map[string]struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentials collects what the secrets have for an image, the most specific
// entry first; each is tried until one is accepted.
func credentials(image string, secrets []*corev1.Secret) []*runtimeapi.AuthConfig {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil
	}
	type match struct {
		length int
		auth   *runtimeapi.AuthConfig
	}
	var found []match
	for _, s := range secrets {
		for registry, e := range parse(s) {
			length, ok := matches(registry, ref)
			if !ok {
				continue
			}
			a := &runtimeapi.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken,
				RegistryToken: e.RegistryToken, ServerAddress: registry}
			if a.Username == "" && e.Auth != "" {
				if plain, err := base64.StdEncoding.DecodeString(e.Auth); err == nil {
					a.Username, a.Password, _ = strings.Cut(string(plain), ":")
				}
			}
			found = append(found, match{length, a})
		}
	}
	slices.SortStableFunc(found, func(a, b match) int {
		if a.length != b.length {
			return b.length - a.length
		}
		return strings.Compare(a.auth.ServerAddress, b.auth.ServerAddress)
	})
	out := make([]*runtimeapi.AuthConfig, len(found))
	for i, m := range found {
		out[i] = m.auth
	}
	return out
}

func parse(s *corev1.Secret) dockerConfig {
	if data, ok := s.Data[corev1.DockerConfigJsonKey]; ok {
		var file struct {
			Auths dockerConfig `json:"auths"`
		}
		if json.Unmarshal(data, &file) == nil {
			return file.Auths
		}
	}
	if data, ok := s.Data[corev1.DockerConfigKey]; ok {
		var old dockerConfig
		if json.Unmarshal(data, &old) == nil {
			return old
		}
	}
	return nil
}

// matches tells whether an entry ("https://index.docker.io/v1/", "*.example.com",
// "host:5000/team") is for an image, and how specific it is.
func matches(entry string, ref reference.Named) (length int, ok bool) {
	entry = strings.TrimPrefix(strings.TrimPrefix(entry, "https://"), "http://")
	host, path, _ := strings.Cut(strings.TrimSuffix(entry, "/"), "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	domain := reference.Domain(ref)
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if !hostMatches(host, domain) {
		return 0, false
	}
	if path != "" && reference.Path(ref) != path && !strings.HasPrefix(reference.Path(ref), path+"/") {
		return 0, false
	}
	return len(host) + len(path), true
}

// hostMatches compares label by label; "*" stands for one label, not for dots.
func hostMatches(pattern, host string) bool {
	pl, hl := strings.Split(pattern, "."), strings.Split(host, ".")
	if len(pl) != len(hl) {
		return false
	}
	for i := range pl {
		if pl[i] != "*" && pl[i] != hl[i] {
			return false
		}
	}
	return true
}
