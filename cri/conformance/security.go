package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// securityTests are about what a container's process may do.
var securityTests = []test{
	{"capabilities", "LinuxContainerSecurityContext.capabilities Capability.{add_capabilities,drop_capabilities}", func(t *testing.T, s *suite) {
		p := s.pod(t)
		for name, test := range map[string]struct {
			caps *runtimeapi.Capability
			want capabilities
		}{
			"all but one dropped": {&runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}, capabilities{bounding: 1 << 10}},
			"and another dropped": {&runtimeapi.Capability{DropCapabilities: []string{"ALL", "NET_RAW"}, AddCapabilities: []string{"CHOWN"}}, capabilities{bounding: 1 << 0}},
		} {
			got := p.capabilities(t, func(config *runtimeapi.ContainerConfig) { config.Linux.SecurityContext.Capabilities = test.caps })
			test.want.permitted, test.want.effective = test.want.bounding, test.want.bounding
			if got != test.want {
				t.Errorf("%s: %x, want %x", name, got, test.want)
			}
		}
		// The defaults hold CHOWN (bit 0) and not SYS_ADMIN (bit 21).
		got := p.capabilities(t, func(*runtimeapi.ContainerConfig) {})
		if got.effective&1 == 0 || got.effective&(1<<21) != 0 || got.effective != got.bounding || got.inheritable != 0 || got.ambient != 0 {
			t.Errorf("by default: %x", got)
		}
	}},
	{"an unknown capability is refused", "Capability.{add_capabilities,drop_capabilities}", func(t *testing.T, s *suite) {
		p := s.pod(t)
		for name, caps := range map[string]*runtimeapi.Capability{
			"added": {AddCapabilities: []string{"NO_SUCH"}}, "dropped": {DropCapabilities: []string{"NO_SUCH"}},
		} {
			err := p.refuses(t, func(config *runtimeapi.ContainerConfig) { config.Linux.SecurityContext.Capabilities = caps })
			wantError(t, name, err)
		}
	}},
	{"ambient capabilities", "Capability.add_ambient_capabilities", func(t *testing.T, s *suite) {
		p := s.pod(t)
		caps := func(user int64) capabilities {
			return p.capabilities(t, func(config *runtimeapi.ContainerConfig) {
				config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: user}
				config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
			})
		}
		const one = uint64(1 << 10)
		if got, want := caps(1000), (capabilities{one, one, one, one, one}); got != want {
			t.Errorf("another user than root has %x, want it in all five sets", got)
		}
		if got := caps(0); got.effective != one {
			t.Errorf("root has %x", got)
		}
	}},
	{"no new privileges", "LinuxContainerSecurityContext.no_new_privs", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "grep NoNewPrivs /proc/self/status", secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.NoNewPrivs = true }))
		if got := c.output(t); got != "NoNewPrivs:\t1\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"privileged", "LinuxContainerSecurityContext.privileged LinuxSandboxSecurityContext.privileged", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) { config.Linux.SecurityContext.Privileged = true })
		c := p.sh(t, "test -w /proc/sys/kernel && mkdir /m && mount -t tmpfs x /m && test -e /dev/full && grep Seccomp: /proc/self/status", secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Privileged = true
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault} // which it is too privileged for
			sc.ReadonlyPaths = nil
		}))
		if got := c.output(t); got != "Seccomp:\t0\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"privileged needs a privileged sandbox", "LinuxContainerSecurityContext.privileged", func(t *testing.T, s *suite) {
		err := s.pod(t).refuses(t, secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Privileged = true }))
		wantError(t, "create", err)
	}},
	{"masked and read-only paths", "LinuxContainerSecurityContext.{masked_paths,readonly_paths}", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "exec 2>&1; wc -c < /proc/keys; ls /proc/scsi; echo 1 > /proc/sys/kernel/panic; true", secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.MaskedPaths = []string{"/proc/keys", "/proc/scsi", "/proc/no/such/path"}
			sc.ReadonlyPaths = []string{"/proc/sys", "/proc/no/such/path"}
		}))
		if got := c.output(t); !strings.HasPrefix(got, "0\n") || !strings.Contains(strings.ToLower(got), "read-only") {
			t.Errorf("output is %q", got)
		}
		// Who names none (procMount: Unmasked) gets none.
		if got := p.sh(t, "awk '$5 ~ /^.proc./' /proc/self/mountinfo").output(t); got != "" {
			t.Errorf("without such paths there are mounts in /proc: %s", got)
		}
	}},
	{"seccomp", "LinuxContainerSecurityContext.seccomp SecurityProfile.{profile_type,localhost_ref}", seccompProfiles},
	{"seccomp by the old field", "LinuxContainerSecurityContext.seccomp_profile_path", seccompOldField},
	{"AppArmor", "LinuxContainerSecurityContext.{apparmor,apparmor_profile}", appArmor},
	{"SELinux labels", "LinuxContainerSecurityContext.selinux_options LinuxSandboxSecurityContext.selinux_options SELinuxOption.*", func(t *testing.T, s *suite) {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
			t.Skip("this host has SELinux")
		}
		// Where there is no SELinux every runtime runs such pods.
		label := &runtimeapi.SELinuxOption{User: "system_u", Role: "object_r", Type: "svirt_lxc_net_t", Level: "s0:c1,c2"}
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) { config.Linux.SecurityContext.SelinuxOptions = label })
		c := p.sh(t, "echo runs", secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SelinuxOptions = label }))
		if got := c.output(t); got != "runs\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"sandbox has no process to restrict", "LinuxSandboxSecurityContext.{run_as_user,run_as_group,readonly_rootfs,supplemental_groups,supplemental_groups_policy,seccomp,apparmor,seccomp_profile_path} " +
		"PodSandboxConfig.linux LinuxPodSandboxConfig.security_context LinuxSandboxSecurityContext.namespace_options", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			sc := config.Linux.SecurityContext
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1000}
			sc.SupplementalGroups, sc.SupplementalGroupsPolicy = []int64{1234}, runtimeapi.SupplementalGroupsPolicy_Strict
			sc.ReadonlyRootfs = true
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			sc.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
			sc.SeccompProfilePath = "runtime/default"
		})
		// What is said of the sandbox is not said of its containers.
		if got := p.sh(t, "touch /x; id -u; id -G; grep Seccomp: /proc/self/status").output(t); got != "0\n0\nSeccomp:\t0\n" {
			t.Errorf("output is %q", got)
		}
	}},
}

func secured(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*runtimeapi.ContainerConfig) {
	return func(config *runtimeapi.ContainerConfig) { change(config.Linux.SecurityContext) }
}

// capabilities are a process's five sets.
type capabilities struct{ inheritable, permitted, effective, bounding, ambient uint64 }

func (p *pod) capabilities(t *testing.T, change func(*runtimeapi.ContainerConfig)) (c capabilities) {
	t.Helper()
	got := p.sh(t, "grep ^Cap /proc/self/status", change).output(t)
	_, err := fmt.Sscanf(got, "CapInh:\t%x\nCapPrm:\t%x\nCapEff:\t%x\nCapBnd:\t%x\nCapAmb:\t%x\n", &c.inheritable, &c.permitted, &c.effective, &c.bounding, &c.ambient)
	if err != nil {
		t.Fatalf("%v in %q", err, got)
	}
	return c
}

// noDirectories is a profile that lets mkdir fail.
const noDirectories = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}`

const makeDirectory = "mkdir /d 2>/dev/null && echo made || echo refused; grep Seccomp: /proc/self/status"

func profileFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(file, []byte(noDirectories), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func seccompProfiles(t *testing.T, s *suite) {
	p, file := s.pod(t), profileFile(t)
	profile := func(profile *runtimeapi.SecurityProfile, old string) func(*runtimeapi.ContainerConfig) {
		return secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Seccomp, sc.SeccompProfilePath = profile, old })
	}
	localhost := runtimeapi.SecurityProfile_Localhost
	for name, test := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		want   string
	}{
		"RuntimeDefault":        {profile(&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, ""), "made\nSeccomp:\t2\n"},
		"Unconfined":            {profile(&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, ""), "made\nSeccomp:\t0\n"},
		"nothing":               {profile(nil, ""), "made\nSeccomp:\t0\n"},
		"Localhost":             {profile(&runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: file}, ""), "refused\nSeccomp:\t2\n"},
		"new field wins":        {profile(&runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: file}, "unconfined"), "refused\nSeccomp:\t2\n"},
		"new field wins, again": {profile(&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, "localhost/"+file), "made\nSeccomp:\t0\n"},
	} {
		if got := p.sh(t, makeDirectory, test.change).output(t); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	for name, ref := range map[string]string{"a profile that is not there": file + "x", "an empty name": "", "a relative name": "profile.json"} {
		wantError(t, name, p.refuses(t, profile(&runtimeapi.SecurityProfile{ProfileType: localhost, LocalhostRef: ref}, "")))
	}
}

func seccompOldField(t *testing.T, s *suite) {
	p, file := s.pod(t), profileFile(t)
	for path, want := range map[string]string{
		"runtime/default":   "made\nSeccomp:\t2\n",
		"unconfined":        "made\nSeccomp:\t0\n",
		"localhost/" + file: "refused\nSeccomp:\t2\n",
	} {
		c := p.sh(t, makeDirectory, secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SeccompProfilePath = path }))
		if got := c.output(t); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	wantError(t, "what is no profile", p.refuses(t, secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SeccompProfilePath = "no-such-kind" })))
}

// appArmor tells what is the same with and without AppArmor: nobody runs with
// less confinement than was asked for.
func appArmor(t *testing.T, s *suite) {
	p := s.pod(t)
	with := func(profile *runtimeapi.SecurityProfile, old string) func(*runtimeapi.ContainerConfig) {
		return secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Apparmor, sc.ApparmorProfile = profile, old })
	}
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	missing := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "podstead-no-such-profile"}
	const ask = "cat /proc/self/attr/current 2>/dev/null || echo none"
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"unconfined":                       with(unconfined, ""),
		"unconfined, old field":            with(nil, "unconfined"),
		"new field wins over the old":      with(unconfined, "localhost/podstead-no-such-profile"),
		"unconfined, new and old the same": with(unconfined, "unconfined"),
	} {
		if got := strings.TrimSpace(p.sh(t, ask, change).output(t)); got != "none" && got != "unconfined" && got != "" {
			t.Errorf("%s: it runs as %q", name, got)
		}
	}
	wantError(t, "a profile that is not loaded", p.refuses(t, with(missing, "")))
	wantError(t, "a profile that is not loaded, old field", p.refuses(t, with(nil, "localhost/podstead-no-such-profile")))
	wantError(t, "the new field has what is not loaded, the old one nothing to confine", p.refuses(t, with(missing, "unconfined")))
	wantError(t, "what is no profile", p.refuses(t, with(nil, "no-such-kind")))
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); strings.TrimSpace(string(on)) != "Y" {
		wantError(t, "RuntimeDefault where there is no AppArmor", p.refuses(t, with(&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, "")))
	}
}
