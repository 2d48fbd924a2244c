package engine

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/config"
	"podstead/engine/internal/selinux"
)

// needSELinux skips on hosts without it; VM_SECURITY=selinux test/vm/run is one
// with it.
func needSELinux(t *testing.T) {
	t.Helper()
	if !selinux.Enabled() {
		t.Skip("needs SELinux")
	}
}

const askLabel = `tr -d '\0' < /proc/self/attr/current; echo`

var containerLabel = regexp.MustCompile(`^system_u:system_r:container_t:s0:c\d+,c\d+$`)

func labelled(o *runtimeapi.SELinuxOption) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.SelinuxOptions = o }
}

// TestSELinuxLabels: the containers of a pod have one label, which no other pod
// has, also after a restart of the engine; what the request names is changed.
func TestSELinuxLabels(t *testing.T) {
	needSELinux(t)
	n := newNode(t)
	ctx := context.Background()
	podConfig := n.pod()
	pod := n.run(podConfig)
	ask := func(pod string, change ...func(*runtimeapi.ContainerConfig)) string {
		t.Helper()
		c := n.ready(n.begin(pod, n.script(forever, change...)))
		return strings.TrimSpace(string(n.sh(c, askLabel).Stdout))
	}
	own := ask(pod)
	if !containerLabel.MatchString(own) {
		t.Errorf("label is %q", own)
	}
	n.restart()
	if other := ask(pod); other != own {
		t.Errorf("containers of one pod have the labels %q and %q", own, other)
	}
	if other := ask(n.run(n.pod())); other == own {
		t.Errorf("two pods have the label %q", other)
	}
	level := own[strings.Index(own, ":s0"):]
	for want, o := range map[string]*runtimeapi.SELinuxOption{
		"system_u:system_r:svirt_lxc_net_t" + level: {Type: "svirt_lxc_net_t"},
		"system_u:system_r:container_t:s0:c4,c5":    {Level: "s0:c4,c5"},
	} {
		if got := ask(pod, labelled(o)); got != want {
			t.Errorf("%v: label is %q, want %q", o, got, want)
		}
	}
	_, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", labelled(&runtimeapi.SELinuxOption{Type: "no_such_t"}))})
	if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "selinux_options") {
		t.Errorf("a type that the policy does not know: %v", err)
	}
	_, err = n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0,c4"}
	})})
	if cri.Code(err) != codes.InvalidArgument || len(n.allSandboxes()) != 2 {
		t.Errorf("a level that is none: %v", err)
	}
	with := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c7,c8"}
	}))
	if got := ask(with); got != "system_u:system_r:container_t:s0:c7,c8" {
		t.Errorf("in a pod with a level the label is %q", got)
	}
	privileged := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }))
	if got := ask(privileged, func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }); strings.Contains(got, "container_t") {
		t.Errorf("a privileged container has the label %q", got)
	}
}

// TestSELinuxFiles: a container may use its root, its pod's files and shared
// memory, image volumes and what was labelled for it, and nothing else of the
// host's or of other pods.
func TestSELinuxFiles(t *testing.T) {
	needSELinux(t)
	onHandlers(t, func(t *testing.T, handlers ...config.Handler) {
		n := newNode(t, handlers...)
		dir := t.TempDir()
		for _, name := range []string{"relabelled/deeper", "not"} {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name, "file"), []byte("host's\n"), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		mounts := func(relabel bool) func(*runtimeapi.ContainerConfig) {
			return func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{
					{HostPath: filepath.Join(dir, "relabelled"), ContainerPath: "/r", SelinuxRelabel: relabel},
					{HostPath: filepath.Join(dir, "not"), ContainerPath: "/n"},
					{Image: &runtimeapi.ImageSpec{Image: testImage}, ContainerPath: "/image", Readonly: true},
				}
			}
		}
		const try = `try() { "$@" >/dev/null 2>&1 && echo yes || echo no; }
			try cat /r/deeper/file; try touch /r/new; try cat /n/file; try cat /etc/hosts; try touch /root-file /dev/shm/x /dev/x; try /image/bin/busybox true`
		pod := n.run(n.pod())
		c := n.ready(n.begin(pod, n.script(forever, mounts(true))))
		if got, want := string(n.sh(c, try).Stdout), "yes\nyes\nno\nyes\nyes\nyes\n"; got != want {
			t.Errorf("its container got %q, want %q", got, want)
		}
		other := n.ready(n.begin(n.run(n.pod()), n.script(forever, mounts(false))))
		if got, want := string(n.sh(other, try).Stdout), "no\nno\nno\nyes\nyes\nyes\n"; got != want {
			t.Errorf("another pod's got %q, want %q", got, want)
		}
		if n.sh(other, "cat /proc/self/mountinfo | grep ' / / ' | grep -c 'context=.*:container_file_t:s0:c'").ExitCode != 0 {
			t.Error("its root has no label")
		}
		_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/etc", ContainerPath: "/e", SelinuxRelabel: true}}
		})})
		if err == nil || !strings.Contains(err.Error(), "/etc") {
			t.Errorf("relabelling /etc: %v", err)
		}
		buf := make([]byte, 200)
		if size, err := unix.Lgetxattr("/etc", "security.selinux", buf); err == nil && strings.Contains(string(buf[:size]), "container_file_t") {
			t.Error("/etc was relabelled")
		}
	})
}

// TestSELinuxOff leaves labels out where the configuration says so.
func TestSELinuxOff(t *testing.T) {
	needSELinux(t)
	n := newNode(t)
	settings := n.cfg.Settings
	settings.SELinux.Disabled = true
	if err := n.Reload(settings); err != nil {
		t.Fatal(err)
	}
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever, labelled(&runtimeapi.SELinuxOption{Level: "s0:c1,c2"}))))
	if got := string(n.sh(c, askLabel).Stdout); strings.Contains(got, "container_t") {
		t.Errorf("label is %q", got)
	}
}
