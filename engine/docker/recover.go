package docker

import (
	"context"
	"errors"

	"github.com/moby/moby/client"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/store"
)

// recover picks up what Docker has: what is kept of objects that are gone is
// dropped, and logs are copied from where they were left. Pods and containers
// are left as they are; one whose creation a crash interrupted is not ready.
func (r *Runtime) recover(ctx context.Context) error {
	pods, err := r.pods(ctx)
	if err != nil {
		return err
	}
	ctrs, err := r.ctrs(ctx, "")
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, p := range pods {
		live[p.id] = true
	}
	for _, c := range ctrs {
		live[c.id] = true
	}
	if err := errors.Join(dropGone(r.sandboxState, live), dropGone(r.containerState, live)); err != nil {
		return err
	}
	if err := errors.Join(r.removeLooks(ctx), r.discardLostMounts(ctx, ctrs)); err != nil {
		return err
	}
	if r.cfg.Network != nil {
		if err := r.reconcileNetwork(ctx, pods); err != nil {
			r.log.Warn("the network of pods that are gone is not released yet", "error", err)
		}
	}
	return nil
}

// dropGone deletes what is kept of objects that do not live.
func dropGone[T any](s *states[T], live map[string]bool) error {
	ids, err := s.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !live[id] {
			if err := s.delete(id); err != nil {
				return err
			}
		}
	}
	return nil
}

// reconcileNetwork releases the addresses of sandboxes that somebody removed
// without us.
func (r *Runtime) reconcileNetwork(ctx context.Context, pods []*sandbox) error {
	var connected []string
	for _, p := range pods {
		if p.rec.Connected {
			connected = append(connected, p.id)
		}
	}
	return r.cfg.Network.Reconcile(ctx, connected)
}

// removeLooks removes containers that were made to look into an image when a
// crash came.
func (r *Runtime) removeLooks(ctx context.Context) error {
	res, err := r.api().ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", labelLook)})
	if err != nil {
		return failed(err, "list containers")
	}
	for _, c := range res.Items {
		if err := r.removeDocker(ctx, c.ID); err != nil {
			return err
		}
	}
	return nil
}

// resumeLogs copies the logs of all containers that wrote any.
func (r *Runtime) resumeLogs(ctx context.Context) error {
	all, err := r.ctrs(ctx, "")
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.rec.LogPath == "" || c.state.Status == "created" {
			continue
		}
		seen, err := r.ctr(ctx, c.id)
		if err != nil || seen == nil {
			continue // it is just going
		}
		r.logs.follow(seen)
		if ctrState(&seen.state) == runtimeapi.ContainerState_CONTAINER_EXITED {
			r.worker.Go(func() { r.logs.ended(ctx, seen) })
		}
	}
	return nil
}

// unreadable logs a record that was set aside.
func (r *Runtime) unreadable(b store.Bad) {
	r.log.Warn("a record cannot be read and is set aside", "file", b.File, "error", b.Err)
}
