package docker

import (
	"os/exec"
	"testing"

	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/cri"
)

func TestNames(t *testing.T) {
	pod := &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "shop", Uid: "8c1d", Attempt: 2}
	if got := sandboxName(pod); got != "k8s_POD_web-0_shop_8c1d_2" {
		t.Errorf("sandbox: %s", got)
	}
	if got := containerName(&runtimeapi.ContainerMetadata{Name: "nginx", Attempt: 3}, pod); got != "k8s_nginx_web-0_shop_8c1d_3" {
		t.Errorf("container: %s", got)
	}
	// Names that Kubernetes would not give stay apart from each other.
	seen := map[string]bool{}
	for _, m := range []*runtimeapi.PodSandboxMetadata{
		{Name: "a_b", Namespace: "c", Uid: "d"}, {Name: "a", Namespace: "b_c", Uid: "d"},
		{Name: "ä", Namespace: "c", Uid: "d"}, {Name: "ö", Namespace: "c", Uid: "d"}, {Name: "-", Namespace: "c", Uid: "d"},
	} {
		name := sandboxName(m)
		if seen[name] {
			t.Errorf("two pods are called %s", name)
		}
		seen[name] = true
	}
}

func TestFullName(t *testing.T) {
	for short, want := range map[string]string{
		"busybox:1":          "docker.io/library/busybox:1",
		"me/app@sha256:x":    "me/app@sha256:x", // no digest: as it is
		"quay.io/a/b:latest": "quay.io/a/b:latest",
	} {
		if got := fullName(short); got != want {
			t.Errorf("%s: %s, want %s", short, got, want)
		}
	}
	if got := names([]string{"<none>:<none>", "a@<none>", "a:1"}); len(got) != 1 || got[0] != "docker.io/library/a:1" {
		t.Errorf("names are %v", got)
	}
}

// TestRefused checks that what Docker cannot do is refused by the field's name.
func TestRefused(t *testing.T) {
	r := &Runtime{presence: presence{info: system.Info{SecurityOptions: []string{"name=selinux"}}}}
	for field, config := range map[string]*runtimeapi.ContainerConfig{
		"add_ambient_capabilities": {Linux: security(&runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{AddAmbientCapabilities: []string{"CHOWN"}}})},
		"privileged":               {Linux: security(&runtimeapi.LinuxContainerSecurityContext{Privileged: true})},
		"recursive_read_only":      {Mounts: []*runtimeapi.Mount{{RecursiveReadOnly: true}}},
		"mount_options":            {Mounts: []*runtimeapi.Mount{{MountOptions: []string{"suid"}}}},
		"uidMappings":              {Mounts: []*runtimeapi.Mount{{UidMappings: []*runtimeapi.IDMapping{{}}}}},
		"userns_options": {Linux: security(&runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}},
		})},
	} {
		wantError(t, field, cri.LeadWithReason(r.checkContainer(config, &runtimeapi.PodSandboxConfig{})))
	}
}

func security(sc *runtimeapi.LinuxContainerSecurityContext) *runtimeapi.LinuxContainerConfig {
	return &runtimeapi.LinuxContainerConfig{SecurityContext: sc}
}

// TestGroupOfTheDead looks for the cgroup of a process that has ended and that
// nobody has waited for.
func TestGroupOfTheDead(t *testing.T) {
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	r := &Runtime{cfg: Config{Cgroups: groups}}
	if g, err := r.groupOf(cmd.Process.Pid); err != nil || !groups.Unified() && g != nil {
		t.Errorf("it has the group %v, %v", g, err)
	}
}
