package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"google.golang.org/grpc/codes"

	"podstead/cri"
)

// sandbox is one as Docker knows it.
type sandbox struct {
	id    string
	rec   sandboxRecord
	state container.State // Status alone, if it comes from a list
	seen  *container.InspectResponse
}

// ctr is a container as Docker knows it.
type ctr struct {
	id    string
	rec   containerRecord
	state container.State
	seen  *container.InspectResponse
}

// inspect asks for an object of ours; nil is none. Docker also finds containers
// by name, and those of others: they are none.
func (r *Runtime) inspect(ctx context.Context, id, kind string) (*container.InspectResponse, error) {
	res, err := r.api().ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, failed(err, "inspect %s", id)
	}
	c := res.Container
	if c.Config == nil || c.State == nil || c.HostConfig == nil || !strings.HasPrefix(c.ID, id) ||
		c.Config.Labels[labelType] != kind || c.Config.Labels[labelRecord] == "" {
		return nil, nil
	}
	return &c, nil
}

// pod finds a sandbox, nil if there is none.
func (r *Runtime) pod(ctx context.Context, id string) (*sandbox, error) {
	if id == "" {
		return nil, invalid("the ID of the pod sandbox is missing")
	}
	c, err := r.inspect(ctx, id, typeSandbox)
	if c == nil || err != nil {
		return nil, err
	}
	p := &sandbox{id: c.ID, state: *c.State, seen: c}
	if err := decodeRecord(c.Config.Labels, &p.rec); err != nil {
		return nil, fmt.Errorf("pod sandbox %s: %w", c.ID, err)
	}
	return p, nil
}

// ctr finds a container, nil if there is none.
func (r *Runtime) ctr(ctx context.Context, id string) (*ctr, error) {
	if id == "" {
		return nil, invalid("the ID of the container is missing")
	}
	in, err := r.inspect(ctx, id, typeContainer)
	if in == nil || err != nil {
		return nil, err
	}
	c := &ctr{id: in.ID, state: *in.State, seen: in}
	if err := decodeRecord(in.Config.Labels, &c.rec); err != nil {
		return nil, fmt.Errorf("container %s: %w", in.ID, err)
	}
	return c, nil
}

// mustPod and mustCtr make a missing object an error.
func (r *Runtime) mustPod(ctx context.Context, id string) (*sandbox, error) {
	p, err := r.pod(ctx, id)
	if p == nil && err == nil {
		err = cri.Errorf(codes.NotFound, "pod sandbox %q does not exist", id)
	}
	return p, err
}

func (r *Runtime) mustCtr(ctx context.Context, id string) (*ctr, error) {
	c, err := r.ctr(ctx, id)
	if c == nil && err == nil {
		err = cri.Errorf(codes.NotFound, "container %q does not exist", id)
	}
	return c, err
}

// pods lists all sandboxes.
func (r *Runtime) pods(ctx context.Context) ([]*sandbox, error) {
	items, err := r.list(ctx, make(client.Filters).Add("label", labelType+"="+typeSandbox))
	if err != nil {
		return nil, err
	}
	var pods []*sandbox
	for _, s := range items {
		p := &sandbox{id: s.ID, state: container.State{Status: s.State, Running: s.State == container.StateRunning}}
		if err := decodeRecord(s.Labels, &p.rec); err != nil {
			r.log.Warn("a pod sandbox's record cannot be read", "pod", s.ID, "error", err)
			continue
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// ctrs lists containers, those of one sandbox if its ID is given.
func (r *Runtime) ctrs(ctx context.Context, sandboxID string) ([]*ctr, error) {
	f := make(client.Filters).Add("label", labelType+"="+typeContainer)
	if sandboxID != "" {
		f.Add("label", labelSandbox+"="+sandboxID)
	}
	items, err := r.list(ctx, f)
	if err != nil {
		return nil, err
	}
	var ctrs []*ctr
	for _, s := range items {
		c := &ctr{id: s.ID, state: container.State{Status: s.State, Running: s.State == container.StateRunning}}
		if err := decodeRecord(s.Labels, &c.rec); err != nil {
			r.log.Warn("a container's record cannot be read", "container", s.ID, "error", err)
			continue
		}
		ctrs = append(ctrs, c)
	}
	return ctrs, nil
}

// list lists what has our record among its labels.
func (r *Runtime) list(ctx context.Context, f client.Filters) ([]container.Summary, error) {
	f.Add("label", labelRecord)
	res, err := r.api().ContainerList(ctx, client.ContainerListOptions{All: true, Filters: f})
	if err != nil {
		return nil, failed(err, "list containers")
	}
	return res.Items, nil
}

func decodeRecord(labels map[string]string, record any) error {
	if err := json.Unmarshal([]byte(labels[labelRecord]), record); err != nil {
		return fmt.Errorf("label %s: %w", labelRecord, err)
	}
	return nil
}

// nanoseconds reads a time of Docker's; one that has not come is 0.
func nanoseconds(s string) int64 {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Unix() <= 0 {
		return 0
	}
	return t.UnixNano()
}
