package source

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// podCheck validates one pod; errs collects what it finds.
type podCheck struct {
	pod     *corev1.Pod
	sysctls []string // unsafe ones that are allowed
	volumes map[string]*corev1.Volume
	errs    field.ErrorList
}

// validatePod checks a defaulted pod as the API server would, as far as it
// matters on a node, and a little more: what cannot work here is refused here.
func validatePod(pod *corev1.Pod, sysctls []string) field.ErrorList {
	c := &podCheck{pod: pod, sysctls: sysctls, volumes: map[string]*corev1.Volume{}}
	c.errs = append(c.errs, validateMeta(&pod.ObjectMeta)...)
	c.uid()
	spec := field.NewPath("spec")
	c.volumeList(spec.Child("volumes"))
	c.podFields(spec)
	c.podSecurity(spec.Child("securityContext"))
	c.overhead(spec.Child("overhead"))
	c.containers(spec)
	c.podResources(spec.Child("resources"))
	return c.errs
}

func (c *podCheck) add(errs ...*field.Error) { c.errs = append(c.errs, errs...) }

// invalid adds an Invalid error for each message.
func (c *podCheck) invalid(p *field.Path, value any, messages []string) {
	for _, m := range messages {
		c.add(field.Invalid(p, value, m))
	}
}

// oneOf checks an enumeration; "" is not allowed unless listed.
func oneOf[T ~string](c *podCheck, p *field.Path, value T, allowed ...T) {
	if !slices.Contains(allowed, value) {
		c.add(field.NotSupported(p, value, allowed))
	}
}

func validateMeta(m *metav1.ObjectMeta) (errs field.ErrorList) {
	p := field.NewPath("metadata")
	if m.Name == "" {
		if m.GenerateName != "" {
			return field.ErrorList{field.Forbidden(p.Child("generateName"), "a manifest that is applied again needs a fixed name")}
		}
		return field.ErrorList{field.Required(p.Child("name"), "")}
	}
	for _, msg := range validation.IsDNS1123Subdomain(m.Name) {
		errs = append(errs, field.Invalid(p.Child("name"), m.Name, msg))
	}
	if m.Namespace != "" { // volumes have none
		for _, msg := range validation.IsDNS1123Label(m.Namespace) {
			errs = append(errs, field.Invalid(p.Child("namespace"), m.Namespace, msg))
		}
	}
	return append(errs, metavalidation.ValidateLabels(m.Labels, p.Child("labels"))...)
}

// uid: it becomes a directory and a cgroup name.
func (c *podCheck) uid() {
	if uid := string(c.pod.UID); uid != "" {
		c.invalid(field.NewPath("metadata", "uid"), uid, validation.IsDNS1123Label(uid))
	}
}

func (c *podCheck) podFields(p *field.Path) {
	s := &c.pod.Spec
	oneOf(c, p.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	oneOf(c, p.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	if g := *s.TerminationGracePeriodSeconds; g < 0 {
		c.add(field.Invalid(p.Child("terminationGracePeriodSeconds"), g, "must not be negative"))
	}
	if d := s.ActiveDeadlineSeconds; d != nil && *d < 1 {
		c.add(field.Invalid(p.Child("activeDeadlineSeconds"), *d, "must be at least 1"))
	}
	if s.HostUsers != nil && !*s.HostUsers && (s.HostNetwork || s.HostPID || s.HostIPC) {
		c.add(field.Forbidden(p.Child("hostUsers"), "false, together with hostNetwork, hostPID or hostIPC"))
	}
	if s.HostPID && s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		c.add(field.Invalid(p.Child("shareProcessNamespace"), true, "must not be set together with hostPID"))
	}
	if s.OS != nil && s.OS.Name != corev1.Linux {
		c.add(field.NotSupported(p.Child("os", "name"), s.OS.Name, []corev1.OSName{corev1.Linux}))
	}
	for _, n := range []struct{ name, value string }{{"hostname", s.Hostname}, {"subdomain", s.Subdomain}} {
		if n.value != "" {
			c.invalid(p.Child(n.name), n.value, validation.IsDNS1123Label(n.value))
		}
	}
	if h := s.HostnameOverride; h != nil && *h != "" {
		c.invalid(p.Child("hostnameOverride"), *h, validation.IsDNS1123Subdomain(*h))
		if len(*h) > 64 {
			c.add(field.TooLong(p.Child("hostnameOverride"), *h, 64))
		}
		if s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN {
			c.add(field.Forbidden(p.Child("setHostnameAsFQDN"), "together with hostnameOverride"))
		}
	}
	for i, r := range s.ImagePullSecrets {
		if r.Name == "" {
			c.add(field.Required(p.Child("imagePullSecrets").Index(i).Child("name"), ""))
		}
	}
	for i, g := range s.ReadinessGates {
		c.invalid(p.Child("readinessGates").Index(i).Child("conditionType"), g.ConditionType, validation.IsQualifiedName(string(g.ConditionType)))
	}
	c.dns(p)
}

func (c *podCheck) dns(p *field.Path) {
	s := &c.pod.Spec
	for i, a := range s.HostAliases {
		at := p.Child("hostAliases").Index(i)
		if _, err := netip.ParseAddr(a.IP); err != nil {
			c.add(field.Invalid(at.Child("ip"), a.IP, "must be an IP address"))
		}
		for j, h := range a.Hostnames {
			c.invalid(at.Child("hostnames").Index(j), h, validation.IsDNS1123Subdomain(h))
		}
	}
	d := s.DNSConfig
	at := p.Child("dnsConfig")
	if s.DNSPolicy == corev1.DNSNone && (d == nil || len(d.Nameservers) == 0) {
		c.add(field.Required(at.Child("nameservers"), "dnsPolicy is None"))
	}
	if d == nil {
		return
	}
	if len(d.Nameservers) > 3 {
		c.add(field.TooMany(at.Child("nameservers"), len(d.Nameservers), 3))
	}
	for i, n := range d.Nameservers {
		if _, err := netip.ParseAddr(n); err != nil {
			c.add(field.Invalid(at.Child("nameservers").Index(i), n, "must be an IP address"))
		}
	}
	if len(d.Searches) > 32 {
		c.add(field.TooMany(at.Child("searches"), len(d.Searches), 32))
	}
	for i, n := range d.Searches {
		if n != "." {
			c.invalid(at.Child("searches").Index(i), n, validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(n, ".")))
		}
	}
	for i, o := range d.Options {
		v := o.Name
		if o.Value != nil {
			v += ":" + *o.Value
		}
		if o.Name == "" || strings.ContainsAny(v, " \t\n") {
			c.add(field.Invalid(at.Child("options").Index(i), v, "must be one word"))
		}
	}
}

// overhead: an API server takes it over from the pod's RuntimeClass; here the pod
// says it itself.
func (c *podCheck) overhead(p *field.Path) {
	if len(c.pod.Spec.Overhead) == 0 {
		return
	}
	if c.pod.Spec.RuntimeClassName == nil {
		c.add(field.Forbidden(p, "it is a RuntimeClass's, and there is no runtimeClassName"))
	}
	for name, q := range c.pod.Spec.Overhead {
		switch {
		case name != corev1.ResourceCPU && name != corev1.ResourceMemory && name != corev1.ResourceEphemeralStorage:
			c.add(field.Forbidden(p.Key(string(name)), "only cpu, memory and ephemeral-storage are supported"))
		case q.Sign() < 0:
			c.add(field.Invalid(p.Key(string(name)), q.String(), "must not be negative"))
		}
	}
}

func (c *podCheck) podSecurity(p *field.Path) {
	s := c.pod.Spec.SecurityContext
	c.ids(p, s.RunAsUser, s.RunAsGroup)
	if s.FSGroup != nil {
		c.invalid(p.Child("fsGroup"), *s.FSGroup, validation.IsValidGroupID(*s.FSGroup))
	}
	for i, g := range s.SupplementalGroups {
		c.invalid(p.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g))
	}
	if policy := s.SupplementalGroupsPolicy; policy != nil {
		oneOf(c, p.Child("supplementalGroupsPolicy"), *policy, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if policy := s.FSGroupChangePolicy; policy != nil {
		oneOf(c, p.Child("fsGroupChangePolicy"), *policy, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)
	}
	c.seccomp(p.Child("seccompProfile"), s.SeccompProfile)
	c.apparmor(p.Child("appArmorProfile"), s.AppArmorProfile)
	seen := map[string]bool{}
	for i, ctl := range s.Sysctls {
		at := p.Child("sysctls").Index(i)
		name := strings.ReplaceAll(ctl.Name, "/", ".")
		switch {
		case seen[name]:
			c.add(field.Duplicate(at.Child("name"), ctl.Name))
		case !safeSysctl(name) && !slices.ContainsFunc(c.sysctls, func(allowed string) bool { return matches(allowed, name) }):
			c.add(field.Forbidden(at.Child("name"), "sysctl "+ctl.Name+" is not one of the safe ones"))
		case (c.pod.Spec.HostNetwork && strings.HasPrefix(name, "net.")) || (c.pod.Spec.HostIPC && name == "kernel.shm_rmid_forced"):
			c.add(field.Forbidden(at.Child("name"), "sysctl "+ctl.Name+" would change the host's namespace"))
		case strings.ContainsAny(ctl.Value, "\n\x00"):
			c.add(field.Invalid(at.Child("value"), ctl.Value, "must be one line"))
		}
		seen[name] = true
	}
}

// matches tells whether a name is allowed by an entry, which may end with a *.
func matches(entry, name string) bool {
	entry = strings.ReplaceAll(entry, "/", ".")
	begin, any := strings.CutSuffix(entry, "*")
	return entry == name || any && strings.HasPrefix(name, begin)
}

// safeSysctl holds the kubelet's list of sysctls that are namespaced and cannot
// harm others.
func safeSysctl(name string) bool {
	switch name {
	case "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies",
		"net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports",
		"net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
		"net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
		"net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat":
		return true
	}
	return false
}

func (c *podCheck) ids(p *field.Path, user, group *int64) {
	if user != nil {
		c.invalid(p.Child("runAsUser"), *user, validation.IsValidUserID(*user))
	}
	if group != nil {
		c.invalid(p.Child("runAsGroup"), *group, validation.IsValidGroupID(*group))
	}
}

func (c *podCheck) seccomp(p *field.Path, s *corev1.SeccompProfile) {
	if s == nil {
		return
	}
	oneOf(c, p.Child("type"), s.Type, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined, corev1.SeccompProfileTypeLocalhost)
	local := p.Child("localhostProfile")
	switch {
	case s.Type != corev1.SeccompProfileTypeLocalhost:
		if s.LocalhostProfile != nil {
			c.add(field.Forbidden(local, "only with type Localhost"))
		}
	case s.LocalhostProfile == nil || *s.LocalhostProfile == "":
		// CVE-2023-2431: an empty name must not end as unconfined.
		c.add(field.Required(local, "type is Localhost"))
	default:
		c.descending(local, *s.LocalhostProfile)
	}
}

func (c *podCheck) apparmor(p *field.Path, a *corev1.AppArmorProfile) {
	if a == nil {
		return
	}
	oneOf(c, p.Child("type"), a.Type, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined, corev1.AppArmorProfileTypeLocalhost)
	if a.Type == corev1.AppArmorProfileTypeLocalhost && (a.LocalhostProfile == nil || *a.LocalhostProfile == "") {
		c.add(field.Required(p.Child("localhostProfile"), "type is Localhost"))
	}
}

// descending checks a relative path that stays below where it begins.
func (c *podCheck) descending(p *field.Path, value string) {
	if path.IsAbs(value) {
		c.add(field.Invalid(p, value, "must be a relative path"))
	}
	if slices.Contains(strings.Split(value, "/"), "..") {
		c.add(field.Invalid(p, value, "must not contain '..'"))
	}
}

func validateConfigMap(m *corev1.ConfigMap) field.ErrorList {
	errs := validateMeta(&m.ObjectMeta)
	for k := range m.Data {
		errs = append(errs, validateKey("data", k)...)
		if _, dup := m.BinaryData[k]; dup {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(k), k, "is in binaryData, too"))
		}
	}
	for k := range m.BinaryData {
		errs = append(errs, validateKey("binaryData", k)...)
	}
	return errs
}

// acceptSecret folds stringData into data and checks the keys.
func acceptSecret(s *corev1.Secret) field.ErrorList {
	errs := validateMeta(&s.ObjectMeta)
	def(&s.Type, corev1.SecretTypeOpaque)
	for k, v := range s.StringData {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
	for k := range s.Data {
		errs = append(errs, validateKey("data", k)...)
	}
	if s.Type == corev1.SecretTypeDockerConfigJson {
		if _, ok := s.Data[corev1.DockerConfigJsonKey]; !ok {
			errs = append(errs, field.Required(field.NewPath("data").Key(corev1.DockerConfigJsonKey), "type is "+string(s.Type)))
		}
	}
	return errs
}

// validateKey: a key becomes a file name.
func validateKey(where, key string) (errs field.ErrorList) {
	for _, msg := range validation.IsConfigMapKey(key) {
		errs = append(errs, field.Invalid(field.NewPath(where).Key(key), key, msg))
	}
	return errs
}
