package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/pod"

	"google.golang.org/grpc/codes"
)

// PodSandboxStatus tells what a sandbox is and has.
func (e *Engine) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	s, err := e.mustSandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	rec := s.record()
	if rec.Phase == sandboxCreating {
		return nil, cri.Errorf(codes.NotFound, "pod sandbox %q is still being created", req.PodSandboxId)
	}
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status: sandboxStatus(&rec), Timestamp: time.Now().UnixNano(),
		ContainersStatuses: e.containerStatuses(s.id),
	}
	if req.Verbose {
		resp.Info, err = e.sandboxInfo(&rec)
	}
	return resp, err
}

// ListPodSandbox lists sandboxes that pass all filters, oldest last.
func (e *Engine) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f := req.GetFilter()
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range e.allSandboxes() {
		rec := s.record()
		st := sandboxStatus(&rec)
		if rec.Phase == sandboxCreating || !strings.HasPrefix(s.id, f.GetId()) ||
			f.GetState() != nil && f.State.State != st.State || !pod.Selects(f.GetLabelSelector(), st.Labels) {
			continue
		}
		resp.Items = append(resp.Items, pod.Item(st))
	}
	slices.SortFunc(resp.Items, func(a, b *runtimeapi.PodSandbox) int { return pod.NewestFirst(a.CreatedAt, b.CreatedAt, a.Id, b.Id) })
	return resp, nil
}

// UpdatePodSandboxResources records the pod's new sums. The limits of the pod's
// cgroup are its maker's.
func (e *Engine) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	s, err := e.mustSandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	rec := s.record()
	if err := e.mayUpdatePod(ctx, &rec, req); err != nil {
		return nil, fmt.Errorf("update pod sandbox %s: %w", s.id, err)
	}
	err = e.changeSandbox(s, func(r *sandboxRecord) {
		c := proto.CloneOf(r.config())
		if c.Linux == nil {
			c.Linux = &runtimeapi.LinuxPodSandboxConfig{}
		}
		c.Linux.Overhead = proto.CloneOf(req.Overhead)
		c.Linux.Resources = proto.CloneOf(req.Resources)
		r.Config.M = c
	})
	if err != nil {
		return nil, err
	}
	rec = s.record()
	e.relayPod(ctx, "PostUpdatePodSandbox", &rec, e.plugins.PostUpdatePod)
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

func sandboxStatus(r *sandboxRecord) *runtimeapi.PodSandboxStatus {
	f := pod.Facts{ID: r.ID, Config: r.config(), Handler: r.Handler, CreatedAt: r.CreatedAt.UnixNano(), Ready: r.Phase == sandboxReady}
	for _, ip := range r.IPs {
		f.IPs = append(f.IPs, ip.String())
	}
	return pod.Status(f)
}

// sandboxInfo is for people: what verbose shows.
func (e *Engine) sandboxInfo(r *sandboxRecord) (map[string]string, error) {
	config, err := protojson.Marshal(r.config())
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(map[string]any{
		"phase": r.Phase, "message": r.Message, "cgroupParent": r.CgroupParent,
		"networkNamespace": e.netnsPath(r), "hostname": r.Hostname,
		"pid": r.PausePid, "config": json.RawMessage(config),
	})
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(b)}, nil
}
