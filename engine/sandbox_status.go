package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"

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
			f.GetState() != nil && f.State.State != st.State || !selects(f.GetLabelSelector(), st.Labels) {
			continue
		}
		resp.Items = append(resp.Items, &runtimeapi.PodSandbox{
			Id: st.Id, Metadata: st.Metadata, State: st.State, CreatedAt: st.CreatedAt,
			Labels: st.Labels, Annotations: st.Annotations, RuntimeHandler: st.RuntimeHandler,
		})
	}
	slices.SortFunc(resp.Items, func(a, b *runtimeapi.PodSandbox) int { return newestFirst(a.CreatedAt, b.CreatedAt, a.Id, b.Id) })
	return resp, nil
}

func newestFirst(a, b int64, idA, idB string) int {
	switch {
	case a > b:
		return -1
	case a < b:
		return 1
	}
	return strings.Compare(idA, idB)
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
	c := r.config()
	st := &runtimeapi.PodSandboxStatus{
		Id: r.ID, Metadata: proto.CloneOf(c.Metadata), State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY,
		CreatedAt: r.CreatedAt.UnixNano(), RuntimeHandler: r.Handler,
		Labels: maps.Clone(c.Labels), Annotations: maps.Clone(c.Annotations),
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: &runtimeapi.NamespaceOption{
				Network: r.namespaces().GetNetwork(), Pid: r.namespaces().GetPid(), Ipc: r.namespaces().GetIpc(),
				TargetId: r.namespaces().GetTargetId(), UsernsOptions: proto.CloneOf(r.namespaces().GetUsernsOptions()),
			},
		}},
	}
	if r.Phase == sandboxReady {
		st.State = runtimeapi.PodSandboxState_SANDBOX_READY
	}
	for i, ip := range r.IPs {
		if i == 0 {
			st.Network.Ip = ip.String()
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return st
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
