package cri

import (
	"fmt"
	"net/netip"
	"path"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Validate checks what can be known of a request without the runtime's state:
// fields that are missing, out of range or contradict each other. The error is
// InvalidArgument and names every such field by its path in the API
// ("config.mounts[2].host_path"). Who implements Runtime may rely on it only if
// the caller went through cri/server or called Validate.
//
// PodSandboxStats is let through without an id: the kubelet asks so whether the
// call is implemented.
func Validate(req proto.Message) error {
	var c check
	walk("", req.ProtoReflect(), func(at string, m protoreflect.Message) { c.enums(at, m) })
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		c.sandboxConfig("config", r.GetConfig())
	case *runtimeapi.CreateContainerRequest:
		c.required("pod_sandbox_id", r.GetPodSandboxId())
		c.containerConfig("config", r.GetConfig())
	case *runtimeapi.StopContainerRequest:
		c.required("container_id", r.GetContainerId())
		c.that(r.GetTimeout() >= 0, "timeout", "is negative")
	case *runtimeapi.UpdateContainerResourcesRequest:
		c.required("container_id", r.GetContainerId())
		c.that(r.GetWindows() == nil, "windows", "is set, and this is Linux")
		c.that(r.GetLinux() != nil || len(r.GetAnnotations()) > 0, "linux", "is missing")
	case *runtimeapi.ExecSyncRequest:
		c.required("container_id", r.GetContainerId())
		c.command(r.GetCmd())
		c.that(r.GetTimeout() >= 0, "timeout", "is negative")
	case *runtimeapi.ExecRequest:
		c.required("container_id", r.GetContainerId())
		c.command(r.GetCmd())
		c.streams(r)
	case *runtimeapi.AttachRequest:
		c.required("container_id", r.GetContainerId())
		c.streams(r)
	case *runtimeapi.PortForwardRequest:
		c.required("pod_sandbox_id", r.GetPodSandboxId())
		for i, port := range r.GetPort() {
			c.that(isPort(port), fmt.Sprintf("port[%d]", i), "%d is not in 1-65535", port)
		}
	case *runtimeapi.PodSandboxStatsRequest:
		c.short("pod_sandbox_id", r.GetPodSandboxId())
	case *runtimeapi.PullImageRequest:
		c.image(r)
	case *runtimeapi.RemoveImageRequest:
		c.image(r)
	case *runtimeapi.ImageStatusRequest:
		c.image(r)
	case *runtimeapi.CheckpointContainerRequest:
		c.required("container_id", r.GetContainerId())
		c.that(path.IsAbs(r.GetLocation()), "location", "%q is not absolute", r.GetLocation())
		c.that(r.GetTimeout() >= 0, "timeout", "is negative")
	case *runtimeapi.CheckpointPodRequest:
		c.checkpointPod(r)
	case *runtimeapi.RestorePodRequest:
		c.restorePod(r)
	case interface{ GetContainerId() string }:
		c.required("container_id", r.GetContainerId())
	case interface{ GetPodSandboxId() string }:
		c.required("pod_sandbox_id", r.GetPodSandboxId())
	}
	if len(c) == 0 {
		return nil
	}
	return Errorf(codes.InvalidArgument, "%s", strings.Join(c, "; "))
}

// check collects what is wrong with a request.
type check []string

// that records a problem of a field unless ok.
func (c *check) that(ok bool, field, problem string, args ...any) {
	if !ok {
		*c = append(*c, field+" "+fmt.Sprintf(problem, args...))
	}
}

// maxName is far above what names, paths and IDs need. What is longer would only
// make errors and logs long.
const maxName = 4096

func (c *check) required(field, value string) {
	c.that(value != "", field, "is missing")
	c.short(field, value)
}

func (c *check) short(field, value string) {
	c.that(len(value) <= maxName, field, "has %d bytes, more than %d", len(value), maxName)
}

func (c *check) command(cmd []string) {
	c.that(len(cmd) > 0 && cmd[0] != "", "cmd", "is empty")
}

func (c *check) image(r interface{ GetImage() *runtimeapi.ImageSpec }) {
	c.required("image.image", r.GetImage().GetImage())
}

func (c *check) streams(r interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}) {
	c.that(r.GetStdin() || r.GetStdout() || r.GetStderr(), "stdin, stdout, stderr", "are all false: nothing to connect")
	c.that(!r.GetTty() || !r.GetStderr(), "stderr", "is true although a tty carries both outputs as one")
}

func (c *check) sandboxConfig(at string, config *runtimeapi.PodSandboxConfig) {
	if config == nil {
		c.that(false, at, "is missing")
		return
	}
	c.required(at+".metadata.name", config.GetMetadata().GetName())
	c.required(at+".metadata.namespace", config.GetMetadata().GetNamespace())
	c.required(at+".metadata.uid", config.GetMetadata().GetUid())
	c.that(config.GetWindows() == nil, at+".windows", "is set, and this is Linux")
	for i, p := range config.GetPortMappings() {
		c.portMapping(fmt.Sprintf("%s.port_mappings[%d]", at, i), p)
	}
	for name := range config.GetLinux().GetSysctls() {
		c.that(name != "", at+".linux.sysctls", "has an empty name")
	}
	security := config.GetLinux().GetSecurityContext()
	c.that(security.GetRunAsGroup() == nil || security.GetRunAsUser() != nil,
		at+".linux.security_context.run_as_group", "is set without run_as_user")
	c.userNamespace(at+".linux.security_context.namespace_options.userns_options",
		security.GetNamespaceOptions().GetUsernsOptions())
}

func (c *check) portMapping(at string, p *runtimeapi.PortMapping) {
	c.that(isPort(p.GetContainerPort()) || p.GetHostPort() == 0, at+".container_port", "%d is not in 1-65535", p.GetContainerPort())
	c.that(isPort(p.GetHostPort()) || p.GetHostPort() == 0, at+".host_port", "%d is not in 0-65535", p.GetHostPort())
	if ip := p.GetHostIp(); ip != "" {
		_, err := netip.ParseAddr(ip)
		c.that(err == nil, at+".host_ip", "%q is not an IP address", ip)
	}
}

func (c *check) userNamespace(at string, u *runtimeapi.UserNamespace) {
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET:
		c.that(false, at+".mode", "is %s, and only POD and NODE are possible", u.GetMode())
	case runtimeapi.NamespaceMode_NODE:
		c.that(len(u.GetUids()) == 0, at+".uids", "are set although mode is NODE")
		c.that(len(u.GetGids()) == 0, at+".gids", "are set although mode is NODE")
	case runtimeapi.NamespaceMode_POD:
		if u != nil {
			c.idMapping(at+".uids", u.GetUids())
			c.idMapping(at+".gids", u.GetGids())
		}
	}
}

// idMapping allows what every runtime does: one range that starts at 0.
func (c *check) idMapping(at string, m []*runtimeapi.IDMapping) {
	if len(m) != 1 {
		c.that(false, at, "has %d mappings, and exactly one is possible", len(m))
		return
	}
	c.that(m[0].GetContainerId() == 0, at+"[0].container_id", "is %d: id 0 would not be mapped", m[0].GetContainerId())
	c.that(m[0].GetLength() > 0, at+"[0].length", "is 0")
}

func (c *check) containerConfig(at string, config *runtimeapi.ContainerConfig) {
	if config == nil {
		c.that(false, at, "is missing")
		return
	}
	c.required(at+".metadata.name", config.GetMetadata().GetName())
	c.required(at+".image.image", config.GetImage().GetImage())
	c.that(config.GetWindows() == nil, at+".windows", "is set, and this is Linux")
	for i, env := range config.GetEnvs() {
		c.that(env.GetKey() != "" && !strings.ContainsAny(env.GetKey(), "=\x00"),
			fmt.Sprintf("%s.envs[%d].key", at, i), "%q is not the name of a variable", env.GetKey())
	}
	for i, m := range config.GetMounts() {
		c.mount(fmt.Sprintf("%s.mounts[%d]", at, i), m)
	}
	for i, d := range config.GetDevices() {
		field := fmt.Sprintf("%s.devices[%d]", at, i)
		c.required(field+".host_path", d.GetHostPath())
		c.required(field+".container_path", d.GetContainerPath())
		c.that(strings.Trim(d.GetPermissions(), "rwm") == "", field+".permissions", "%q has letters other than r, w and m", d.GetPermissions())
	}
	security := config.GetLinux().GetSecurityContext()
	user, name := security.GetRunAsUser() != nil, security.GetRunAsUsername() != ""
	at += ".linux.security_context"
	c.that(!user || !name, at+".run_as_username", "is set together with run_as_user")
	c.that(security.GetRunAsGroup() == nil || user || name, at+".run_as_group", "is set without run_as_user or run_as_username")
	c.userNamespace(at+".namespace_options.userns_options", security.GetNamespaceOptions().GetUsernsOptions())
	if security.GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_TARGET {
		c.required(at+".namespace_options.target_id", security.GetNamespaceOptions().GetTargetId())
	}
}

func (c *check) mount(at string, m *runtimeapi.Mount) {
	c.required(at+".container_path", m.GetContainerPath())
	if m.GetImage().GetImage() == "" {
		c.required(at+".host_path", m.GetHostPath())
		c.that(m.GetImageSubPath() == "", at+".image_sub_path", "is set without image")
	} else {
		c.that(m.GetHostPath() == "", at+".host_path", "is set together with image")
		c.that(m.GetReadonly(), at+".readonly", "is false, and an image can only be mounted read-only")
	}
	if m.GetRecursiveReadOnly() {
		c.that(m.GetReadonly(), at+".recursive_read_only", "is set without readonly")
		c.that(m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE,
			at+".recursive_read_only", "is set with propagation %s", m.GetPropagation())
	}
}

// enums records every enum field of m that has a number the API does not
// define: it stands for a feature that this version cannot know.
func (c *check) enums(at string, m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Enum() != nil && !f.IsList() {
			c.that(f.Enum().Values().ByNumber(v.Enum()) != nil, at+string(f.Name()), "is %d, which this version does not know", v.Enum())
		}
		return true
	})
}

// NewerFields lists the fields of a request that this version of the API does
// not have, by path and number ("config.linux.99"): a newer client asks for
// something that will not happen, and somebody should be told.
func NewerFields(req proto.Message) []string {
	var newer []string
	walk("", req.ProtoReflect(), func(at string, m protoreflect.Message) {
		for b := m.GetUnknown(); len(b) > 0; {
			number, _, n := protowire.ConsumeField(b)
			if n < 0 {
				return // cannot be: the message was parsed
			}
			newer = append(newer, fmt.Sprintf("%s%d", at, number))
			b = b[n:]
		}
	})
	return newer
}

// walk calls visit for a message and all messages below it, with the path of
// their fields.
func walk(at string, m protoreflect.Message, visit func(at string, m protoreflect.Message)) {
	visit(at, m)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		field := at + string(f.Name())
		switch {
		case f.IsMap() || f.Message() == nil: // the API has no maps of messages
		case f.IsList():
			for i := range v.List().Len() {
				walk(fmt.Sprintf("%s[%d].", field, i), v.List().Get(i).Message(), visit)
			}
		default:
			walk(field+".", v.Message(), visit)
		}
		return true
	})
}

func isPort(n int32) bool { return n >= 1 && n <= 65535 }
