package conformance

import (
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var userNamespaceTests = []test{
	{"ids and root file system", "NamespaceOption.userns_options UserNamespace.* IDMapping.{host_id,length} RuntimeHandlerFeatures.user_namespaces", func(t *testing.T, s *suite) {
		s.needUserNamespaces(t)
		p := s.pod(t, inUserNamespace)
		c := p.sh(t, "echo $(cat /proc/self/uid_map /proc/self/gid_map); touch /x; stat -c %u:%g /x /bin/busybox; hostname; readlink /proc/self/ns/user; sleep 1000")
		eventually(t, "it has spoken", func() bool { return strings.Contains(c.log(t), "user:") })
		got, own, _ := strings.Cut(c.log(t), "user:")
		if got != "0 1048576 65536 0 1048576 65536\n0:0\n0:0\nconformance-host\n" {
			t.Errorf("output is %q", got)
		}
		if other := p.sh(t, "readlink /proc/self/ns/user").output(t); other != "user:"+own {
			t.Errorf("two containers of a pod are in user:%s and %s", own, other)
		}
		if o := p.status(t).GetLinux().GetNamespaces().GetOptions().GetUsernsOptions(); o.GetUids()[0].GetHostId() != 1<<20 {
			t.Errorf("status has the options %v", o)
		}
		if got := c.exec(t, "cat", "/proc/self/uid_map"); !strings.Contains(got, "1048576") {
			t.Errorf("an exec'd process has the map %q", got)
		}
	}},
	{"with the host's network", "RuntimeFeatures.user_namespaces_host_network NamespaceOption.network", func(t *testing.T, s *suite) {
		if features, _ := s.features(t); !features.GetUserNamespacesHostNetwork() {
			t.Skip("the runtime does not have the feature")
		}
		p := s.pod(t, inUserNamespace, func(config *runtimeapi.PodSandboxConfig) {
			config.Hostname = ""
			config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		})
		own, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		c := p.sh(t, "readlink /proc/self/ns/net; echo $(cut -c1-21 /proc/self/uid_map); test -d /sys/class/net/lo && echo sys; touch /sys/x 2>/dev/null || echo no")
		if got := c.output(t); got != own+"\n0 1048576\nsys\nno\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"of the host", "UserNamespace.mode", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
		})
		own, err := os.Readlink("/proc/self/ns/user")
		if err != nil {
			t.Fatal(err)
		}
		if got := p.sh(t, "readlink /proc/self/ns/user").output(t); got != own+"\n" {
			t.Errorf("it is in %q, want %q", got, own)
		}
	}},
	{"refused", "UserNamespace.* IDMapping.container_id", func(t *testing.T, s *suite) {
		node, of := runtimeapi.NamespaceMode_NODE, mapping()
		for what, u := range map[string]*runtimeapi.UserNamespace{
			"mode CONTAINER":     {Mode: runtimeapi.NamespaceMode_CONTAINER, Uids: of, Gids: of},
			"mode TARGET":        {Mode: runtimeapi.NamespaceMode_TARGET, Uids: of, Gids: of},
			"no mappings":        {},
			"two mappings":       {Uids: append(mapping(), &runtimeapi.IDMapping{ContainerId: 1 << 16, HostId: 1 << 22, Length: 1 << 16}), Gids: of},
			"id 0 not mapped":    {Uids: []*runtimeapi.IDMapping{{ContainerId: 1, HostId: 1 << 20, Length: 1 << 16}}, Gids: of},
			"mappings with NODE": {Mode: node, Uids: of, Gids: of},
		} {
			config := s.podConfig(t)
			config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
			r, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			wantError(t, what, err)
			if err == nil {
				s.removePod(t, r.GetPodSandboxId())
			}
		}
		s.needUserNamespaces(t)
		err := s.pod(t, inUserNamespace).refuses(t, func(config *runtimeapi.ContainerConfig) {
			o := runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{
				Uids: []*runtimeapi.IDMapping{{HostId: 1 << 21, Length: 1 << 16}}, Gids: of,
			}}
			config.Linux.SecurityContext.NamespaceOptions = &o
		})
		wantError(t, "a container with other mappings than its pod", err)
	}},
}

// mapping is the one of all pods with a user namespace.
func mapping() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 1 << 16}}
}

func inUserNamespace(config *runtimeapi.PodSandboxConfig) {
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: mapping(), Gids: mapping()}
}

func (s *suite) needUserNamespaces(t *testing.T) {
	t.Helper()
	if _, features := s.features(t); !features.GetUserNamespaces() {
		t.Skip("the default handler has no user namespaces (idmapped overlay layers need Linux 5.19)")
	}
}
