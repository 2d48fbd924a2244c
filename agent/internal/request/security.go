package request

import (
	"errors"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageUser is the user that an image asks for.
type ImageUser struct {
	UID  *int64
	Name string // if not numeric
}

// UserOf reads it from an image's status; no user at all is root.
func UserOf(image *runtimeapi.Image) ImageUser {
	if image.GetUid() != nil {
		uid := image.GetUid().GetValue()
		return ImageUser{UID: &uid}
	}
	if image.GetUsername() != "" {
		return ImageUser{Name: image.GetUsername()}
	}
	root := int64(0)
	return ImageUser{UID: &root}
}

func privileged(c *corev1.Container) bool {
	return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
}

// pick returns the container's setting if it is there, else the pod's.
func pick[T any](container, pod *T) *T {
	if container != nil {
		return container
	}
	return pod
}

// effective merges pod and container settings, the container's first.
func effective(pod *corev1.Pod, c *corev1.Container) corev1.SecurityContext {
	sc := corev1.SecurityContext{}
	if c.SecurityContext != nil {
		sc = *c.SecurityContext
	}
	p := pod.Spec.SecurityContext
	sc.RunAsUser = pick(sc.RunAsUser, p.RunAsUser)
	sc.RunAsGroup = pick(sc.RunAsGroup, p.RunAsGroup)
	sc.RunAsNonRoot = pick(sc.RunAsNonRoot, p.RunAsNonRoot)
	sc.SELinuxOptions = pick(sc.SELinuxOptions, p.SELinuxOptions)
	sc.SeccompProfile = pick(sc.SeccompProfile, p.SeccompProfile)
	sc.AppArmorProfile = pick(sc.AppArmorProfile, p.AppArmorProfile)
	return sc
}

// checkNonRoot enforces runAsNonRoot against pod, container and image.
func checkNonRoot(sc *corev1.SecurityContext, user ImageUser) error {
	if sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot {
		return nil
	}
	if sc.RunAsUser != nil {
		if *sc.RunAsUser == 0 {
			return errors.New("container's runAsUser breaks non-root policy")
		}
		return nil
	}
	switch {
	case user.UID != nil && *user.UID == 0:
		return errors.New("container has runAsNonRoot and image will run as root")
	case user.UID == nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root", user.Name)
	}
	return nil
}

func (n Node) containerSecurity(pod *corev1.Pod, c *corev1.Container, user ImageUser) (*runtimeapi.LinuxContainerSecurityContext, error) {
	sc := effective(pod, c)
	if err := checkNonRoot(&sc, user); err != nil {
		return nil, err
	}
	out := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions:         namespaces(pod),
		Privileged:               privileged(c),
		SupplementalGroups:       groups(pod.Spec.SecurityContext),
		SupplementalGroupsPolicy: groupsPolicy(pod.Spec.SecurityContext),
		SelinuxOptions:           selinux(sc.SELinuxOptions),
		Seccomp:                  n.seccomp(sc.SeccompProfile, privileged(c)),
		Apparmor:                 apparmor(sc.AppArmorProfile, privileged(c)),
	}
	switch {
	case sc.RunAsUser != nil:
		out.RunAsUser = &runtimeapi.Int64Value{Value: *sc.RunAsUser}
	case user.UID != nil:
		out.RunAsUser = &runtimeapi.Int64Value{Value: *user.UID}
	default:
		out.RunAsUsername = user.Name
	}
	if sc.RunAsGroup != nil {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *sc.RunAsGroup}
	}
	if sc.ReadOnlyRootFilesystem != nil {
		out.ReadonlyRootfs = *sc.ReadOnlyRootFilesystem
	}
	if sc.AllowPrivilegeEscalation != nil {
		out.NoNewPrivs = !*sc.AllowPrivilegeEscalation
	}
	if caps := sc.Capabilities; caps != nil {
		out.Capabilities = &runtimeapi.Capability{AddCapabilities: names(caps.Add), DropCapabilities: names(caps.Drop)}
	}
	if sc.ProcMount == nil || *sc.ProcMount == corev1.DefaultProcMount {
		out.MaskedPaths, out.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	return out, nil
}

func names(caps []corev1.Capability) []string {
	var out []string
	for _, c := range caps {
		out = append(out, string(c))
	}
	return out
}

// maskedPaths and readonlyPaths are what the kubelet has by default.
func maskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
		"/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func groups(sc *corev1.PodSecurityContext) []int64 {
	var out []int64
	if sc.FSGroup != nil {
		out = append(out, *sc.FSGroup)
	}
	return append(out, sc.SupplementalGroups...)
}

func groupsPolicy(sc *corev1.PodSecurityContext) runtimeapi.SupplementalGroupsPolicy {
	if sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		return runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return runtimeapi.SupplementalGroupsPolicy_Merge
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func (n Node) seccomp(p *corev1.SeccompProfile, privileged bool) *runtimeapi.SecurityProfile {
	out := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	switch {
	case privileged:
		return out
	case p == nil:
		if n.SeccompDefault {
			out.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
		}
		return out
	}
	switch p.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		out.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
	case corev1.SeccompProfileTypeLocalhost:
		out.ProfileType = runtimeapi.SecurityProfile_Localhost
		out.LocalhostRef = filepath.Join(n.SeccompDir, *p.LocalhostProfile)
	}
	return out
}

func apparmor(p *corev1.AppArmorProfile, privileged bool) *runtimeapi.SecurityProfile {
	if p == nil || privileged {
		return nil
	}
	switch p.Type {
	case corev1.AppArmorProfileTypeLocalhost:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}
	case corev1.AppArmorProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}
