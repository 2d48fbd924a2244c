// Package image brings images to the node for containers: pull policies,
// credentials from pull secrets, from the node's own file and from exec plugins,
// one pull per image at a time however many pods wait for it, and the kubelet's
// back-off and reasons. The store itself is the runtime's. Kept on disk is only
// who may use which image (verify.go); a failed pull is forgotten by a restart.
package image

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/time/rate"
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
	// Named by the runtime, at the head of its message.
	RegistryUnavailable       = "RegistryUnavailable"
	SignatureValidationFailed = "SignatureValidationFailed"
)

// Error is why a container has no image. Reason is one of the above.
type Error struct {
	Reason  string
	Message string
	Cause   string // the runtime's own words of a pull that failed, else ""
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// Config of a Puller.
type Config struct {
	Images   cri.Images
	Parallel int // pulls at a time; 0: no bound
	// PerSecond is how many pulls begin, beside Burst of them at once; 0: no bound.
	PerSecond, Burst int
	// Verify says who may use an image that is there; records of it are below Dir.
	Verify Verify
	Dir    string
	// DockerConfigs are files of credentials that all pods may use, as docker
	// login writes them; those that are not there have none.
	DockerConfigs []string
	Providers     []*Provider
	Log           *slog.Logger
}

// Puller is shared by all pods.
type Puller struct {
	cfg     Config
	images  cri.Images
	records *records
	slots   chan struct{} // one for each pull that may run; nil: no bound
	pace    *rate.Limiter // of pulls that begin

	mu    sync.Mutex
	pulls map[string]*pull
}

// pull is one under way; done is closed at its end.
type pull struct {
	done   chan struct{}
	cancel context.CancelFunc
	users  int
	ref    string
	took   time.Duration
	err    error
}

// New returns a puller of the runtime's images.
func New(cfg Config) *Puller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Puller{cfg: cfg, images: cfg.Images, records: &records{dir: cfg.Dir, policy: cfg.Verify}, pulls: map[string]*pull{}}
	p.pace = rate.NewLimiter(rate.Inf, 0)
	if cfg.PerSecond > 0 {
		p.pace = rate.NewLimiter(rate.Limit(cfg.PerSecond), max(cfg.Burst, 1))
	}
	if cfg.Parallel > 0 {
		p.slots = make(chan struct{}, cfg.Parallel)
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
	Pulled  func(Pulled)
}

// Pulled is how an image came to be there.
type Pulled struct {
	Present bool          // it was there, and the pod may use it
	Took    time.Duration // the pull
	Waited  time.Duration // and all that the container waited for it
	Size    uint64
}

// Ensure makes the image available and returns it. Errors are *Error.
func (p *Puller) Ensure(ctx context.Context, r Request) (*runtimeapi.Image, error) {
	spec := &runtimeapi.ImageSpec{Image: withTag(r.Image), UserSpecifiedImage: r.Image, RuntimeHandler: r.Handler}
	have, err := p.status(ctx, spec)
	if err != nil {
		return nil, &Error{Reason: ImageInspectError, Message: fmt.Sprintf("Failed to inspect image %q: %v", r.Image, err)}
	}
	keys := sync.OnceValue(func() []credential { return p.credentials(ctx, r.Image, r.Secrets) })
	if have != nil && r.Policy != corev1.PullAlways {
		allowed, err := p.records.allow(r.Image, have.Id, keys)
		if err != nil {
			p.cfg.Log.Error("the image is asked for again, whoever may use it", "image", r.Image, "error", err)
		}
		if allowed {
			r.Pulled(Pulled{Present: true, Size: have.Size})
			return have, nil
		}
	}
	if r.Policy == corev1.PullNever {
		why := "is not present"
		if have != nil {
			why = "was pulled with credentials that this pod has not, and cannot be asked for again"
		}
		return nil, &Error{Reason: ErrImageNeverPull, Message: fmt.Sprintf("Container image %q %s with pull policy of Never", r.Image, why)}
	}
	began := time.Now()
	ref, took, err := p.pull(ctx, spec, r, keys())
	if err != nil {
		return nil, pullError(r.Image, err)
	}
	got, err := p.status(ctx, &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: r.Handler})
	if err == nil && got == nil {
		got, err = p.status(ctx, spec)
	}
	if err != nil || got == nil {
		return nil, &Error{Reason: ImageInspectError, Message: fmt.Sprintf("Failed to inspect image %q after its pull: %v", r.Image, err)}
	}
	r.Pulled(Pulled{Took: took, Waited: time.Since(began), Size: got.Size})
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

// Host is the registry that an image's name names.
func Host(image string) string {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return ""
	}
	return reference.Domain(ref)
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
	for _, r := range []struct{ reason, why string }{
		{RegistryUnavailable, "the registry is unavailable"},
		{SignatureValidationFailed, "the signature validation failed"},
	} {
		if more, ok := strings.CutPrefix(text, r.reason); ok {
			return &Error{r.reason, fmt.Sprintf("image pull failed for %s because %s%s", image, r.why, more), text}
		}
	}
	return &Error{ErrImagePull, text, text}
}

// pull joins a pull of the same image with the same credentials, or starts it.
// It goes on as long as anybody waits for it.
func (p *Puller) pull(ctx context.Context, spec *runtimeapi.ImageSpec, r Request, keys []credential) (ref string, took time.Duration, err error) {
	id, err := json.Marshal([]any{spec.Image, spec.RuntimeHandler, keys})
	if err != nil {
		return "", 0, err
	}
	key := string(id)
	p.mu.Lock()
	run, joined := p.pulls[key]
	if !joined {
		pctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		run = &pull{done: make(chan struct{}), cancel: cancel}
		p.pulls[key] = run
		go p.run(pctx, key, run, spec, keys)
	}
	run.users++
	p.mu.Unlock()
	r.Pulling()
	select {
	case <-run.done:
		return run.ref, run.took, run.err
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		if run.users--; run.users == 0 {
			run.cancel()
			if p.pulls[key] == run {
				delete(p.pulls, key) // who comes now starts anew
			}
		}
		return "", 0, ctx.Err()
	}
}

func (p *Puller) run(ctx context.Context, key string, run *pull, spec *runtimeapi.ImageSpec, keys []credential) {
	defer run.cancel()
	run.ref, run.took, run.err = p.try(ctx, spec, keys)
	p.mu.Lock()
	if p.pulls[key] == run {
		delete(p.pulls, key)
	}
	p.mu.Unlock()
	close(run.done)
}

// try pulls with one credential after the other, and notes which was accepted.
func (p *Puller) try(ctx context.Context, spec *runtimeapi.ImageSpec, keys []credential) (ref string, took time.Duration, err error) {
	if err := p.pace.Wait(ctx); err != nil {
		return "", 0, err
	}
	if p.slots != nil {
		select {
		case p.slots <- struct{}{}:
			defer func() { <-p.slots }()
		case <-ctx.Done():
			return "", 0, ctx.Err()
		}
	}
	if len(keys) == 0 {
		keys = []credential{{}} // anonymously
	}
	done, err := p.records.intend(spec.UserSpecifiedImage)
	if err != nil {
		return "", 0, err
	}
	began := time.Now()
	for _, k := range keys {
		var resp *runtimeapi.PullImageResponse
		resp, err = p.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec, Auth: k.Auth})
		if err == nil {
			took = time.Since(began)
			failed := p.records.add(spec.UserSpecifiedImage, resp.ImageRef, k)
			if failed != nil {
				p.cfg.Log.Error("the next pod with this image pulls it again", "image", spec.UserSpecifiedImage, "error", failed)
			}
			done(failed != nil)
			p.prune(ctx)
			return resp.ImageRef, took, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	done(false)
	return "", 0, err
}

// prune forgets images that are gone.
func (p *Puller) prune(ctx context.Context) {
	began := time.Now()
	if p.records.off() {
		return
	}
	list, err := p.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err == nil {
		err = p.records.prune(list.Images, began)
	}
	if err != nil {
		p.cfg.Log.Warn("records of pulled images not cleaned up", "error", err)
	}
}
