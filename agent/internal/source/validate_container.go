package source

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"podstead/agent/internal/device"
	"podstead/agent/internal/request"
)

func (c *podCheck) containers(spec *field.Path) {
	s := &c.pod.Spec
	if len(s.Containers) == 0 {
		c.add(field.Required(spec.Child("containers"), ""))
	}
	names := map[string]bool{}
	hostPorts := map[string]bool{}
	each := func(list []corev1.Container, p *field.Path, init bool) {
		for i := range list {
			ctr, at := &list[i], p.Index(i)
			c.container(ctr, at, init)
			if names[ctr.Name] {
				c.add(field.Duplicate(at.Child("name"), ctr.Name))
			}
			names[ctr.Name] = true
			if !init || Sidecar(ctr) {
				c.ports(ctr, at.Child("ports"), hostPorts)
			}
		}
	}
	each(s.InitContainers, spec.Child("initContainers"), true)
	each(s.Containers, spec.Child("containers"), false)
	c.ephemeralContainers(spec.Child("ephemeralContainers"), names)
}

// Sidecar tells whether an init container is restartable and so goes on
// running beside the others.
func Sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func (c *podCheck) container(ctr *corev1.Container, p *field.Path, init bool) {
	if ctr.Name == "" {
		c.add(field.Required(p.Child("name"), ""))
	} else {
		c.invalid(p.Child("name"), ctr.Name, validation.IsDNS1123Label(ctr.Name))
	}
	c.image(ctr, p)
	c.restartPolicy(ctr, p, init)
	oneOf(c, p.Child("terminationMessagePolicy"), ctr.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	if !path.IsAbs(ctr.TerminationMessagePath) {
		c.add(field.Invalid(p.Child("terminationMessagePath"), ctr.TerminationMessagePath, "must be an absolute path"))
	}
	c.env(ctr, p)
	c.mounts(ctr, p.Child("volumeMounts"))
	c.resources(&ctr.Resources, p.Child("resources"))
	c.resizePolicy(ctr, p.Child("resizePolicy"))
	c.containerSecurity(ctr.SecurityContext, p.Child("securityContext"))
	if init && !Sidecar(ctr) {
		c.noProbes(ctr, p)
		return
	}
	c.probe(ctr, ctr.LivenessProbe, p.Child("livenessProbe"), true)
	c.probe(ctr, ctr.StartupProbe, p.Child("startupProbe"), true)
	c.probe(ctr, ctr.ReadinessProbe, p.Child("readinessProbe"), false)
	if l := ctr.Lifecycle; l != nil {
		c.hook(ctr, l.PostStart, p.Child("lifecycle", "postStart"))
		c.hook(ctr, l.PreStop, p.Child("lifecycle", "preStop"))
		if l.StopSignal != nil && request.StopSignal(*l.StopSignal) == 0 {
			c.add(field.Invalid(p.Child("lifecycle", "stopSignal"), *l.StopSignal, "must be the name of a signal"))
		}
	}
}

func (c *podCheck) image(ctr *corev1.Container, p *field.Path) {
	at := p.Child("image")
	switch {
	case ctr.Image == "":
		c.add(field.Required(at, ""))
	case ctr.Image != strings.TrimSpace(ctr.Image):
		c.add(field.Invalid(at, ctr.Image, "must not begin or end with white space"))
	default:
		// An ID ("sha256:…") is no reference but a name of a local image.
		if _, err := reference.ParseAnyReference(ctr.Image); err != nil {
			c.add(field.Invalid(at, ctr.Image, err.Error()))
		}
	}
	oneOf(c, p.Child("imagePullPolicy"), ctr.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
}

func (c *podCheck) restartPolicy(ctr *corev1.Container, p *field.Path, init bool) {
	c.restartRules(ctr, p.Child("restartPolicyRules"))
	at := p.Child("restartPolicy")
	if ctr.RestartPolicy == nil {
		if len(ctr.RestartPolicyRules) > 0 {
			c.add(field.Required(at, "it holds where no rule does"))
		}
		return
	}
	oneOf(c, at, *ctr.RestartPolicy, corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyOnFailure, corev1.ContainerRestartPolicyNever)
}

func (c *podCheck) restartRules(ctr *corev1.Container, p *field.Path) {
	const maxRules, maxValues = 20, 255
	if len(ctr.RestartPolicyRules) > maxRules {
		c.add(field.TooMany(p, len(ctr.RestartPolicyRules), maxRules))
	}
	for i, r := range ctr.RestartPolicyRules {
		at := p.Index(i)
		if r.Action == corev1.ContainerRestartRuleActionRestartAllContainers {
			c.add(field.Forbidden(at.Child("action"), "to restart all containers is not supported; restart one"))
		} else {
			oneOf(c, at.Child("action"), r.Action, corev1.ContainerRestartRuleActionRestart)
		}
		codes := at.Child("exitCodes")
		if r.ExitCodes == nil {
			c.add(field.Required(codes, ""))
			continue
		}
		oneOf(c, codes.Child("operator"), r.ExitCodes.Operator, corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)
		if n := len(r.ExitCodes.Values); n < 1 || n > maxValues {
			c.add(field.Invalid(codes.Child("values"), n, "1 to 255 codes"))
		}
	}
}

func (c *podCheck) noProbes(ctr *corev1.Container, p *field.Path) {
	const why = "an init container runs to its end; with restartPolicy Always it could have this"
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"livenessProbe", ctr.LivenessProbe != nil}, {"readinessProbe", ctr.ReadinessProbe != nil},
		{"startupProbe", ctr.StartupProbe != nil}, {"lifecycle", ctr.Lifecycle != nil},
	} {
		if f.set {
			c.add(field.Forbidden(p.Child(f.name), why))
		}
	}
}

func (c *podCheck) ports(ctr *corev1.Container, p *field.Path, hostPorts map[string]bool) {
	names, ports := map[string]bool{}, map[string]bool{}
	for i, port := range ctr.Ports {
		at := p.Index(i)
		if port.Name != "" {
			c.invalid(at.Child("name"), port.Name, validation.IsValidPortName(port.Name))
			if names[port.Name] {
				c.add(field.Duplicate(at.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
		oneOf(c, at.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		c.invalid(at.Child("containerPort"), port.ContainerPort, validation.IsValidPortNum(int(port.ContainerPort)))
		key := strconv.Itoa(int(port.ContainerPort)) + "/" + string(port.Protocol) + "/" + strconv.Itoa(int(port.HostPort)) + "/" + port.HostIP
		if ports[key] {
			c.add(field.Duplicate(at, port.ContainerPort))
		}
		ports[key] = true
		if port.HostIP != "" && len(validation.IsValidIPForLegacyField(at.Child("hostIP"), port.HostIP, true, nil)) > 0 {
			c.add(field.Invalid(at.Child("hostIP"), port.HostIP, "must be an IP address"))
		}
		if port.HostPort == 0 {
			continue
		}
		c.invalid(at.Child("hostPort"), port.HostPort, validation.IsValidPortNum(int(port.HostPort)))
		if c.pod.Spec.HostNetwork && port.HostPort != port.ContainerPort {
			c.add(field.Invalid(at.Child("hostPort"), port.HostPort, "must equal containerPort with hostNetwork"))
		}
		host := port.HostIP + "/" + string(port.Protocol) + "/" + strconv.Itoa(int(port.HostPort))
		if hostPorts[host] {
			c.add(field.Duplicate(at.Child("hostPort"), port.HostPort))
		}
		hostPorts[host] = true
	}
}

func (c *podCheck) resources(r *corev1.ResourceRequirements, p *field.Path) {
	zero := resource.Quantity{}
	check := func(list corev1.ResourceList, at *field.Path) {
		for name, q := range list {
			k := at.Key(string(name))
			switch {
			case name == corev1.ResourceCPU, name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage:
			case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
				c.hugePages(r, name, q, at)
			case device.IsExtended(name):
				c.extended(r, name, q, at)
			default:
				c.add(field.Forbidden(k, "resource "+string(name)+" is not supported"))
			}
			if q.Cmp(zero) < 0 {
				c.add(field.Invalid(k, q.String(), "must not be negative"))
			}
		}
	}
	check(r.Limits, p.Child("limits"))
	check(r.Requests, p.Child("requests"))
	for name, req := range r.Requests {
		if limit, ok := r.Limits[name]; ok && req.Cmp(limit) > 0 {
			c.add(field.Invalid(p.Child("requests").Key(string(name)), req.String(), "must be at most the limit of "+limit.String()))
		}
	}
}

// hugePages checks a resource of huge pages: whole pages, no request other than
// the limit, and cpu or memory beside it.
func (c *podCheck) hugePages(r *corev1.ResourceRequirements, name corev1.ResourceName, q resource.Quantity, p *field.Path) {
	k := p.Key(string(name))
	size, ok := request.HugePageSize(string(name))
	switch limit, limited := r.Limits[name]; {
	case !ok:
		c.add(field.Invalid(k, string(name), "must name a size of pages, as hugepages-2Mi does"))
	case q.Value()%size != 0:
		c.add(field.Invalid(k, q.String(), "must be a multiple of the size of a page"))
	case !limited || limit.Cmp(q) != 0:
		c.add(field.Invalid(k, q.String(), "must be equal to the limit of "+limit.String()))
	}
	has := func(list corev1.ResourceList) bool { return !list.Cpu().IsZero() || !list.Memory().IsZero() }
	if !has(r.Limits) && !has(r.Requests) {
		c.add(field.Forbidden(k, "huge pages require cpu or memory"))
	}
}

// extended checks a resource that device plugins offer: whole numbers, and no
// request other than the limit.
func (c *podCheck) extended(r *corev1.ResourceRequirements, name corev1.ResourceName, q resource.Quantity, p *field.Path) {
	k := p.Key(string(name))
	for _, text := range validation.IsQualifiedName(string(name)) {
		c.add(field.Invalid(k, string(name), text))
	}
	if q.MilliValue()%1000 != 0 {
		c.add(field.Invalid(k, q.String(), "must be an integer"))
	}
	if limit, ok := r.Limits[name]; !ok || limit.Cmp(q) != 0 {
		c.add(field.Invalid(k, q.String(), "must be equal to the limit of "+limit.String()))
	}
}

func (c *podCheck) probe(ctr *corev1.Container, pr *corev1.Probe, p *field.Path, onceOnly bool) {
	if pr == nil {
		return
	}
	c.handler(ctr, corev1.LifecycleHandler{Exec: pr.Exec, HTTPGet: pr.HTTPGet, TCPSocket: pr.TCPSocket}, pr.GRPC, p)
	for _, n := range []struct {
		name  string
		value int32
		least int32
	}{
		{"initialDelaySeconds", pr.InitialDelaySeconds, 0}, {"timeoutSeconds", pr.TimeoutSeconds, 1},
		{"periodSeconds", pr.PeriodSeconds, 1}, {"successThreshold", pr.SuccessThreshold, 1},
		{"failureThreshold", pr.FailureThreshold, 1},
	} {
		if n.value < n.least {
			c.add(field.Invalid(p.Child(n.name), n.value, "must be at least "+strconv.Itoa(int(n.least))))
		}
	}
	if onceOnly && pr.SuccessThreshold != 1 {
		c.add(field.Invalid(p.Child("successThreshold"), pr.SuccessThreshold, "must be 1"))
	}
	if g := pr.TerminationGracePeriodSeconds; g != nil {
		if !onceOnly {
			c.add(field.Forbidden(p.Child("terminationGracePeriodSeconds"), "a readiness probe ends nothing"))
		} else if *g < 1 {
			c.add(field.Invalid(p.Child("terminationGracePeriodSeconds"), *g, "must be at least 1"))
		}
	}
}

func (c *podCheck) hook(ctr *corev1.Container, h *corev1.LifecycleHandler, p *field.Path) {
	if h != nil {
		c.handler(ctr, *h, nil, p)
	}
}

// handler checks that exactly one action is given, and that it is complete.
func (c *podCheck) handler(ctr *corev1.Container, h corev1.LifecycleHandler, g *corev1.GRPCAction, p *field.Path) {
	n := 0
	if h.Exec != nil {
		n++
		if len(h.Exec.Command) == 0 {
			c.add(field.Required(p.Child("exec", "command"), ""))
		}
	}
	if h.HTTPGet != nil {
		n++
		at := p.Child("httpGet")
		c.portRef(ctr, h.HTTPGet.Port, at.Child("port"))
		oneOf(c, at.Child("scheme"), h.HTTPGet.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
		for i, header := range h.HTTPGet.HTTPHeaders {
			c.invalid(at.Child("httpHeaders").Index(i).Child("name"), header.Name, validation.IsHTTPHeaderName(header.Name))
		}
	}
	if h.TCPSocket != nil {
		n++
		c.portRef(ctr, h.TCPSocket.Port, p.Child("tcpSocket", "port"))
	}
	if g != nil {
		n++
		c.invalid(p.Child("grpc", "port"), g.Port, validation.IsValidPortNum(int(g.Port)))
	}
	if h.Sleep != nil {
		n++
		if s := h.Sleep.Seconds; s < 0 || s > *c.pod.Spec.TerminationGracePeriodSeconds {
			c.add(field.Invalid(p.Child("sleep", "seconds"), s, "must be between 0 and terminationGracePeriodSeconds"))
		}
	}
	if n != 1 {
		c.add(field.Invalid(p, n, "must have exactly one action"))
	}
}

func (c *podCheck) portRef(ctr *corev1.Container, port intstr.IntOrString, p *field.Path) {
	if port.Type == intstr.Int {
		c.invalid(p, port.IntValue(), validation.IsValidPortNum(port.IntValue()))
		return
	}
	if _, ok := PortByName(ctr, port.StrVal); !ok {
		c.add(field.Invalid(p, port.StrVal, "the container has no port of that name"))
	}
}

// PortByName finds a container's port.
func PortByName(ctr *corev1.Container, name string) (int32, bool) {
	i := slices.IndexFunc(ctr.Ports, func(p corev1.ContainerPort) bool { return p.Name == name })
	if i < 0 {
		return 0, false
	}
	return ctr.Ports[i].ContainerPort, true
}

func (c *podCheck) containerSecurity(s *corev1.SecurityContext, p *field.Path) {
	if s == nil {
		return
	}
	c.ids(p, s.RunAsUser, s.RunAsGroup)
	c.seccomp(p.Child("seccompProfile"), s.SeccompProfile)
	c.apparmor(p.Child("appArmorProfile"), s.AppArmorProfile)
	privileged := s.Privileged != nil && *s.Privileged
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation && privileged {
		c.add(field.Invalid(p.Child("allowPrivilegeEscalation"), false, "must not be false for a privileged container"))
	}
	if s.ProcMount != nil {
		oneOf(c, p.Child("procMount"), *s.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
		if h := c.pod.Spec.HostUsers; *s.ProcMount == corev1.UnmaskedProcMount && (h == nil || *h) {
			c.add(field.Forbidden(p.Child("procMount"), "Unmasked needs hostUsers: false"))
		}
	}
}
