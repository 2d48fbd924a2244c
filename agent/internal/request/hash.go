package request

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
)

// SandboxHash is of all that the sandbox is made from, and of the init
// containers: when it changes the whole pod begins anew.
func SandboxHash(pod *corev1.Pod) string {
	s := &pod.Spec
	var inits []corev1.Container
	for _, c := range s.InitContainers {
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			inits = append(inits, withoutNames(c))
		}
	}
	var ports []corev1.ContainerPort
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for _, c := range list {
			for _, p := range c.Ports {
				if p.HostPort != 0 {
					p.Name = ""
					ports = append(ports, p)
				}
			}
		}
	}
	values := []any{s.HostNetwork, s.HostPID, s.HostIPC, s.ShareProcessNamespace, s.Hostname, s.Subdomain,
		s.HostnameOverride, s.DNSPolicy, s.DNSConfig, s.HostAliases, s.SecurityContext, s.RuntimeClassName,
		inits, ports, volumesOf(pod, inits), QoS(pod)}
	if !HostUsers(pod) { // only then: older agents did not count it
		values = append(values, "user namespace")
	}
	if asFQDN(pod) { // nor this
		values = append(values, "hostname is the FQDN")
	}
	return hash(values...)
}

// ContainerHash is of all that one container is made from.
func ContainerHash(pod *corev1.Pod, c *corev1.Container) string {
	return hash(withoutNames(*c), volumesOf(pod, []corev1.Container{*c}))
}

// withoutNames leaves out what a running container does not notice.
func withoutNames(c corev1.Container) corev1.Container {
	c.LivenessProbe, c.ReadinessProbe, c.StartupProbe = nil, nil, nil
	c.ImagePullPolicy = ""
	c.TerminationMessagePolicy = ""
	c.ResizePolicy = nil
	c.Resources = unresizable(c.Resources)
	if c.Lifecycle != nil {
		l := *c.Lifecycle
		l.PreStop, l.PostStart = nil, nil
		c.Lifecycle = &l
		if l.StopSignal == nil {
			c.Lifecycle = nil
		}
	}
	return c
}

// unresizable leaves out cpu and memory, which change in place.
func unresizable(r corev1.ResourceRequirements) corev1.ResourceRequirements {
	out := corev1.ResourceRequirements{Claims: r.Claims}
	rest := func(list corev1.ResourceList) (out corev1.ResourceList) {
		for name, q := range list {
			if name == corev1.ResourceCPU || name == corev1.ResourceMemory {
				continue
			}
			if out == nil {
				out = corev1.ResourceList{}
			}
			out[name] = q
		}
		return out
	}
	out.Limits, out.Requests = rest(r.Limits), rest(r.Requests)
	return out
}

// volumesOf are the definitions of the volumes that containers mount. What a
// ConfigMap or Secret volume shows is changed in place and does not count.
func volumesOf(pod *corev1.Pod, list []corev1.Container) []corev1.Volume {
	used := map[string]bool{}
	for _, c := range list {
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
		}
	}
	var out []corev1.Volume
	for _, v := range pod.Spec.Volumes {
		if !used[v.Name] {
			continue
		}
		switch {
		case v.ConfigMap != nil:
			v.VolumeSource = corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}
		case v.Secret != nil:
			v.VolumeSource = corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}
		case v.Projected != nil:
			v.VolumeSource = corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}
		case v.DownwardAPI != nil:
			v.VolumeSource = corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{}}
		}
		out = append(out, v)
	}
	return out
}

// hash of values that JSON can hold; the API types can all be marshalled.
func hash(values ...any) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, v := range values {
		_ = enc.Encode(v)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
