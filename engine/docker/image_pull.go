package docker

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// registryUnavailable begins the error that the kubelet reports as the pull's
// reason (k8s.io/cri-api/pkg/errors).
const registryUnavailable = "RegistryUnavailable"

// PullImage has Docker bring an image and returns its ID. Docker joins pulls of
// the same image, and ends one when nobody waits for it any more.
func (r *Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := r.checkHandler(req.Image.RuntimeHandler); err != nil {
		return nil, err
	}
	name := req.Image.Image
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, invalid("image %q: %v", name, err)
	}
	auth, err := registryAuth(req.Auth, reference.Domain(named))
	if err != nil {
		return nil, err
	}
	if err := r.pull(ctx, name, auth); err != nil {
		return nil, pullError(ctx, name, err)
	}
	img, err := r.image(ctx, name)
	if err != nil {
		return nil, err
	}
	if img == nil {
		return nil, cri.Errorf(codes.NotFound, "image %s was pulled and is gone", name)
	}
	r.log.Info("image is pulled", "image", img.ID, "name", name)
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// errNoProgress ends a pull during which nothing came for too long.
var errNoProgress = errors.New("no progress")

// pull reads Docker's reports until the last. It is given up if for too long
// none comes that tells something new.
func (r *Runtime) pull(ctx context.Context, name, auth string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(r.cfg.PullTimeout, func() {
		cancel(fmt.Errorf("%w for %v", errNoProgress, r.cfg.PullTimeout))
	})
	defer watchdog.Stop()
	res, err := r.api().ImagePull(ctx, name, client.ImagePullOptions{RegistryAuth: auth})
	if err != nil {
		return cause(ctx, err)
	}
	defer res.Close()
	last := map[string]string{} // by layer
	for m, err := range res.JSONMessages(ctx) {
		if err != nil {
			return cause(ctx, err)
		}
		if m.Error != nil {
			return m.Error
		}
		seen := m.Status
		if m.Progress != nil {
			seen = fmt.Sprint(m.Status, m.Progress.Current)
		}
		if last[m.ID] != seen {
			last[m.ID] = seen
			watchdog.Reset(r.cfg.PullTimeout)
		}
	}
	return cause(ctx, ctx.Err())
}

// cause prefers the reason for which ctx ended.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); err != nil && c != nil {
		return c
	}
	return err
}

// pullError gives a pull's error the form that the kubelet understands: it
// looks for known words at the beginning of an error of class Unknown. Docker
// passes on what happened as text.
func pullError(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil && !errors.Is(err, errNoProgress) {
		return status.FromContextError(ctx.Err()).Err()
	}
	text := err.Error()
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	switch {
	case errdefs.IsNotFound(err) || has("manifest unknown", "not found"):
		return cri.Errorf(codes.NotFound, "pull image %s: %v", name, err)
	case errors.Is(err, errNoProgress), has("connection refused", "no such host", "i/o timeout", "connection reset", "TLS handshake", "503 Service", "server misbehaving"):
		return fmt.Errorf("%s: pull image %s: %w", registryUnavailable, name, err)
	}
	return fmt.Errorf("pull image %s: %w", name, err)
}

// registryAuth translates credentials; auth is base64 of "user:password". Those
// for another registry than the image's are not passed on: Docker would send
// them to whomever it asks.
func registryAuth(a *runtimeapi.AuthConfig, domain string) (string, error) {
	if a == nil || a.ServerAddress != "" && registryHost(a.ServerAddress) != domain {
		return "", nil
	}
	auth := registry.AuthConfig{
		Username: a.GetUsername(), Password: a.GetPassword(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
	if a.GetAuth() != "" && auth.Username == "" {
		b, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return "", invalid("auth.auth is not base64 of user:password")
		}
		auth.Username, auth.Password = user, strings.Trim(password, "\x00")
	}
	return authconfig.Encode(auth)
}

// registryHost is the host of a server's address, which may be a URL, as in
// image names.
func registryHost(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	host, _, _ := strings.Cut(address, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}
