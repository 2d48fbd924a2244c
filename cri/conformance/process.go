package conformance

import (
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// processTests are about what a container's process finds around itself.
var processTests = []test{
	{"command of the image", "ContainerConfig.image", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "")
		config.Command = nil // sh, which ends at the end of its empty input
		if got := p.start(t, config).output(t); got != "" {
			t.Errorf("output is %q", got)
		}
	}},
	{"args replace the command of the image", "ContainerConfig.args", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "")
		config.Command, config.Args = nil, []string{"echo", "one", "two  three"}
		if got := p.start(t, config).output(t); got != "one two  three\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"environment", "ContainerConfig.envs KeyValue.*", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, `echo "$FROM_IMAGE $A $B $HOME $HOSTNAME"`, func(config *runtimeapi.ContainerConfig) {
			config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("a=b c")}, {Key: "B", Value: []byte("$A")}}
		})
		if got := c.output(t); got != "yes a=b c $A /root conformance-host\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"environment wins over the image", "ContainerConfig.envs", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, `echo "$FROM_IMAGE"; env | grep -c FROM_IMAGE`, func(config *runtimeapi.ContainerConfig) {
			config.Envs = []*runtimeapi.KeyValue{{Key: "FROM_IMAGE", Value: []byte("no")}}
		})
		if got := c.output(t); got != "no\n1\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"working directory", "ContainerConfig.working_dir", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "pwd", func(config *runtimeapi.ContainerConfig) { config.WorkingDir = "/made/for/it" })
		if got := c.output(t); got != "/made/for/it\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"user and groups", "LinuxContainerConfig.security_context " +
		"LinuxContainerSecurityContext.{run_as_user,run_as_group,run_as_username,supplemental_groups}", userAndGroups},
	{"read-only root", "LinuxContainerSecurityContext.readonly_rootfs", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "touch /x 2>/dev/null && echo wrote /; touch /dev/shm/x && echo wrote shm", func(config *runtimeapi.ContainerConfig) {
			config.Linux.SecurityContext.ReadonlyRootfs = true
		})
		if got := c.output(t); got != "wrote shm\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"root is its own", "CreateContainer", func(t *testing.T, s *suite) {
		p := s.pod(t)
		p.sh(t, "echo x > /from-the-first").exited(t)
		if got := p.sh(t, "ls /").output(t); strings.Contains(got, "from-the-first") {
			t.Errorf("one container's file is in another's root: %q", got)
		}
	}},
	{"strict groups", "LinuxContainerSecurityContext.supplemental_groups_policy RuntimeFeatures.supplemental_groups_policy ContainerStatus.user " +
		"ContainerUser.linux LinuxContainerUser.*", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "id -G; sleep 1000", func(config *runtimeapi.ContainerConfig) {
			security := config.Linux.SecurityContext
			security.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			security.SupplementalGroups = []int64{5000}
			security.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		})
		if features, _ := s.features(t); !features.GetSupplementalGroupsPolicy() {
			t.Error("the runtime does not have the feature")
		}
		c.says(t, "1000 5000\n") // and not 2000, which is in the image's /etc/group
		if user := c.status(t).GetUser().GetLinux(); user.GetUid() != 1000 || user.GetGid() != 1000 ||
			!slices.Contains(user.GetSupplementalGroups(), 5000) || slices.Contains(user.GetSupplementalGroups(), 2000) {
			t.Errorf("status has the user %v", user)
		}
	}},
	{"terminal", "ContainerConfig.tty", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "tty", func(config *runtimeapi.ContainerConfig) { config.Tty = true })
		if got := c.output(t); !strings.HasPrefix(got, "/dev/") {
			t.Errorf("output is %q", got)
		}
	}},
	{"devices", "ContainerConfig.devices Device.*", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "stat -c %t:%T /dev/mine; head -c 4 /dev/mine | wc -c", func(config *runtimeapi.ContainerConfig) {
			config.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/mine", Permissions: "rw"}}
		})
		if got := c.output(t); got != "1:5\n4\n" {
			t.Errorf("output is %q", got)
		}
	}},
}

func userAndGroups(t *testing.T, s *suite) {
	p := s.pod(t)
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	for name, test := range map[string]struct {
		security *runtimeapi.LinuxContainerSecurityContext
		want     string
	}{
		"nothing set":       {&runtimeapi.LinuxContainerSecurityContext{}, "0 0 0"},
		"user id":           {&runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(1000)}, "1000 1000 1000 2000"},
		"unknown user id":   {&runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(4711)}, "4711 0 0"},
		"user name":         {&runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "user"}, "1000 1000 1000 2000"},
		"user and group":    {&runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(1000), RunAsGroup: id(3000)}, "1000 3000 3000 2000"},
		"additional groups": {&runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(4711), SupplementalGroups: []int64{5000}}, "4711 0 0 5000"},
	} {
		c := p.sh(t, `echo $(id -u) $(id -g) $(id -G)`, func(config *runtimeapi.ContainerConfig) {
			test.security.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
			config.Linux.SecurityContext = test.security
		})
		if got := strings.TrimSpace(c.output(t)); got != test.want {
			t.Errorf("%s: id is %q, want %q", name, got, test.want)
		}
	}
	config := p.script("nobody", "true")
	config.Linux.SecurityContext.RunAsUsername = "no-such-user"
	_, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	wantError(t, "create with an unknown user name", err)
	config = p.script("group", "true")
	config.Linux.SecurityContext.RunAsGroup = id(1)
	_, err = s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	wantError(t, "create with a group and no user", err)
}
