package docker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"
	"google.golang.org/grpc/codes"

	"podstead/cri"
)

// presence is what is known of the Docker Engine, which starts, stops and is
// replaced by another version when its own operator wants.
type presence struct {
	mu   sync.Mutex
	api  *client.Client // speaks the version that was agreed on last
	info system.Info    // as it was told last
	away error          // why it cannot be used; nil while it can
	// recovered says that what is kept here was compared with what it has.
	recovered bool
}

// Reasons for which the runtime is not ready.
const (
	reasonGone   = "DockerGone"
	reasonUnfit  = "DockerUnsupported"
	greetTimeout = 10 * time.Second
)

// unfitError is about a Docker Engine that answers and cannot be used.
type unfitError struct{ error }

// api is the client to be used now.
func (r *Runtime) api() *client.Client {
	r.presence.mu.Lock()
	defer r.presence.mu.Unlock()
	return r.presence.api
}

// info is what the Docker Engine has last said of itself; nothing before it has
// answered for the first time.
func (r *Runtime) info() *system.Info {
	r.presence.mu.Lock()
	defer r.presence.mu.Unlock()
	info := r.presence.info
	return &info
}

// speaks tells whether the agreed API is of that version or later.
func (r *Runtime) speaks(version string) bool {
	return versions.GreaterThanOrEqualTo(r.api().ClientVersion(), version)
}

// meet agrees on an API version with the Docker Engine, asks what it is, and the
// first time picks up what it has. Each time it does so with a new client: one
// never speaks a higher version than it did before.
func (r *Runtime) meet(ctx context.Context) error {
	api, info, err := r.greet(ctx)
	if err == nil {
		r.presence.mu.Lock()
		old, recovered := r.presence.api, r.presence.recovered
		r.presence.api, r.presence.info = api, info
		r.presence.mu.Unlock()
		if old != nil {
			old.Close() // calls under way go on
		}
		if !recovered {
			err = r.recover(ctx)
		}
	}
	r.presence.mu.Lock()
	defer r.presence.mu.Unlock()
	switch was := r.presence.away; {
	case err != nil && (was == nil || was.Error() != err.Error()):
		r.log.Warn("the Docker Engine cannot be used for now", "docker", r.cfg.Endpoint, "error", err)
	case err == nil && was != nil:
		r.log.Info("the Docker Engine is back", "docker", r.cfg.Endpoint, "version", info.ServerVersion)
	}
	r.presence.away = err
	r.presence.recovered = r.presence.recovered || err == nil
	return err
}

// greet makes a client that speaks what the Docker Engine does.
func (r *Runtime) greet(ctx context.Context) (*client.Client, system.Info, error) {
	api, err := r.newClient()
	if err != nil {
		return nil, system.Info{}, err
	}
	info, err := greet(ctx, api)
	if err != nil {
		return nil, info, errors.Join(fmt.Errorf("docker endpoint %s: %w", r.cfg.Endpoint, err), api.Close())
	}
	return api, info, nil
}

func greet(ctx context.Context, api *client.Client) (system.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	_, err := api.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	if errdefs.IsInvalidArgument(err) {
		err = unfitError{fmt.Errorf("the Docker Engine is too old, podstead needs 19.03: %w", err)}
	}
	if err != nil {
		return system.Info{}, err
	}
	res, err := api.Info(ctx, client.InfoOptions{})
	if err == nil && res.Info.OSType != "linux" {
		err = unfitError{fmt.Errorf("its containers are for %q, not linux", res.Info.OSType)}
	}
	return res.Info, err
}

func (r *Runtime) newClient() (*client.Client, error) {
	api, err := client.New(client.WithHost(r.cfg.Endpoint), client.WithUserAgent("podstead"))
	if err != nil {
		return nil, fmt.Errorf("docker endpoint %s: %w", r.cfg.Endpoint, err)
	}
	return api, nil
}

// absence tells why the Docker Engine cannot be used, as the reason and the
// message of a condition; "" if it can.
func (r *Runtime) absence(ctx context.Context) (reason, message string) {
	r.presence.mu.Lock()
	err := r.presence.away
	r.presence.mu.Unlock()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, greetTimeout)
		defer cancel()
		_, err = r.api().Ping(ctx, client.PingOptions{})
	}
	switch {
	case err == nil:
		return "", ""
	case errors.As(err, new(unfitError)):
		return reasonUnfit, err.Error()
	}
	return reasonGone, err.Error()
}

// present is an error until what is kept here was compared with what Docker has:
// before that a new pod could be taken for one that is gone.
func (r *Runtime) present() error {
	r.presence.mu.Lock()
	defer r.presence.mu.Unlock()
	if r.presence.recovered {
		return nil
	}
	return cri.Errorf(codes.Unavailable, "%v", r.presence.away)
}

// attend keeps up with what happens in the Docker Engine until Close, and looks
// for it when it is gone.
func (r *Runtime) attend(met bool) {
	t := newTeller(r, r.eventMark.Untold())
	for wait := time.Duration(0); pause(r.life, wait); wait = time.Second {
		if !met && r.meet(r.life) != nil {
			continue
		}
		met = false
		ctx, cancel := context.WithCancel(r.life)
		err := t.follow(ctx)
		cancel()
		if r.life.Err() == nil {
			r.log.Warn("Docker's events have ended", "docker", r.cfg.Endpoint, "error", err)
		}
	}
}
