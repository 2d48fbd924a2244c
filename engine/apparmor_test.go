package engine

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestAppArmorRuntimeDefault runs a container under the default profile: it can
// do what containers do, and no more, even with a capability for it.
func TestAppArmorRuntimeDefault(t *testing.T) {
	n := newNode(t)
	if !n.host.spec.AppArmor {
		t.Skip("this kernel has no AppArmor")
	}
	if _, err := appArmorParser(); err != nil {
		t.Skip(err)
	}
	confined := func(ref *runtimeapi.SecurityProfile) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Apparmor = ref
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}
	}
	pod := n.run(n.pod())
	for _, ref := range []*runtimeapi.SecurityProfile{
		{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, // which loads the profile
		nil,
		{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: defaultProfileName},
	} {
		c := n.ready(n.begin(pod, n.script(forever, confined(ref))))
		const script = `cat /proc/self/attr/current
mount -t tmpfs x /tmp && echo mounted
echo x >/tmp/file && cat /tmp/file >/dev/null && echo wrote
sleep 1000 & kill $! && wait; echo killed`
		out := n.sh(c, script)
		if got := string(out.Stdout); got != defaultProfileName+" (enforce)\nwrote\nkilled\n" {
			t.Errorf("%v: %q %q", ref, got, out.Stderr)
		}
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 60}); err != nil {
			t.Error(err)
		}
		if st := n.status(c); st.ExitCode != 0 {
			t.Errorf("%v: it did not hear of its end: %v", ref, st)
		}
	}
	free := n.ready(n.begin(pod, n.script(forever, confined(&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}))))
	if out := n.sh(free, "cat /proc/self/attr/current; mount -t tmpfs x /tmp && echo mounted"); !strings.HasSuffix(string(out.Stdout), "mounted\n") {
		t.Errorf("unconfined: %q %q", out.Stdout, out.Stderr)
	}
}
