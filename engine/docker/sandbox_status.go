package docker

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/pod"
)

// ready tells whether a sandbox is complete and runs.
func (r *Runtime) ready(p *sandbox) bool {
	if !p.state.Running || p.state.Status != "running" {
		return false
	}
	if !p.rec.Connected {
		return true
	}
	s, _ := r.sandboxState.get(p.id)
	return s.Connected
}

// PodSandboxStatus tells what a sandbox is and how it does.
func (r *Runtime) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	p, err := r.mustPod(ctx, req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: r.podStatus(p), Timestamp: time.Now().UnixNano()}
	if resp.ContainersStatuses, err = r.ctrStatuses(ctx, p.id); err != nil {
		return nil, err
	}
	if req.Verbose {
		resp.Info, err = verboseInfo(r.updated(p), map[string]any{
			"name": strings.TrimPrefix(p.seen.Name, "/"), "pid": p.state.Pid, "networkNamespace": p.netns(),
			"cgroupParent": p.seen.HostConfig.CgroupParent, "connectedByPodstead": p.rec.Connected,
		})
	}
	return resp, err
}

// verboseInfo is for people.
func verboseInfo(config proto.Message, facts map[string]any) (map[string]string, error) {
	c, err := protojson.Marshal(config)
	if err != nil {
		return nil, err
	}
	facts["config"] = json.RawMessage(c)
	b, err := json.Marshal(facts)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(b)}, nil
}

func (r *Runtime) podStatus(p *sandbox) *runtimeapi.PodSandboxStatus {
	return pod.Status(pod.Facts{
		ID: p.id, Config: p.rec.config(), Handler: p.rec.Handler, CreatedAt: p.rec.CreatedAt, Ready: r.ready(p), IPs: r.podIPs(p),
	})
}

// podIPs are the addresses of a sandbox that was inspected, the primary one
// first.
func (r *Runtime) podIPs(p *sandbox) []string {
	if p.rec.hostNetwork() {
		return nil
	}
	if p.rec.Connected {
		s, _ := r.sandboxState.get(p.id)
		return s.IPs
	}
	var ips []string
	if p.seen == nil || p.seen.NetworkSettings == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(p.seen.NetworkSettings.Networks)) {
		e := p.seen.NetworkSettings.Networks[name]
		if e.IPAddress.IsValid() {
			ips = append(ips, e.IPAddress.String())
		}
		if e.GlobalIPv6Address.IsValid() {
			ips = append(ips, e.GlobalIPv6Address.String())
		}
	}
	return ips
}

// ListPodSandbox lists sandboxes that pass all filters, newest first.
func (r *Runtime) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f := req.GetFilter()
	all, err := r.pods(ctx)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, p := range all {
		st := r.podStatus(p)
		if !strings.HasPrefix(p.id, f.GetId()) || f.GetState() != nil && f.State.State != st.State || !pod.Selects(f.GetLabelSelector(), st.Labels) {
			continue
		}
		resp.Items = append(resp.Items, pod.Item(st))
	}
	slices.SortFunc(resp.Items, func(a, b *runtimeapi.PodSandbox) int { return pod.NewestFirst(a.CreatedAt, b.CreatedAt, a.Id, b.Id) })
	return resp, nil
}

// updated is the sandbox's configuration with its sums as they are now.
func (r *Runtime) updated(p *sandbox) *runtimeapi.PodSandboxConfig {
	s, _ := r.sandboxState.get(p.id)
	if !s.Updated {
		return p.rec.config()
	}
	c := proto.CloneOf(p.rec.config())
	if c.Linux == nil {
		c.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	c.Linux.Overhead, c.Linux.Resources = s.Overhead.M, s.Resources.M
	return c
}

// UpdatePodSandboxResources records the pod's new sums. The limits of the pod's
// cgroup are its maker's.
func (r *Runtime) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	p, err := r.mustPod(ctx, req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	req = proto.CloneOf(req)
	err = r.sandboxState.change(p.id, func(s *sandboxState) {
		s.Updated, s.Overhead.M, s.Resources.M = true, req.Overhead, req.Resources
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
