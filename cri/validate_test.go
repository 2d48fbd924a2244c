package cri

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sandbox(change func(*runtimeapi.PodSandboxConfig)) *runtimeapi.RunPodSandboxRequest {
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{},
		}},
	}
	change(config)
	return &runtimeapi.RunPodSandboxRequest{Config: config}
}

func container(change func(*runtimeapi.ContainerConfig)) *runtimeapi.CreateContainerRequest {
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "a"},
		Image:    &runtimeapi.ImageSpec{Image: "i"},
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
	}
	change(config)
	return &runtimeapi.CreateContainerRequest{PodSandboxId: "p", Config: config}
}

func mount(m *runtimeapi.Mount) *runtimeapi.CreateContainerRequest {
	return container(func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{m} })
}

func TestValidate(t *testing.T) {
	image := &runtimeapi.ImageSpec{Image: "i"}
	one := &runtimeapi.Int64Value{Value: 1}
	for name, test := range map[string]struct {
		req  proto.Message
		want []string // fields that the error must name; none for a good request
	}{
		"sandbox":    {sandbox(func(*runtimeapi.PodSandboxConfig) {}), nil},
		"checkpoint": {&runtimeapi.CheckpointContainerRequest{Location: "x", Timeout: -1}, []string{"container_id", "location", "timeout"}},
		"checkpoint of a pod": {&runtimeapi.CheckpointPodRequest{OutputPath: "x", ContainerIds: []string{"a", "a", ""}, Options: map[string]string{"o": ""}},
			[]string{"pod_sandbox_id", "output_path", "container_ids[1]", "container_ids[2]", `options["o"]`}},
		"checkpoint of no containers": {&runtimeapi.CheckpointPodRequest{PodSandboxId: "x", OutputPath: "/x"}, []string{"container_ids is empty"}},
		"restore of a pod": {&runtimeapi.RestorePodRequest{Options: map[string]string{"o": ""}},
			[]string{"checkpoint_path", "config is missing", "container_configs is empty", `options["o"]`}},
		"sandbox, nothing":     {&runtimeapi.RunPodSandboxRequest{}, []string{"config is missing"}},
		"sandbox, no metadata": {&runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{}}, []string{"config.metadata.name", "config.metadata.namespace", "config.metadata.uid"}},
		"sandbox group": {sandbox(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsGroup = one
		}), []string{"config.linux.security_context.run_as_group"}},
		"sandbox port": {sandbox(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 70000, HostIp: "1.2.3"}}
		}), []string{"port_mappings[0].host_port", "port_mappings[0].host_ip"}},
		"sandbox userns mode": {sandbox(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_TARGET}
		}), []string{"userns_options.mode"}},
		"sandbox userns without 0": {sandbox(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
				Uids: []*runtimeapi.IDMapping{{ContainerId: 1, HostId: 1000, Length: 5}},
				Gids: []*runtimeapi.IDMapping{{HostId: 1000, Length: 5}},
			}
		}), []string{"userns_options.uids[0].container_id"}},
		"sandbox, enum from the future": {sandbox(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = 17
		}), []string{"config.linux.security_context.namespace_options.network is 17"}},

		"container":          {container(func(*runtimeapi.ContainerConfig) {}), nil},
		"container, nothing": {&runtimeapi.CreateContainerRequest{}, []string{"pod_sandbox_id", "config is missing"}},
		"container group":    {container(func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup = one }), []string{"run_as_group"}},
		"container env":      {container(func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}} }), []string{"config.envs[0].key"}},
		"container device": {container(func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/d", Permissions: "rwx"}}
		}), []string{"devices[0].container_path", "devices[0].permissions"}},
		"container signal":              {container(func(c *runtimeapi.ContainerConfig) { c.StopSignal = 999 }), []string{"config.stop_signal is 999"}},
		"mount":                         {mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b"}), nil},
		"mount, nothing":                {mount(&runtimeapi.Mount{}), []string{"mounts[0].container_path", "mounts[0].host_path"}},
		"mount rro without ro":          {mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", RecursiveReadOnly: true}), []string{"mounts[0].recursive_read_only"}},
		"mount rro shared":              {mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}), []string{"mounts[0].recursive_read_only"}},
		"mount image":                   {mount(&runtimeapi.Mount{ContainerPath: "/a", Image: image, Readonly: true, ImageSubPath: "x"}), nil},
		"mount image writable":          {mount(&runtimeapi.Mount{ContainerPath: "/a", Image: image}), []string{"mounts[0].readonly"}},
		"mount, enum from the future":   {mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Propagation: 9}), []string{"config.mounts[0].propagation is 9"}},
		"exec":                          {&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true, Stderr: true}, nil},
		"exec without streams":          {&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}}, []string{"stdin, stdout, stderr"}},
		"exec tty with stderr":          {&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true, Stderr: true, Tty: true}, []string{"stderr"}},
		"exec sync without command":     {&runtimeapi.ExecSyncRequest{ContainerId: "c"}, []string{"cmd"}},
		"attach without id":             {&runtimeapi.AttachRequest{Stdin: true}, []string{"container_id"}},
		"port-forward port":             {&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 0}}, []string{"port[1]"}},
		"status without id":             {&runtimeapi.ContainerStatusRequest{}, []string{"container_id"}},
		"stop sandbox without id":       {&runtimeapi.StopPodSandboxRequest{}, []string{"pod_sandbox_id"}},
		"stop with negative timeout":    {&runtimeapi.StopContainerRequest{ContainerId: "c", Timeout: -1}, []string{"timeout"}},
		"sandbox stats probe":           {&runtimeapi.PodSandboxStatsRequest{}, nil},
		"pull without image":            {&runtimeapi.PullImageRequest{}, []string{"image.image"}},
		"update without resources":      {&runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c"}, []string{"linux"}},
		"list everything":               {&runtimeapi.ListContainersRequest{}, nil},
		"list with state of the future": {&runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: 77}}}, []string{"filter.state.state is 77"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := Validate(test.req)
			if len(test.want) == 0 {
				if err != nil {
					t.Errorf("a good request is refused: %v", err)
				}
				return
			}
			if Code(err) != codes.InvalidArgument {
				t.Fatalf("error is %v, want InvalidArgument", err)
			}
			for _, field := range test.want {
				if !strings.Contains(err.Error(), field) {
					t.Errorf("error %q does not name %q", err, field)
				}
			}
		})
	}
}

func TestNewerFieldsAreTold(t *testing.T) {
	config := &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{{}, {}}}
	config.Mounts[1].ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1))
	r := &runtimeapi.CreateContainerRequest{Config: config}
	r.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 77, protowire.BytesType), "x"))
	if got := NewerFields(r); !slices.Equal(got, []string{"77", "config.mounts[1].999"}) {
		t.Errorf("newer fields are %q", got)
	}
	if got := NewerFields(container(func(*runtimeapi.ContainerConfig) {})); got != nil {
		t.Errorf("a request of this version has newer fields %q", got)
	}
}

// FuzzValidate feeds what a client may send; nothing may panic.
func FuzzValidate(f *testing.F) {
	for _, m := range []proto.Message{
		sandbox(func(*runtimeapi.PodSandboxConfig) {}),
		mount(&runtimeapi.Mount{ContainerPath: "/a", RecursiveReadOnly: true, Propagation: 9}),
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []proto.Message{
			&runtimeapi.RunPodSandboxRequest{}, &runtimeapi.CreateContainerRequest{}, &runtimeapi.ExecRequest{},
			&runtimeapi.PortForwardRequest{}, &runtimeapi.ListContainersRequest{},
		} {
			if proto.Unmarshal(b, m) != nil {
				continue
			}
			if err := Validate(m); err != nil && Code(err) != codes.InvalidArgument {
				t.Errorf("error is %v", err)
			}
			NewerFields(m)
		}
	})
}
