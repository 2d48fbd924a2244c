package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

var update = flag.Bool("update", false, "rewrite golden files")

func baseInput() Input {
	return Input{
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
			Image:    &runtimeapi.ImageSpec{Image: "busybox"},
			Linux:    &runtimeapi.LinuxContainerConfig{},
		},
		Image: ocispec.ImageConfig{
			Entrypoint: []string{"/bin/web"}, Cmd: []string{"--port=80"},
			Env: []string{"PATH=/bin", "MODE=image"}, WorkingDir: "/srv",
		},
		User:       User{Home: "/root", Groups: []uint32{0}},
		Hostname:   "pod-1",
		Namespaces: Namespaces{Network: "/run/ns/net", IPC: "/run/ns/ipc", UTS: "/run/ns/uts", PrivatePID: true},
		Files:      Files{Hostname: "/run/p/hostname", Hosts: "/run/p/hosts", ResolvConf: "/run/p/resolv.conf", Shm: "/run/p/shm"},
		CgroupPath: "/podstead/pod/ctr",
		Host: Host{
			Capabilities:      knownCapabilities,
			RecursiveReadOnly: true, CgroupUnified: true,
			MountPropagation: func(string) Propagation { return PropagationShared },
			LoadedAppArmor:   func(string) bool { return false },
		},
	}
}

func TestAppArmorProfile(t *testing.T) {
	missing := errors.New("no parser")
	profile := func(kind runtimeapi.SecurityProfile_ProfileType) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: "mine"}
	}
	for _, tc := range []struct {
		name       string
		asked      *runtimeapi.SecurityProfile
		privileged bool
		none       bool  // the host has no AppArmor
		err        error // of loading the default
		want       string
		warned     bool
		refused    string
	}{
		{name: "nothing asked", want: "default"},
		{name: "nothing asked, no AppArmor", none: true},
		{name: "nothing asked, no parser", err: missing, warned: true},
		{name: "nothing asked, privileged", privileged: true},
		{name: "default", asked: profile(runtimeapi.SecurityProfile_RuntimeDefault), want: "default"},
		{name: "default, no AppArmor", asked: profile(runtimeapi.SecurityProfile_RuntimeDefault), none: true, refused: "no AppArmor"},
		{name: "default, no parser", asked: profile(runtimeapi.SecurityProfile_RuntimeDefault), err: missing, refused: "no parser"},
		{name: "default, privileged", asked: profile(runtimeapi.SecurityProfile_RuntimeDefault), privileged: true},
		{name: "unconfined", asked: profile(runtimeapi.SecurityProfile_Unconfined)},
		{name: "localhost", asked: profile(runtimeapi.SecurityProfile_Localhost), want: "mine"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := baseInput()
			in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{Apparmor: tc.asked, Privileged: tc.privileged}
			in.Host.AppArmor = !tc.none
			in.Host.LoadedAppArmor = func(name string) bool { return name == "mine" }
			in.Host.DefaultAppArmor = func() (string, error) {
				if tc.err != nil {
					return "", tc.err
				}
				return "default", nil
			}
			s, warnings, err := Build(in)
			if tc.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("Build: %v, want %q", err, tc.refused)
				}
				return
			}
			if err != nil || s.Process.ApparmorProfile != tc.want || len(warnings) > 0 != tc.warned {
				t.Errorf("%q, warnings %q, %v", s.Process.ApparmorProfile, warnings, err)
			}
		})
	}
}

func TestBuildGolden(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Input)
	}{
		{"plain", func(*Input) {}},
		{"limits", func(in *Input) {
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20,
				MemorySwapLimitInBytes: 64 << 20, OomScoreAdj: 999, CpusetCpus: "0-1",
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
				Unified:        map[string]string{"memory.oom.group": "1"},
			}
		}},
		{"privileged", func(in *Input) {
			in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{Privileged: true, MaskedPaths: []string{"/proc/kcore"}}
		}},
		{"restricted", func(in *Input) {
			in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{
				NoNewPrivs: true, ReadonlyRootfs: true,
				Capabilities:  &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"net_bind_service"}},
				MaskedPaths:   []string{"/proc/kcore"},
				ReadonlyPaths: []string{"/proc/sys"},
			}
			in.User = User{UID: 1000, GID: 1000, Groups: []uint32{1000, 2000}, Home: "/home/app"}
		}},
		{"mounts", func(in *Input) {
			in.Config.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/data/deep/er", HostPath: "/h/2", Readonly: true},
				{ContainerPath: "/data", HostPath: "/h/1", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
				{ContainerPath: "/etc/hosts", HostPath: "/h/hosts"},
				{ContainerPath: "/ro", HostPath: "/h/3", Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/opt", HostPath: "/h/4", MountOptions: []string{"noexec", "nosuid"}},
			}
		}},
		{"selinux", func(in *Input) {
			in.Host.SELinux = true
			in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}}
			in.ProcessLabel, in.MountLabel = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
		}},
		{"terminal", func(in *Input) {
			in.Config.Tty = true
			in.Config.Command, in.Config.Args = []string{"/bin/sh"}, []string{"-l"}
			in.Config.WorkingDir = "/tmp"
			in.Config.Envs = []*runtimeapi.KeyValue{{Key: "MODE", Value: []byte("request")}, {Key: "A", Value: []byte("b=c")}}
		}},
		{"user-namespace", func(in *Input) {
			in.Namespaces.User = "/run/ns/user"
			in.Namespaces.UIDs = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			in.Namespaces.GIDs = in.Namespaces.UIDs
			m := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/h/1", UidMappings: m, GidMappings: m}}
		}},
		{"host-namespaces-v1", func(in *Input) {
			in.Namespaces = Namespaces{}
			in.Host.CgroupUnified = false
			in.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
			in.DeviceAccess = []string{"rw"}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := baseInput()
			tc.change(&in)
			s, warnings, err := Build(in)
			if err != nil || len(warnings) > 0 {
				t.Fatalf("Build: %v, warnings %q", err, warnings)
			}
			got, err := json.MarshalIndent(s, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", tc.name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("differs from %s (-update rewrites it):\n%s", file, got)
			}
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	mount := func(m *runtimeapi.Mount) func(*Input) {
		return func(in *Input) { in.Config.Mounts = []*runtimeapi.Mount{m} }
	}
	for _, tc := range []struct {
		name, want string
		change     func(*Input)
	}{
		{"no command", "no command", func(in *Input) { in.Image = ocispec.ImageConfig{} }},
		{"env name", "envs[0].key", func(in *Input) { in.Config.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}} }},
		{"env NUL", "envs[0].value", func(in *Input) { in.Config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b\x00")}} }},
		{"capability", "add_capabilities[0]", func(in *Input) {
			in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"CAP_FLY"}}}
		}},
		{"oom", "oom_score_adj", func(in *Input) {
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 1001}
		}},
		{"memory", "memory_limit_in_bytes", func(in *Input) {
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -5}
		}},
		{"unified", "unified", func(in *Input) {
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{"../x.max": "1"}}
		}},
		{"rro without ro", "without readonly", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", RecursiveReadOnly: true})},
		{"rro propagation", "with propagation", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL})},
		{"idmap without user namespace", "uidMappings", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", UidMappings: []*runtimeapi.IDMapping{{Length: 1}}})},
		{"mount option", "mount_options", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"suid"}})},
		{"rro kernel", "mount_setattr", func(in *Input) {
			in.Host.RecursiveReadOnly = false
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true}}
		}},
		{"propagation private source", "not on a shared", func(in *Input) {
			in.Host.MountPropagation = func(string) Propagation { return PropagationSlave }
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		}},
		{"apparmor", "apparmor", func(in *Input) {
			in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "x"}}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := baseInput()
			tc.change(&in)
			_, _, err := Build(in)
			if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Build: %v, want InvalidArgument with %q", err, tc.want)
			}
		})
	}
}

func TestMissingCapabilityIsWarnedOf(t *testing.T) {
	in := baseInput()
	in.Host.Capabilities = []string{"CAP_CHOWN"}
	in.Config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}}
	s, warnings, err := Build(in)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "CAP_SYS_RESOURCE") {
		t.Fatalf("warnings %q, %v", warnings, err)
	}
	if got := s.Process.Capabilities.Bounding; !slices.Equal(got, []string{"CAP_CHOWN"}) {
		t.Errorf("bounding set %v", got)
	}
}

const passwd = `root:x:0:0:root:/root:/bin/sh
app:x:1000:1001::/home/app:/bin/sh
1234:x:0:0::/root:/bin/sh
evil:x:1500:1500
x:y
huge:x:4294967296:0::/:
ctl:x:1600:1600::/ho` + "\x01" + `me:
`

const group = "root:x:0:\nwheel:x:10:app,other\nusers:x:100:app\nhuge:x:3000000000:app\n"

func TestResolveUser(t *testing.T) {
	a := ParseAccounts([]byte(passwd), []byte(group))
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	type sc = runtimeapi.LinuxContainerSecurityContext
	for _, tc := range []struct {
		name  string
		sc    *sc
		image string
		want  User
		err   string
	}{
		{"nothing is root", nil, "", User{0, 0, []uint32{0}, "/root"}, ""},
		{"image name", nil, "app", User{1000, 1001, []uint32{1001, 10, 100}, "/home/app"}, ""},
		{"image name and group", nil, "app:wheel", User{1000, 10, []uint32{10, 100}, "/home/app"}, ""},
		{"image number of a name", nil, "1000", User{1000, 1001, []uint32{1001, 10, 100}, "/home/app"}, ""},
		{"number unknown to the image", nil, "777:888", User{777, 888, []uint32{888}, "/"}, ""},
		{"numeric name is a number", nil, "1234", User{1234, 0, []uint32{0}, "/"}, ""},
		{"request wins", &sc{RunAsUser: id(5)}, "app", User{5, 0, []uint32{0}, "/"}, ""},
		{"request name", &sc{RunAsUsername: "app"}, "", User{1000, 1001, []uint32{1001, 10, 100}, "/home/app"}, ""},
		{"request user and group", &sc{RunAsUser: id(1000), RunAsGroup: id(7), SupplementalGroups: []int64{9, 7}}, "", User{1000, 7, []uint32{7, 10, 100, 9}, "/home/app"}, ""},
		{"strict", &sc{RunAsUser: id(1000), SupplementalGroups: []int64{9}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}, "", User{1000, 1001, []uint32{1001, 9}, "/home/app"}, ""},
		{"control characters in home", nil, "ctl", User{1600, 1600, []uint32{1600}, "/"}, ""},
		{"group without user", &sc{RunAsGroup: id(7)}, "app", User{}, "run_as_group"},
		{"unknown name", &sc{RunAsUsername: "nobody"}, "", User{}, "nobody"},
		{"short line is no user", nil, "evil", User{}, "evil"},
		{"out of range", nil, "4294967296", User{}, "range"},
		{"overflow to 0", nil, "18446744073709551616", User{}, "range"},
		{"negative", &sc{RunAsUser: id(-1)}, "", User{}, "range"},
		{"group out of range", nil, "0:2147483648", User{}, "range"},
		{"supplemental out of range", &sc{SupplementalGroups: []int64{-1}}, "", User{}, "supplemental_groups"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ResolveUser(tc.sc, tc.image, a)
			if tc.err != "" {
				if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want InvalidArgument with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.UID != tc.want.UID || got.GID != tc.want.GID || got.Home != tc.want.Home || !slices.Equal(got.Groups, tc.want.Groups) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add(passwd, group, "app:wheel")
	f.Add("a:b:c", "::::", "1:2")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		u, err := ResolveUser(nil, user, ParseAccounts([]byte(passwd), []byte(group)))
		if err == nil && (u.UID > 1<<31-1 || u.GID > 1<<31-1 || !strings.HasPrefix(u.Home, "/")) {
			t.Errorf("%q became %+v", user, u)
		}
	})
}

func TestCheckSysctls(t *testing.T) {
	for _, tc := range []struct {
		key, value  string
		network, ok bool
	}{
		{"net.ipv4.ip_forward", "1", true, true},
		{"net/ipv4/conf/eth0.100/forwarding", "1", true, true},
		{"kernel.shm_rmid_forced", "1", true, true},
		{"net.ipv4.ping_group_range", "0\t1000", true, true},
		{"net.ipv4.ip_forward", "1", false, false},
		{"kernel.core_pattern", "|/x", true, false},
		{"kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/x", true, false},
		{"net.ipv4/../../kernel/core_pattern", "1", true, false},
		{"net/../kernel/core_pattern", "1", true, false},
		{"net..x", "1", true, false},
		{"vm.swappiness", "1", true, false},
		{"", "1", true, false},
	} {
		err := CheckSysctls(map[string]string{tc.key: tc.value}, tc.network, true)
		if (err == nil) != tc.ok {
			t.Errorf("%s=%q: %v", tc.key, tc.value, err)
		}
		if err == nil && strings.Contains(SysctlPath(tc.key), "..") {
			t.Errorf("%s leads to %s", tc.key, SysctlPath(tc.key))
		}
	}
	if got := SysctlPath("net/ipv4/conf/eth0.100/forwarding"); got != "net/ipv4/conf/eth0.100/forwarding" {
		t.Error(got)
	}
	if got := SysctlPath("net.ipv4.conf.eth0/100.forwarding"); got != "net/ipv4/conf/eth0.100/forwarding" {
		t.Error(got)
	}
}

func TestStopSignal(t *testing.T) {
	for _, tc := range []struct {
		config runtimeapi.Signal
		image  string
		number int
		name   runtimeapi.Signal
	}{
		{0, "", 15, runtimeapi.Signal_SIGNAL_SIGTERM},
		{0, "SIGQUIT", 3, runtimeapi.Signal_SIGNAL_SIGQUIT},
		{0, "quit", 3, runtimeapi.Signal_SIGNAL_SIGQUIT},
		{0, "37", 37, runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3},
		{0, "SIGRTMIN+3", 37, runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3},
		{0, "SIGFOO", 15, runtimeapi.Signal_SIGNAL_SIGTERM},
		{0, "SIGRTMAX+9", 15, runtimeapi.Signal_SIGNAL_SIGTERM},
		{runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS1, "SIGQUIT", 63, runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS1},
		{runtimeapi.Signal_SIGNAL_SIGIOT, "", 6, runtimeapi.Signal_SIGNAL_SIGIOT},
	} {
		n, name := StopSignal(&runtimeapi.ContainerConfig{StopSignal: tc.config}, tc.image)
		if int(n) != tc.number || name != tc.name {
			t.Errorf("%v, %q: %d %v", tc.config, tc.image, n, name)
		}
	}
	for i := 1; i < len(runtimeapi.Signal_name); i++ {
		if criSignalNumber(runtimeapi.Signal(i)) == 0 {
			t.Errorf("%v has no number", runtimeapi.Signal(i))
		}
	}
}

func TestLogPath(t *testing.T) {
	for _, tc := range []struct {
		dir, name, want string
		ok              bool
	}{
		{"/var/log/pods/p", "c/0.log", "/var/log/pods/p/c/0.log", true},
		{"", "c/0.log", "", true},
		{"/var/log", "", "", true},
		{"/var/log", "../../etc/cron.d/x", "", false},
		{"/var/log", "/etc/x", "", false},
		{"/var/log", "a/../../x", "", false},
	} {
		got, err := LogPath(tc.dir, tc.name)
		if got != tc.want || (err == nil) != tc.ok {
			t.Errorf("%q, %q: %q, %v", tc.dir, tc.name, got, err)
		}
	}
}

func TestChecks(t *testing.T) {
	meta := &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}
	for name, c := range map[string]*runtimeapi.PodSandboxConfig{
		"config.hostname":            {Metadata: meta, Hostname: "a\nb"},
		"userns_options":             {Metadata: meta, Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE, UsernsOptions: &runtimeapi.UserNamespace{}}}}},
		"systemd driver":             {Metadata: meta, Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "a-b.slice:c:d"}},
		"below the root":             {Metadata: meta, Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/"}},
		"absolute path":              {Metadata: meta, Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/a/../../b"}},
		"config.dns_config.searches": {Metadata: meta, DnsConfig: &runtimeapi.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}}},
	} {
		if err := CheckSandbox(c, Host{}); cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q, got %v", name, err)
		}
	}
	ok := &runtimeapi.ContainerMetadata{Name: "c"}
	img := &runtimeapi.ImageSpec{Image: "i"}
	for name, c := range map[string]*runtimeapi.ContainerConfig{
		"not privileged": {Metadata: ok, Image: img, Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Privileged: true}}},
	} {
		if err := CheckContainer(c, &runtimeapi.PodSandboxConfig{Metadata: meta}); cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q, got %v", name, err)
		}
	}
}
