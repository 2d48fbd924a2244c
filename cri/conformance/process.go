package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
	{"capabilities", "LinuxContainerSecurityContext.capabilities Capability.{add_capabilities,drop_capabilities}", func(t *testing.T, s *suite) {
		p := s.pod(t)
		drop := func(config *runtimeapi.ContainerConfig) {
			config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		}
		if got := p.sh(t, "grep CapEff /proc/self/status", drop).output(t); got != "CapEff:\t0000000000000400\n" {
			t.Errorf("with all but one dropped: %q", got)
		}
		// Default capabilities hold CHOWN (bit 0) and not SYS_ADMIN (bit 21).
		var caps uint64
		got := p.sh(t, "grep CapEff /proc/self/status").output(t)
		if _, err := fmt.Sscanf(got, "CapEff:\t%x", &caps); err != nil || caps&1 == 0 || caps&(1<<21) != 0 {
			t.Errorf("by default: %q", got)
		}
	}},
	{"no new privileges", "LinuxContainerSecurityContext.no_new_privs", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "grep NoNewPrivs /proc/self/status", func(config *runtimeapi.ContainerConfig) {
			config.Linux.SecurityContext.NoNewPrivs = true
		})
		if got := c.output(t); got != "NoNewPrivs:\t1\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"default seccomp profile", "LinuxContainerSecurityContext.seccomp SecurityProfile.profile_type", func(t *testing.T, s *suite) {
		p := s.pod(t)
		for want, profile := range map[string]*runtimeapi.SecurityProfile{
			"Seccomp:\t2\n": {ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			"Seccomp:\t0\n": {ProfileType: runtimeapi.SecurityProfile_Unconfined},
		} {
			c := p.sh(t, "grep Seccomp: /proc/self/status", func(config *runtimeapi.ContainerConfig) {
				config.Linux.SecurityContext.Seccomp = profile
			})
			if got := c.output(t); got != want {
				t.Errorf("%s: %q", profile.GetProfileType(), got)
			}
		}
	}},
	{"masked and read-only paths", "LinuxContainerSecurityContext.{masked_paths,readonly_paths}", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "exec 2>&1; wc -c < /proc/keys; echo 1 > /proc/sys/kernel/panic; true", func(config *runtimeapi.ContainerConfig) {
			config.Linux.SecurityContext.MaskedPaths = []string{"/proc/keys"}
			config.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys"}
		})
		if got := c.output(t); !strings.HasPrefix(got, "0\n") || !strings.Contains(strings.ToLower(got), "read-only") {
			t.Errorf("output is %q", got)
		}
	}},
	{"privileged", "LinuxContainerSecurityContext.privileged LinuxSandboxSecurityContext.privileged", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) { config.Linux.SecurityContext.Privileged = true })
		c := p.sh(t, "test -w /proc/sys/kernel && mkdir /m && mount -t tmpfs x /m && echo mounted", func(config *runtimeapi.ContainerConfig) {
			config.Linux.SecurityContext.Privileged = true
		})
		if got := c.output(t); got != "mounted\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"privileged needs a privileged sandbox", "LinuxContainerSecurityContext.privileged", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "true")
		config.Linux.SecurityContext.Privileged = true
		_, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		wantError(t, "create", err)
	}},
	{"bind mounts", "ContainerConfig.mounts Mount.{container_path,host_path,readonly} ContainerStatus.mounts", bindMounts},
	{"recursively read-only mounts", "Mount.recursive_read_only", recursiveReadOnly},
	{"image volumes", "Mount.{image,image_sub_path}", imageVolumes},
	{"strict groups", "LinuxContainerSecurityContext.supplemental_groups_policy ContainerStatus.user " +
		"ContainerUser.linux LinuxContainerUser.*", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "id -G; sleep 1000", func(config *runtimeapi.ContainerConfig) {
			security := config.Linux.SecurityContext
			security.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			security.SupplementalGroups = []int64{5000}
			security.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		})
		c.says(t, "1000 5000\n") // and not 2000, which is in the image's /etc/group
		if user := c.status(t).GetUser().GetLinux(); user.GetUid() != 1000 || user.GetGid() != 1000 {
			t.Errorf("status has the user %v", user)
		}
	}},
	{"user namespace", "NamespaceOption.userns_options UserNamespace.{uids,gids} IDMapping.{host_id,length}", func(t *testing.T, s *suite) {
		mapping := []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 1 << 16}}
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: mapping, Gids: mapping}
		})
		c := p.sh(t, "echo $(cat /proc/self/uid_map /proc/self/gid_map); touch /x; stat -c %u:%g /x /bin/busybox; hostname")
		if got := c.output(t); got != "0 1048576 65536 0 1048576 65536\n0:0\n0:0\nconformance-host\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"mount of something missing", "Mount.host_path", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "true")
		config.Mounts = []*runtimeapi.Mount{{HostPath: "/dev/null/no-such", ContainerPath: "/x"}}
		r, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if err == nil {
			_, err = s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.GetContainerId()})
		}
		if err == nil || !strings.Contains(err.Error(), "no-such") {
			t.Errorf("error is %v, want one that names the path", err)
		}
	}},
	{"mount over a link does not leave the root", "Mount.container_path", func(t *testing.T, s *suite) {
		dir := t.TempDir()
		c := s.pod(t).sh(t, "ls /tmp/made-by-mount", func(config *runtimeapi.ContainerConfig) {
			// /bin/../../../ climbs out of a root that is resolved carelessly.
			config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/bin/../../../tmp/made-by-mount"}}
		})
		c.output(t)
		if _, err := os.Stat("/tmp/made-by-mount"); err == nil {
			t.Error("the mount point was made on the host")
			os.Remove("/tmp/made-by-mount")
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

func bindMounts(t *testing.T, s *suite) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := s.pod(t).sh(t, "exec 2>&1; cat /rw/file /one; echo x > /rw/new; echo y > /ro/new; true", func(config *runtimeapi.ContainerConfig) {
		config.Mounts = []*runtimeapi.Mount{
			{HostPath: dir, ContainerPath: "/rw"},
			{HostPath: dir, ContainerPath: "/ro", Readonly: true},
			{HostPath: filepath.Join(dir, "file"), ContainerPath: "/one", Readonly: true},
		}
	})
	got := c.output(t)
	if !strings.HasPrefix(got, "from the host\nfrom the host\n") || !strings.Contains(strings.ToLower(got), "read-only") {
		t.Errorf("output is %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(b) != "x\n" {
		t.Errorf("the host sees %q, %v", b, err)
	}
	if mounts := c.status(t).GetMounts(); len(mounts) != 3 {
		t.Errorf("status has mounts %v, want three", mounts)
	}
}

// recursiveReadOnly needs to be root in the runtime's mount namespace.
func recursiveReadOnly(t *testing.T, s *suite) {
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount a file system for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(below, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := s.pod(t).sh(t, "touch /ro/below/a 2>/dev/null && echo one; touch /rro/below/b 2>/dev/null && echo two; true", func(config *runtimeapi.ContainerConfig) {
		config.Mounts = []*runtimeapi.Mount{
			{HostPath: dir, ContainerPath: "/ro", Readonly: true},
			{HostPath: dir, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
		}
	})
	if got := c.output(t); got != "one\n" {
		t.Errorf("it could write below: %q", got)
	}
}

func imageVolumes(t *testing.T, s *suite) {
	p := s.pod(t)
	volume := func(subPath string) *runtimeapi.Mount {
		return &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: s.Image}, ImageSubPath: subPath, ContainerPath: "/volume", Readonly: true}
	}
	for subPath, file := range map[string]string{"": "/volume/bin/busybox", "bin": "/volume/busybox"} {
		c := p.sh(t, "exec 2>&1; test -x "+file+" && echo there; touch /volume/x", func(config *runtimeapi.ContainerConfig) {
			config.Mounts = []*runtimeapi.Mount{volume(subPath)}
		})
		c.exited(t)
		if got := c.log(t); !strings.HasPrefix(got, "there\n") || !strings.Contains(strings.ToLower(got), "read-only") {
			t.Errorf("with sub-path %q: %q", subPath, got)
		}
	}
	config := p.script("missing", "true")
	config.Mounts = []*runtimeapi.Mount{volume("no/such/path")}
	r, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err == nil {
		_, err = s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.GetContainerId()})
	}
	wantError(t, "a sub-path that is not in the image", err)
}
