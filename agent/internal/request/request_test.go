package request

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/env"
	"podstead/agent/internal/observe"
)

func node() Node {
	return Node{Name: "n1", AgentID: "agent", PodLogsDir: "/logs", SeccompDir: "/seccomp", MemoryBytes: 4 << 30, Cgroups: true, CgroupRoot: "/root",
		HostDNS: DNS{Servers: []string{"1.1.1.1"}, Searches: []string{"example.com"}, Options: []string{"ndots:2", "edns0"}}}
}

// res is "cpu/memory" requests and limits; "" is none.
func res(requests, limits string) corev1.ResourceRequirements {
	list := func(s string) corev1.ResourceList {
		out := corev1.ResourceList{}
		cpu, memory, _ := strings.Cut(s, "/")
		if cpu != "" {
			out["cpu"] = resource.MustParse(cpu)
		}
		if memory != "" {
			out["memory"] = resource.MustParse(memory)
		}
		return out
	}
	return corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}
}

func pod(containers ...corev1.Container) *corev1.Pod {
	grace := int64(30)
	for i := range containers {
		if containers[i].Name == "" {
			containers[i].Name = fmt.Sprintf("c%d", i)
		}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "uid"},
		Spec:       corev1.PodSpec{Containers: containers, SecurityContext: &corev1.PodSecurityContext{}, TerminationGracePeriodSeconds: &grace},
	}
}

func TestResources(t *testing.T) {
	for _, c := range []struct {
		what   string
		res    corev1.ResourceRequirements
		qos    corev1.PodQOSClass
		parent string
		want   string // shares quota memory oom
	}{
		{"nothing", res("", ""), corev1.PodQOSBestEffort, "/root/kubepods/besteffort/poduid", "2 0 0 1000"},
		{"all limited", res("500m/1Gi", "500m/1Gi"), corev1.PodQOSGuaranteed, "/root/kubepods/poduid", "512 50000 1073741824 -997"},
		{"requests", res("250m/1Gi", ""), corev1.PodQOSBurstable, "/root/kubepods/burstable/poduid", "256 0 0 750"},
		{"cpu only", res("1/", "2/"), corev1.PodQOSBurstable, "/root/kubepods/burstable/poduid", "1024 200000 0 999"},
		{"nearly all memory", res("/4095Mi", ""), corev1.PodQOSBurstable, "/root/kubepods/burstable/poduid", "2 0 0 3"},
		{"tiny limit", res("1m/", "1m/"), corev1.PodQOSBurstable, "/root/kubepods/burstable/poduid", "2 1000 0 999"},
	} {
		p := pod(corev1.Container{Resources: c.res})
		r := node().Resources(p, &p.Spec.Containers[0])
		got := fmt.Sprint(r.CpuShares, r.CpuQuota, r.MemoryLimitInBytes, r.OomScoreAdj)
		if QoS(p) != c.qos || node().CgroupParent(p) != c.parent || got != c.want {
			t.Errorf("%s: %s in %s: %s; want %s in %s: %s", c.what, QoS(p), node().CgroupParent(p), got, c.qos, c.parent, c.want)
		}
	}
	n := node()
	n.SystemdSlice = true
	if got := n.CgroupParent(pod(corev1.Container{})); got != "kubepods-besteffort-poduid.slice" {
		t.Errorf("slice %s", got)
	}
}

func TestPodResources(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	p := pod(corev1.Container{Resources: res("1/1Gi", "1/1Gi")}, corev1.Container{Resources: res("1/1Gi", "1/1Gi")})
	p.Spec.InitContainers = []corev1.Container{
		{Name: "side", RestartPolicy: &always, Resources: res("1/1Gi", "1/1Gi")},
		{Name: "big", Resources: res("5/1Gi", "5/1Gi")},
	}
	r := PodResources(p)
	// CPU: the init container with the sidecar beside it; memory: all together.
	if r.CpuShares != 6*1024 || r.CpuQuota != 600000 || r.MemoryLimitInBytes != 3<<30 {
		t.Errorf("%+v", r)
	}
	p.Spec.Containers[0].Resources = res("1/1Gi", "")
	if r := PodResources(p); r.CpuQuota != 0 || r.MemoryLimitInBytes != 0 {
		t.Errorf("one without limits: %+v", r)
	}
}

func TestHosts(t *testing.T) {
	p := pod(corev1.Container{})
	p.Spec.Subdomain = "sub"
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "10.1.1.1", Hostnames: []string{"a", "b"}}}
	got := string(node().Hosts(p, []string{"10.0.0.2", "fd::2"}, nil))
	for _, want := range []string{"# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n", "10.0.0.2\tweb.sub.ns\tweb\n", "fd::2\tweb.sub.ns\tweb\n", "\n# Entries added by HostAliases.\n10.1.1.1\ta\tb\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	in := node()
	in.ClusterDomain = "cluster.local"
	if got := string(in.Hosts(p, []string{"10.0.0.2"}, nil)); !strings.Contains(got, "10.0.0.2\tweb.sub.ns.svc.cluster.local\tweb\n") {
		t.Errorf("in a cluster domain:\n%s", got)
	}
	p.Spec.HostNetwork = true
	if got := string(node().Hosts(p, nil, []byte("1.2.3.4\thost\n"))); !strings.HasPrefix(got, "# Kubernetes-managed hosts file (host network).\n1.2.3.4\thost\n") {
		t.Errorf("%s", got)
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 62) + "-bcdef"
	over := "over.example.com"
	for _, c := range []struct {
		change func(*corev1.Pod)
		want   string
	}{
		{func(*corev1.Pod) {}, "web"},
		{func(p *corev1.Pod) { p.Name = long }, strings.Repeat("a", 62)},
		{func(p *corev1.Pod) { p.Spec.Hostname = "h" }, "h"},
		{func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "n1"},
		{func(p *corev1.Pod) { p.Spec.HostnameOverride = &over }, over},
	} {
		p := pod(corev1.Container{})
		c.change(p)
		if got, _ := node().Hostname(p); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func TestHostnameAsFQDN(t *testing.T) {
	for _, c := range []struct {
		what, domain, hostname, subdomain string
		leaf, host                        bool
		want                              string
	}{
		{"", "cluster.local", "", "sub", false, false, "web.sub.ns.svc.cluster.local"},
		{"with a hostname", "cluster.local", "h", "sub", false, false, "h.sub.ns.svc.cluster.local"},
		{"not asked for", "cluster.local", "h", "sub", true, false, "h"},
		{"without a subdomain", "cluster.local", "", "", false, false, "web"},
		{"without a cluster domain", "", "", "sub", false, false, "web"},
		{"in the host's network", "cluster.local", "", "sub", false, true, ""},
		{"of 64 characters", "cluster.local", strings.Repeat("a", 39), "sub", false, false, strings.Repeat("a", 39) + ".sub.ns.svc.cluster.local"},
		{"of 65 characters", "cluster.local", strings.Repeat("a", 40), "sub", false, false,
			"failed to construct FQDN from pod hostname and cluster domain, FQDN " + strings.Repeat("a", 40) + ".sub.ns.svc.cluster.local is too long (64 characters is the max, 65 characters requested)"},
	} {
		n, p, fqdn := node(), pod(corev1.Container{}), !c.leaf
		n.ClusterDomain = c.domain
		p.Spec.Hostname, p.Spec.Subdomain, p.Spec.HostNetwork, p.Spec.SetHostnameAsFQDN = c.hostname, c.subdomain, c.host, &fqdn
		s, err := n.Sandbox(p, 0)
		got := s.GetHostname()
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

func TestDNS(t *testing.T) {
	five := "5"
	for _, c := range []struct {
		policy corev1.DNSPolicy
		config *corev1.PodDNSConfig
		want   string
	}{
		{corev1.DNSClusterFirst, nil, "[1.1.1.1] [example.com] [ndots:2 edns0]"},
		{corev1.DNSDefault, &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "2.2.2.2"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &five}}}, "[1.1.1.1 2.2.2.2] [example.com] [edns0 ndots:5]"},
		{corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{"3.3.3.3"}, Searches: []string{"a.b"}}, "[3.3.3.3] [a.b] []"},
		{corev1.DNSDefault, &corev1.PodDNSConfig{Nameservers: []string{"2.2.2.2", "3.3.3.3", "4.4.4.4"}}, "[1.1.1.1 2.2.2.2 3.3.3.3] [example.com] [ndots:2 edns0]"},
	} {
		p := pod(corev1.Container{})
		p.Spec.DNSPolicy, p.Spec.DNSConfig = c.policy, c.config
		d := node().dns(p)
		if got := fmt.Sprint(d.Servers, d.Searches, d.Options); got != c.want {
			t.Errorf("%s: %s, want %s", c.policy, got, c.want)
		}
	}
	d := ParseResolvConf([]byte("# x\nnameserver 127.0.0.53\nsearch a. b ; c\noptions x y\nnameserver ::1\n"))
	if got := fmt.Sprint(d.Servers, d.Searches, d.Options, d.Loopback()); got != "[127.0.0.53 ::1] [a b] [x y] true" {
		t.Errorf("parsed %s", got)
	}
}

func TestSecurity(t *testing.T) {
	root, user := int64(0), int64(1000)
	yes, no := true, false
	local := "p.json"
	for _, c := range []struct {
		what string
		pod  corev1.PodSecurityContext
		ctr  *corev1.SecurityContext
		user ImageUser
		want string // user, seccomp, no_new_privs, masked
		err  string
	}{
		{"plain", corev1.PodSecurityContext{}, nil, ImageUser{UID: &root}, "value:0 Unconfined false masked", ""},
		{"image's name", corev1.PodSecurityContext{}, nil, ImageUser{Name: "www"}, "www Unconfined false masked", ""},
		{"the container's over the pod's", corev1.PodSecurityContext{RunAsUser: &root}, &corev1.SecurityContext{RunAsUser: &user}, ImageUser{UID: &root}, "value:1000 Unconfined false masked", ""},
		{"no escalation", corev1.PodSecurityContext{}, &corev1.SecurityContext{AllowPrivilegeEscalation: &no}, ImageUser{UID: &root}, "value:0 Unconfined true masked", ""},
		{"localhost profile", corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: &local}}, nil, ImageUser{UID: &root}, "value:0 Localhost /seccomp/p.json false masked", ""},
		{"default profile", corev1.PodSecurityContext{}, &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}, ImageUser{UID: &root}, "value:0 RuntimeDefault false masked", ""},
		{"privileged has no profile", corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}, &corev1.SecurityContext{Privileged: &yes}, ImageUser{UID: &root}, "value:0 Unconfined false masked", ""},
		{"non-root by image", corev1.PodSecurityContext{RunAsNonRoot: &yes}, nil, ImageUser{UID: &user}, "value:1000 Unconfined false masked", ""},
		{"root image", corev1.PodSecurityContext{RunAsNonRoot: &yes}, nil, ImageUser{UID: &root}, "", "image will run as root"},
		{"named user", corev1.PodSecurityContext{RunAsNonRoot: &yes}, nil, ImageUser{Name: "www"}, "", "non-numeric user (www)"},
		{"root asked for", corev1.PodSecurityContext{RunAsNonRoot: &yes}, &corev1.SecurityContext{RunAsUser: &root}, ImageUser{UID: &user}, "", "breaks non-root policy"},
	} {
		p := pod(corev1.Container{SecurityContext: c.ctr})
		p.Spec.SecurityContext = &c.pod
		got, err := node().containerSecurity(p, &p.Spec.Containers[0], c.user)
		if err != nil || c.err != "" {
			if err == nil || c.err == "" || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.what, err, c.err)
			}
			continue
		}
		who := got.RunAsUsername
		if got.RunAsUser != nil {
			who = fmt.Sprintf("value:%d", got.RunAsUser.Value)
		}
		text := strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %t", who, got.Seccomp.ProfileType, got.Seccomp.LocalhostRef, got.NoNewPrivs)), " ")
		if slices.Contains(got.MaskedPaths, "/proc/kcore") {
			text += " masked"
		}
		if text != c.want {
			t.Errorf("%s: %s, want %s", c.what, text, c.want)
		}
	}
}

func TestHashesChangeWithWhatMatters(t *testing.T) {
	base := func() *corev1.Pod {
		p := pod(corev1.Container{Name: "a", Image: "i", VolumeMounts: []corev1.VolumeMount{{Name: "v"}}}, corev1.Container{Name: "b", Image: "i"})
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}}}
		return p
	}
	for _, c := range []struct {
		what          string
		change        func(*corev1.Pod)
		sandbox, a, b bool
	}{
		{"nothing", func(*corev1.Pod) {}, false, false, false},
		{"an image", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "j" }, false, true, false},
		{"a probe", func(p *corev1.Pod) { p.Spec.Containers[0].LivenessProbe = &corev1.Probe{} }, false, false, false},
		{"a hook", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{}}
		}, false, false, false},
		{"a volume that a mounts", func(p *corev1.Pod) { p.Spec.Volumes[0].HostPath.Path = "/y" }, false, true, false},
		{"a label", func(p *corev1.Pod) { p.Labels = map[string]string{"x": "y"} }, false, false, false},
		{"grace", func(p *corev1.Pod) { *p.Spec.TerminationGracePeriodSeconds = 1 }, false, false, false},
		{"host network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, true, false, false},
		{"a host port", func(p *corev1.Pod) {
			p.Spec.Containers[1].Ports = []corev1.ContainerPort{{ContainerPort: 1, HostPort: 2}}
		}, true, false, true},
		{"a hostname that is a leaf", func(p *corev1.Pod) { p.Spec.SetHostnameAsFQDN = new(bool) }, false, false, false},
		{"a hostname that is the FQDN", func(p *corev1.Pod) { yes := true; p.Spec.SetHostnameAsFQDN = &yes }, true, false, false},
		{"an init container", func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "i"}} }, true, false, false},
		{"the QoS class", func(p *corev1.Pod) { p.Spec.Containers[1].Resources = res("1/", "") }, true, false, false},
		{"what is no cpu and no memory", func(p *corev1.Pod) {
			p.Spec.Containers[1].Resources.Limits = corev1.ResourceList{"ephemeral-storage": resource.MustParse("1Gi")}
		}, false, false, true},
	} {
		before, after := base(), base()
		c.change(after)
		hash := func(p *corev1.Pod, i int) string { return ContainerHash(p, &p.Spec.Containers[i]) }
		got := []bool{SandboxHash(before) != SandboxHash(after), hash(before, 0) != hash(after, 0), hash(before, 1) != hash(after, 1)}
		if !slices.Equal(got, []bool{c.sandbox, c.a, c.b}) {
			t.Errorf("%s changes sandbox, a, b: %v, want %v", c.what, got, []bool{c.sandbox, c.a, c.b})
		}
	}
}

func TestContainer(t *testing.T) {
	sig := corev1.Signal("SIGUSR1")
	p := pod(corev1.Container{Name: "app", Image: "i:1", Command: []string{"$(A)"}, Args: []string{"$$(A)"}, TTY: true,
		Env: []corev1.EnvVar{{Name: "A", Value: "x"}}, Lifecycle: &corev1.Lifecycle{StopSignal: &sig}, TerminationMessagePath: "/dev/termination-log"})
	vars, err := env.Make(p, &p.Spec.Containers[0], nil, env.Facts{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := node().Container(Container{Pod: p, Spec: &p.Spec.Containers[0], Restarts: 3, Backoff: 10e9, ImageRef: "sha256:x", Env: vars})
	if err != nil {
		t.Fatal(err)
	}
	if c.LogPath != "app/3.log" || c.Metadata.Attempt != 3 || c.Command[0] != "x" || c.Args[0] != "$(A)" || !c.Tty ||
		c.StopSignal != runtimeapi.Signal_SIGNAL_SIGUSR1 || c.Image.Image != "sha256:x" || c.Image.UserSpecifiedImage != "i:1" {
		t.Errorf("%v", c)
	}
	for key, want := range map[string]string{observe.LabelContainerName: "app", observe.LabelPodName: "web", observe.LabelPodUID: "uid", observe.LabelAgent: "agent"} {
		if c.Labels[key] != want {
			t.Errorf("label %s is %q", key, c.Labels[key])
		}
	}
	for key, want := range map[string]string{observe.AnnotationBackoff: "10s", observe.AnnotationRestartCount: "3", observe.AnnotationGracePeriod: "30"} {
		if c.Annotations[key] != want {
			t.Errorf("annotation %s is %q", key, c.Annotations[key])
		}
	}
}

func TestHugePages(t *testing.T) {
	n := node()
	n.HugePages = []int64{64 << 10, 2 << 20, 1 << 30}
	c := corev1.Container{}
	c.Resources.Limits = corev1.ResourceList{"memory": resource.MustParse("1Gi"), "hugepages-2Mi": resource.MustParse("4Mi"), "hugepages-32Mi": resource.MustParse("32Mi")}
	p := pod(c)
	for _, r := range []struct {
		got  *runtimeapi.LinuxContainerResources
		want string
	}{
		{n.Resources(p, &p.Spec.Containers[0]), "64KB:0 2MB:4194304 32MB:33554432 1GB:0 "},
		{PodResources(p), "2MB:4194304 32MB:33554432 "},
		{n.Resources(p, &corev1.Container{}), ""},
	} {
		text := ""
		for _, l := range r.got.HugepageLimits {
			text += fmt.Sprintf("%s:%d ", l.PageSize, l.Limit)
		}
		if text != r.want {
			t.Errorf("%q, want %q", text, r.want)
		}
	}
	for name, want := range map[string]int64{"hugepages-2Mi": 2 << 20, "HugePages-1Gi": 1 << 30, "hugepages-3Mi": 0, "hugepages-": 0, "hugepages--2Mi": 0, "HugePages": 0, "memory": 0, "": 0} {
		if got, _ := HugePageSize(name); got != want {
			t.Errorf("%q: %d", name, got)
		}
	}
}

// TestOverhead: what a RuntimeClass takes comes on top of what the node gives, and
// the runtime is told of both.
func TestOverhead(t *testing.T) {
	p := pod(corev1.Container{Resources: res("1/1Gi", "1/1Gi")})
	if config, err := node().Sandbox(p, 0); err != nil || config.Linux.Overhead != nil {
		t.Errorf("%v, %v", config.Linux.Overhead, err)
	}
	p.Spec.Overhead = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("128Mi")}
	config, err := node().Sandbox(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	if o := config.Linux.Overhead; o.CpuShares != 256 || o.CpuQuota != 25000 || o.CpuPeriod != 100000 || o.MemoryLimitInBytes != 128<<20 {
		t.Errorf("overhead: %+v", o)
	}
	if r := config.Linux.Resources; r.CpuQuota != 100000 || r.MemoryLimitInBytes != 1<<30 {
		t.Errorf("resources: %+v", r)
	}
	if r := PodResources(p); r.CpuShares != 1280 || r.CpuQuota != 125000 || r.MemoryLimitInBytes != 1<<30+128<<20 {
		t.Errorf("the pod's group: %+v", r)
	}
	if r := Requests(p); r.Memory().Value() != 1<<30+128<<20 {
		t.Errorf("requests: %+v", r)
	}
}

// TestDefaultSysctls: pods get those of the node, as far as they are not the
// host's and they do not set them themselves.
func TestDefaultSysctls(t *testing.T) {
	n := node()
	n.Sysctls = map[string]string{"net.core.somaxconn": "7", "kernel.shmall": "8", "kernel.domainname": "d", "user.max_user_namespaces": "9"}
	no := false
	for what, c := range map[string]struct {
		change func(*corev1.Pod)
		want   string
	}{
		"plain":   {func(*corev1.Pod) {}, "map[kernel.domainname:d kernel.shmall:8 net.core.somaxconn:7]"},
		"network": {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "map[kernel.shmall:8]"},
		"ipc":     {func(p *corev1.Pod) { p.Spec.HostIPC = true }, "map[kernel.domainname:d net.core.somaxconn:7]"},
		"users":   {func(p *corev1.Pod) { p.Spec.HostUsers = &no }, "map[kernel.domainname:d kernel.shmall:8 net.core.somaxconn:7 user.max_user_namespaces:9]"},
		"own": {func(p *corev1.Pod) {
			p.Spec.SecurityContext.Sysctls = []corev1.Sysctl{{Name: "net/core/somaxconn", Value: "70"}}
		}, "map[kernel.domainname:d kernel.shmall:8 net.core.somaxconn:70]"},
	} {
		p := pod(corev1.Container{})
		c.change(p)
		config, err := n.Sandbox(p, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(config.Linux.Sysctls); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for name, want := range map[corev1.Signal]runtimeapi.Signal{
		corev1.SIGTERM: runtimeapi.Signal_SIGNAL_SIGTERM, corev1.SIGRTMINPLUS3: runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3,
		corev1.SIGRTMAXMINUS14: runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14, corev1.SIGRTMAX: runtimeapi.Signal_SIGNAL_SIGRTMAX, "SIGFOO": 0, "TERM": 0,
	} {
		if got := StopSignal(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}
