package conformance

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var runtimeTests = []test{
	{"version", "Version VersionRequest.version VersionResponse.*", func(t *testing.T, s *suite) {
		v, err := s.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{Version: "0.1.0"})
		if err != nil {
			t.Fatal(err)
		}
		// The kubelet compares the first for equality and refuses empty ones.
		if v.GetVersion() != "0.1.0" || v.GetRuntimeApiVersion() != "v1" || v.GetRuntimeName() == "" || v.GetRuntimeVersion() == "" {
			t.Errorf("version is %v", v)
		}
	}},
	{"status", "Status StatusRequest.verbose StatusResponse.{status,info} RuntimeStatus.conditions " +
		"RuntimeCondition.{type,status}", func(t *testing.T, s *suite) {
		r, err := s.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		ready := map[string]bool{}
		for _, c := range r.GetStatus().GetConditions() {
			ready[c.GetType()] = c.GetStatus()
		}
		if !ready["RuntimeReady"] || !ready["NetworkReady"] {
			t.Errorf("conditions are %v", r.GetStatus().GetConditions())
		}
		if len(r.GetInfo()) == 0 {
			t.Error("verbose status has no info")
		}
	}},
	{"default handler is listed", "StatusResponse.{runtime_handlers,features} RuntimeHandler.features", func(t *testing.T, s *suite) {
		r, err := s.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range r.GetRuntimeHandlers() {
			if h.GetName() == "" {
				return
			}
		}
		t.Errorf("runtime handlers are %v, want one with an empty name", r.GetRuntimeHandlers())
	}},
	{"cgroup driver", "RuntimeConfig RuntimeConfigResponse.linux LinuxRuntimeConfiguration.cgroup_driver", func(t *testing.T, s *suite) {
		r, err := s.Runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if r.GetLinux() == nil {
			t.Error("the answer has no linux part")
		}
	}},
	{"runtime config is accepted", "UpdateRuntimeConfig UpdateRuntimeConfigRequest.runtime_config RuntimeConfig.network_config NetworkConfig.pod_cidr", func(t *testing.T, s *suite) {
		for _, cidr := range []string{"", "10.88.0.0/16", "10.88.0.0/16,fd00:88::/64"} {
			_, err := s.Runtime.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
				RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
			})
			if err != nil {
				t.Errorf("%q: %v", cidr, err)
			}
		}
	}},
}

var sandboxTests = []test{
	{"lifecycle", "RunPodSandbox StopPodSandbox RemovePodSandbox PodSandboxStatus ListPodSandbox " +
		"RunPodSandboxRequest.config RunPodSandboxResponse.* StopPodSandboxRequest.* " +
		"RemovePodSandboxRequest.* PodSandboxStatusRequest.pod_sandbox_id PodSandboxStatusResponse.status " +
		"PodSandboxStatus.{id,metadata,state,created_at,network,linux,labels,annotations} " +
		"PodSandboxMetadata.{name,namespace,uid} PodSandboxConfig.{metadata,labels,annotations} " +
		"PodSandboxNetworkStatus.ip LinuxPodSandboxStatus.namespaces Namespace.options " +
		"ListPodSandboxResponse.items PodSandbox.{id,metadata,state,created_at,labels,annotations}", sandboxLifecycle},
	{"unknown id", "StopPodSandbox RemovePodSandbox PodSandboxStatus", func(t *testing.T, s *suite) {
		ctx, id := t.Context(), "no-such-sandbox"
		if _, err := s.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Errorf("stop: %v", err)
		}
		if _, err := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Errorf("remove: %v", err)
		}
		_, err := s.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		wantCode(t, "status", err, codes.NotFound)
	}},
	{"unknown handler leaves nothing", "RunPodSandbox RunPodSandboxRequest.runtime_handler", func(t *testing.T, s *suite) {
		config := s.podConfig(t)
		_, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "no-such-handler"})
		wantError(t, "run with an unknown handler", err)
		if left := s.sandboxes(t, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"uid": config.GetMetadata().GetUid()}}); len(left) != 0 {
			t.Errorf("it left sandboxes %v", left)
		}
	}},
	{"another handler", "RunPodSandboxRequest.runtime_handler PodSandboxStatus.runtime_handler PodSandbox.runtime_handler " +
		"ImageSpec.runtime_handler RuntimeHandler.name", anotherHandler},
	{"same pod twice", "RunPodSandbox", func(t *testing.T, s *suite) {
		p := s.pod(t)
		// A retry gets the first call's result or an error, never a second sandbox.
		r, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p.config})
		if err == nil && r.GetPodSandboxId() != p.id {
			t.Cleanup(func() { s.removePod(t, r.GetPodSandboxId()) })
			t.Error("the second call made a second sandbox")
		}
		if n := len(s.sandboxes(t, p.filter())); n != 1 {
			t.Errorf("%d sandboxes are listed", n)
		}
	}},
	{"filters are joined by and", "ListPodSandbox ListPodSandboxRequest.filter PodSandboxFilter.* PodSandboxStateValue.state", sandboxFilters},
	{"missing config is refused", "RunPodSandbox", func(t *testing.T, s *suite) {
		_, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{})
		wantError(t, "run without a config", err)
	}},
	{"stopping it ends its containers", "StopPodSandbox", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "sleep 1000")
		p.stop(t)
		if state := c.status(t).GetState(); state != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("container is %s", state)
		}
		_, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.script("late", "true"), SandboxConfig: p.config})
		wantError(t, "create in a stopped sandbox", err)
	}},
	{"removing it removes its containers", "RemovePodSandbox", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "sleep 1000")
		if _, err := s.Runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatalf("remove a running sandbox: %v", err)
		}
		_, err := s.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		wantCode(t, "status of its container", err, codes.NotFound)
	}},
	{"next attempt of the same pod", "PodSandboxMetadata.attempt", func(t *testing.T, s *suite) {
		p := s.pod(t)
		p.stop(t)
		next := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Metadata = &runtimeapi.PodSandboxMetadata{Name: p.config.Metadata.Name, Namespace: p.config.Metadata.Namespace, Uid: p.config.Metadata.Uid, Attempt: 1}
		})
		if next.id == p.id {
			t.Error("two attempts have one id")
		}
		if got := next.status(t).GetMetadata().GetAttempt(); got != 1 {
			t.Errorf("attempt is %d", got)
		}
	}},
	{"sysctls", "LinuxPodSandboxConfig.sysctls", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 2048"}
		})
		c := p.sh(t, "cat /proc/sys/kernel/shm_rmid_forced; echo $(cat /proc/sys/net/ipv4/ip_local_port_range)")
		if got := c.output(t); got != "1\n1024 2048\n" {
			t.Errorf("sysctls in the pod are %q", got)
		}
	}},
	{"shared process namespace", "NamespaceOption.pid", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		})
		p.sh(t, "exec sleep 4242")
		c := p.sh(t, "sleep 1000")
		eventually(t, "the other container's process is seen", func() bool {
			return strings.Contains(c.exec(t, "ps"), "sleep 4242")
		})
	}},
	{"namespaces of the host", "NamespaceOption.{ipc,pid}", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			o := config.Linux.SecurityContext.NamespaceOptions
			o.Ipc, o.Pid = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
		})
		for _, ns := range []string{"ipc", "pid"} {
			own, err := os.Readlink("/proc/self/ns/" + ns)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.sh(t, "readlink /proc/self/ns/"+ns).output(t); got != own+"\n" {
				t.Errorf("it is in %q, want %s", got, own)
			}
		}
		o := p.status(t).GetLinux().GetNamespaces().GetOptions()
		if o.GetIpc() != runtimeapi.NamespaceMode_NODE || o.GetPid() != runtimeapi.NamespaceMode_NODE {
			t.Errorf("status has %v", o)
		}
	}},
	{"process namespace of another container", "NamespaceOption.{pid,target_id} LinuxContainerSecurityContext.namespace_options", func(t *testing.T, s *suite) {
		p := s.pod(t)
		into := func(target string) func(*runtimeapi.ContainerConfig) {
			return func(config *runtimeapi.ContainerConfig) {
				config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
			}
		}
		target := p.sh(t, "exec sleep 4545")
		eventually(t, "the target is seen", func() bool {
			return strings.Contains(p.sh(t, "ps", into(target.id)).output(t), "sleep 4545")
		})
		wantError(t, "an unknown target", p.refuses(t, into("no-such-container")))
		wantError(t, "a target in another pod", s.pod(t).refuses(t, into(target.id)))
	}},
	{"host names", "PodSandboxConfig.hostname", func(t *testing.T, s *suite) {
		long := strings.Repeat("a", 60) + ".bcd" // 64, all that Linux takes
		for _, name := range []string{"a", "web-0.nginx.default.svc.cluster.local", long} {
			p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) { config.Hostname = name })
			if got := p.sh(t, "hostname; echo $HOSTNAME; cat /etc/hostname").output(t); got != strings.Repeat(name+"\n", 3) {
				t.Errorf("%s: output is %q", name, got)
			}
		}
		config := s.podConfig(t)
		config.Hostname = long + "e"
		r, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if err == nil {
			s.removePod(t, r.GetPodSandboxId())
		}
		wantError(t, "a name of 65 bytes", err)
	}},
	{"cgroup parent", "LinuxPodSandboxConfig.cgroup_parent", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "sleep 1000")
		// Wherever the memory controller is mounted, the pod's group is there.
		parent := p.config.GetLinux().GetCgroupParent()
		dirs := append(glob(t, "/sys/fs/cgroup"+parent), glob(t, "/sys/fs/cgroup/memory"+parent)...)
		if len(dirs) != 1 {
			t.Fatalf("groups of the pod: %q", dirs)
		}
		if below := glob(t, dirs[0]+"/*"+c.id+"*"); len(below) != 1 {
			t.Errorf("groups of the container below the pod's: %q", below)
		}
	}},
	{"cgroup parent of the other driver", "LinuxPodSandboxConfig.cgroup_parent", func(t *testing.T, s *suite) {
		r, err := s.Runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
		if err != nil || r.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
			t.Skip("the driver is not cgroupfs")
		}
		config := s.podConfig(t)
		config.Linux.CgroupParent = "kubepods-besteffort-pod1.slice"
		sandbox, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if err == nil {
			s.removePod(t, sandbox.GetPodSandboxId())
		}
		if err == nil || !strings.Contains(err.Error(), "cgroup_parent") {
			t.Errorf("error is %v, want one that names the field", err)
		}
	}},
	{"resources of the pod", "UpdatePodSandboxResources UpdatePodSandboxResourcesRequest.* LinuxPodSandboxConfig.{overhead,resources}", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Linux.Overhead, config.Linux.Resources = memory(1*mebibyte), memory(64*mebibyte)
		})
		update := func(id string) error {
			_, err := s.Runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
				PodSandboxId: id, Overhead: memory(2 * mebibyte), Resources: memory(77 * mebibyte),
			})
			return err
		}
		if err := update(p.id); err != nil {
			t.Fatal(err)
		}
		if info := p.info(t); !strings.Contains(info, "80740352") || strings.Contains(info, "67108864") {
			t.Errorf("verbose status does not have the new sums: %s", info)
		}
		wantCode(t, "update of an unknown sandbox", update("no-such-sandbox"), codes.NotFound)
	}},
	{"verbose status is JSON", "PodSandboxStatusRequest.verbose PodSandboxStatusResponse.{info,containers_statuses,timestamp} ContainerStatusRequest.verbose ContainerStatusResponse.info", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "sleep 1000")
		p.info(t)
		sandbox, err := s.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
		if err != nil || len(sandbox.GetInfo()) != 0 {
			t.Errorf("info of the sandbox, not asked for: %v, %v", sandbox.GetInfo(), err)
		}
		if list := sandbox.GetContainersStatuses(); len(list) != 1 || list[0].GetId() != c.id || sandbox.GetTimestamp() == 0 {
			t.Errorf("statuses of its containers at %d: %v", sandbox.GetTimestamp(), list)
		}
		plain, err := s.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		if err != nil || len(plain.GetInfo()) != 0 {
			t.Errorf("info of the container, not asked for: %v, %v", plain.GetInfo(), err)
		}
		verbose, err := s.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		wantJSON(t, verbose.GetInfo(), "pid", "runtimeSpec")
	}},
	{"shared ipc and hostname", "PodSandboxConfig.hostname", func(t *testing.T, s *suite) {
		p := s.pod(t)
		const namespaces = "hostname; readlink /proc/self/ns/ipc; readlink /proc/self/ns/net; readlink /proc/self/ns/uts"
		a, b := p.sh(t, namespaces), p.sh(t, namespaces)
		one, other := a.output(t), b.output(t)
		if one != other || !strings.Contains(one, "conformance-host\n") {
			t.Errorf("one container sees %q, the other %q", one, other)
		}
	}},
}

func anotherHandler(t *testing.T, s *suite) {
	if s.Handler == "" {
		t.Skip("the target has one handler")
	}
	status, err := s.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	named := func(h *runtimeapi.RuntimeHandler) bool { return h.GetName() == s.Handler }
	if !slices.ContainsFunc(status.GetRuntimeHandlers(), named) {
		t.Errorf("runtime handlers are %v", status.GetRuntimeHandlers())
	}
	config := s.podConfig(t)
	r, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: s.Handler})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{suite: s, id: r.GetPodSandboxId(), config: config}
	t.Cleanup(func() { s.removePod(t, p.id) })
	list := s.sandboxes(t, p.filter())
	if len(list) != 1 || list[0].GetRuntimeHandler() != s.Handler || p.status(t).GetRuntimeHandler() != s.Handler {
		t.Errorf("listed as %v, status %v", list, p.status(t))
	}
	if got := p.sh(t, "echo ran").output(t); got != "ran\n" {
		t.Errorf("output is %q", got)
	}
	if s.PullImage == "" {
		return
	}
	image := &runtimeapi.ImageSpec{Image: s.PullImage, RuntimeHandler: s.Handler}
	if _, err := s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: image}); err != nil {
		t.Errorf("pull for the handler: %v", err)
	}
	if _, err := s.Runtime.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: image}); err != nil {
		t.Error(err)
	}
	_, err = s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: s.PullImage, RuntimeHandler: "no-such-handler"}})
	wantError(t, "pull for an unknown handler", err)
}

func sandboxLifecycle(t *testing.T, s *suite) {
	before := time.Now().Add(-time.Second).UnixNano()
	p := s.pod(t)
	status := p.status(t)
	if status.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("state is %s after run", status.GetState())
	}
	if m, want := status.GetMetadata(), p.config.GetMetadata(); m.GetName() != want.GetName() || m.GetNamespace() != want.GetNamespace() || m.GetUid() != want.GetUid() || m.GetAttempt() != want.GetAttempt() {
		t.Errorf("metadata is %v, want %v", m, want)
	}
	if !maps.Equal(status.GetLabels(), p.config.GetLabels()) || !maps.Equal(status.GetAnnotations(), p.config.GetAnnotations()) {
		t.Errorf("labels are %v, annotations %v", status.GetLabels(), status.GetAnnotations())
	}
	if created := status.GetCreatedAt(); created < before || created > time.Now().UnixNano() {
		t.Errorf("created at %v", time.Unix(0, created))
	}
	if _, err := netip.ParseAddr(status.GetNetwork().GetIp()); err != nil {
		t.Errorf("IP: %v", err)
	}
	if got := status.GetLinux().GetNamespaces().GetOptions().GetPid(); got != runtimeapi.NamespaceMode_CONTAINER {
		t.Errorf("pid namespace mode is %s", got)
	}
	list := s.sandboxes(t, p.filter())
	if len(list) != 1 || list[0].GetId() != p.id || list[0].GetState() != status.GetState() || list[0].GetCreatedAt() != status.GetCreatedAt() || !maps.Equal(list[0].GetAnnotations(), p.config.GetAnnotations()) {
		t.Errorf("listed as %v", list)
	}
	for range 2 {
		p.stop(t)
		if got := p.status(t).GetState(); got != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("state is %s after stop", got)
		}
	}
	for range 2 {
		if _, err := s.Runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	_, err := s.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	wantCode(t, "status after remove", err, codes.NotFound)
	if list := s.sandboxes(t, p.filter()); len(list) != 0 {
		t.Errorf("still listed after remove: %v", list)
	}
}

func sandboxFilters(t *testing.T, s *suite) {
	a, b := s.pod(t), s.pod(t)
	b.stop(t)
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	run := map[string]string{runLabel: s.run}
	for name, test := range map[string]struct {
		filter *runtimeapi.PodSandboxFilter
		want   int
	}{
		"by label":              {&runtimeapi.PodSandboxFilter{LabelSelector: run}, 2},
		"by two labels":         {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{runLabel: s.run, "uid": a.config.GetMetadata().GetUid()}}, 1},
		"by label and state":    {&runtimeapi.PodSandboxFilter{LabelSelector: run, State: ready}, 1},
		"by id":                 {&runtimeapi.PodSandboxFilter{Id: b.id}, 1},
		"by id and other state": {&runtimeapi.PodSandboxFilter{Id: b.id, State: ready}, 0},
		"by id and other label": {&runtimeapi.PodSandboxFilter{Id: b.id, LabelSelector: map[string]string{"uid": a.config.GetMetadata().GetUid()}}, 0},
		"by unknown id":         {&runtimeapi.PodSandboxFilter{Id: "no-such-sandbox"}, 0},
		"by unknown label":      {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"no": "such"}}, 0},
	} {
		if got := s.sandboxes(t, test.filter); len(got) != test.want {
			t.Errorf("%s: %d sandboxes, want %d", name, len(got), test.want)
		}
	}
}

// sandboxes lists sandboxes.
func (s *suite) sandboxes(t *testing.T, filter *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	t.Helper()
	r, err := s.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: filter})
	if err != nil {
		t.Fatalf("list sandboxes: %v", err)
	}
	return r.GetItems()
}

// filter selects all sandboxes of a pod.
func (p *pod) filter() *runtimeapi.PodSandboxFilter {
	return &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"uid": p.config.GetMetadata().GetUid()}}
}

func (p *pod) status(t *testing.T) *runtimeapi.PodSandboxStatus {
	t.Helper()
	r, err := p.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("sandbox status: %v", err)
	}
	return r.GetStatus()
}

// info is the sandbox's verbose status.
func (p *pod) info(t *testing.T) string {
	t.Helper()
	r, err := p.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	wantJSON(t, r.GetInfo(), "pid")
	return r.GetInfo()["info"]
}

// wantJSON fails the test unless info has what crictl's templates use.
func wantJSON(t *testing.T, info map[string]string, keys ...string) {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal([]byte(info["info"]), &got); err != nil {
		t.Errorf("info is no JSON object (%v): %v", err, info)
	}
	for _, key := range keys {
		if _, ok := got[key]; !ok {
			t.Errorf("info has no %s: %v", key, info)
		}
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (p *pod) stop(t *testing.T) {
	t.Helper()
	if _, err := p.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatalf("stop sandbox: %v", err)
	}
}
