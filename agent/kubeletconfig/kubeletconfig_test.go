package kubeletconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/agent"
	"podstead/agent/internal/eviction"
	"podstead/agent/internal/image"
	"podstead/agent/internal/request"
)

const head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n"

// Every field of the API module is in the table: a new version of the module
// cannot add a silent one.
func TestEveryFieldIsKnown(t *testing.T) {
	known, err := fields()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{"kind": true, "apiVersion": true}
	ty := reflect.TypeFor[kubelet.KubeletConfiguration]()
	for i := range ty.NumField() {
		name, _, _ := strings.Cut(ty.Field(i).Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		seen[name] = true
		if _, ok := known[name]; !ok {
			t.Errorf("%s is not in fields.txt", name)
		}
	}
	for name := range known {
		if !seen[name] {
			t.Errorf("fields.txt has %s, which is no field", name)
		}
	}
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDropInsAreMerged(t *testing.T) {
	dir := t.TempDir()
	file := write(t, t.TempDir(), "config.yaml", head+`
clusterDNS: [10.0.0.10, 10.0.0.11]
clusterDomain: one.local
maxPods: 5
evictionHard: {memory.available: 1Gi, pid.available: 5%}
`)
	write(t, dir, "20-b.conf", head+"clusterDNS: [10.0.0.20]\nevictionHard: {memory.available: 2Gi}\n")
	write(t, dir, "10-a.conf", head+"clusterDNS: [10.0.0.1]\nclusterDomain: two.local\nmaxPods: null\n")
	write(t, dir, "30-ignored.yaml", "not: read")
	c, warnings, err := Read(file, dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.ClusterDNS) != 1 || c.ClusterDNS[0] != "10.0.0.20" || c.ClusterDomain != "two.local" || c.MaxPods != 0 ||
		c.EvictionHard["memory.available"] != "2Gi" || c.EvictionHard["pid.available"] != "5%" {
		t.Errorf("%+v", c)
	}
	if len(warnings) != 0 {
		t.Errorf("%q", warnings)
	}
}

func TestBadFilesAreNamed(t *testing.T) {
	for _, c := range []struct{ content, want string }{
		{head + "clusterDns: [a]", `unknown field "clusterDns"`},
		{head + "maxPods: many", "maxPods"},
		{head + "maxPods: 1\nmaxPods: 2", `"maxPods" already set`},
		{"kind: KubeletConfiguration\napiVersion: v1\n", `it is "KubeletConfiguration" of "v1", want`},
		{"", `it is "" of ""`},
		{"[", "yaml"},
	} {
		file := write(t, t.TempDir(), "config.yaml", c.content)
		if _, _, err := Read(file, ""); err == nil || !strings.HasPrefix(err.Error(), file+": ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.content, err, c.want)
		}
	}
	if _, _, err := Read("/no/such/file", ""); err == nil || !strings.Contains(err.Error(), "/no/such/file: no such file") {
		t.Error(err)
	}
}

func read(t *testing.T, content string) *kubelet.KubeletConfiguration {
	t.Helper()
	c, _, err := Read(write(t, t.TempDir(), "config.yaml", head+content), "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPolicy(t *testing.T) {
	kubelets := agent.DefaultPolicy()
	kubelets.Eviction, _ = eviction.Settings{}.Policy() // pods go for a full disk, too
	kubelets.FirewallChains = true
	got, err := Policy(read(t, ""))
	if err != nil || !reflect.DeepEqual(got, kubelets) {
		t.Errorf("an empty configuration changes the policy: %+v, %v", got, err)
	}
	got, err = Policy(read(t, `
clusterDNS: [10.0.0.10]
clusterDomain: cluster.local
resolvConf: /r
imageMinimumGCAge: 1m
imageMaximumGCAge: 48h
imageGCHighThresholdPercent: 70
imageGCLowThresholdPercent: 60
podPidsLimit: 100
imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages
preloadedImagesVerificationAllowlist: [quay.io/team/*]
maxParallelImagePulls: 3
serializeImagePulls: false
crashLoopBackOff: {maxContainerRestartPeriod: 30s}
seccompDefault: true
allowedUnsafeSysctls: [net.core.*]
defaultPodSysctls: {net/core/somaxconn: "7"}
volumeStatsAggPeriod: 5m
memoryThrottlingFactor: 0.9
qosReserved: {memory: 50%}
memoryReservationPolicy: TieredReservation
evictionHard: {memory.available: 1Gi}
evictionSoft: {nodefs.available: 20%}
evictionSoftGracePeriod: {nodefs.available: 2m}
evictionMinimumReclaim: {nodefs.available: 1Gi}
evictionPressureTransitionPeriod: 30s
evictionMaxPodGracePeriod: 7
localStorageCapacityIsolation: false
registryPullQPS: 7
registryBurst: 9
cpuCFSQuota: false
cpuCFSQuotaPeriod: 5ms
singleProcessOOMKill: true
memorySwap: {swapBehavior: LimitedSwap}
runtimeRequestTimeout: 7m
podCIDR: 10.1.0.0/24,fd00::/64
userNamespaces: {idsPerPod: 131072}
`))
	want := agent.Policy{
		ClusterDNS: []string{"10.0.0.10"}, ClusterDomain: "cluster.local", ResolvConf: "/r",
		SeccompDefault: true, PodPidsLimit: 100, IDsPerPod: 131072, PodCIDR: "10.1.0.0/24,fd00::/64", RuntimeTimeout: 7 * time.Minute, UnsafeSysctls: []string{"net.core.*"},
		KeepMemory: 50, FirewallChains: true, PodSysctls: map[string]string{"net.core.somaxconn": "7"}, VolumeStatsPeriod: 5 * time.Minute,
		MaxRestartPeriod: 30 * time.Second, ParallelPulls: 3, PullsPerSecond: 7, PullBurst: 9,
		CPU: request.CPU{NoQuota: true, Period: 5 * time.Millisecond}, Memory: request.Memory{OneByOne: true, Swap: request.LimitedSwap, Throttle: 0.9, Reserve: true},
		Pinning: agent.DefaultPolicy().Pinning,
		Node:    agent.Reservations{MaxPods: 110, EnforcePods: true}, VerifyImages: image.Verify{Policy: kubelet.NeverVerifyAllowlistedImages, Allowed: []string{"quay.io/team/*"}},
		Images: agent.ImagePolicy{High: 70, Low: 60, MinAge: time.Minute, MaxAge: 48 * time.Hour, Period: agent.DefaultPolicy().Images.Period},
		Eviction: eviction.Policy{Transition: 30 * time.Second, MaxPodGrace: 7 * time.Second, Thresholds: []eviction.Threshold{
			{Signal: eviction.MemoryAvailable, Amount: eviction.Amount{Quantity: 1 << 30}},
			{Signal: eviction.NodeFsAvailable, Amount: eviction.Amount{Share: 0.2}, Soft: true, Grace: 2 * time.Minute, MinReclaim: eviction.Amount{Quantity: 1 << 30}},
		}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if got, err := Policy(read(t, "kubeletCgroups: /runtime/kubelet\nsystemCgroups: /system\ncgroupRoot: /\n")); err != nil || got.OwnCgroup != "/runtime/kubelet" || got.SystemCgroup != "/system" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"systemCgroups: /system", "kubeletCgroups: /", "kubeletCgroups: /a/../b"} {
		field, _, _ := strings.Cut(bad, ":")
		if _, err := Policy(read(t, bad+"\n")); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if got, err := Policy(read(t, "makeIPTablesUtilChains: false\n")); err != nil || got.FirewallChains {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Policy(read(t, "podPidsLimit: -1\nserializeImagePulls: true\n")); err != nil || got.PodPidsLimit != 0 || got.ParallelPulls != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for content, want := range map[string][2]time.Duration{"": {0, 5 * time.Minute}, "featureGates: {ReduceDefaultCrashLoopBackOffDecay: true}": {time.Second, time.Minute},
		"featureGates: {ReduceDefaultCrashLoopBackOffDecay: false}":                                                   {0, 5 * time.Minute},
		"featureGates: {ReduceDefaultCrashLoopBackOffDecay: true}\ncrashLoopBackOff: {maxContainerRestartPeriod: 2m}": {time.Second, 2 * time.Minute}} {
		c, warnings, err := Read(write(t, t.TempDir(), "config.yaml", head+content+"\n"), "")
		if err != nil || len(warnings) > 0 {
			t.Fatal(warnings, err)
		}
		if got, err := Policy(c); err != nil || [2]time.Duration{got.MinRestartPeriod, got.MaxRestartPeriod} != want {
			t.Errorf("%s: %v, %v, %v", content, got.MinRestartPeriod, got.MaxRestartPeriod, err)
		}
	}
	for content, want := range map[string]string{
		"runtimeRequestTimeout: -1s":                          "runtimeRequestTimeout: -1s",
		"userNamespaces: {idsPerPod: 70000}":                  "userNamespaces.idsPerPod: 70000",
		"userNamespaces: {idsPerPod: 4294967296}":             "userNamespaces.idsPerPod: 4294967296",
		"podCIDR: '10.1.0.0/24,'":                             "podCIDR: \"\"",
		"podCIDR: 10.1.0.0":                                   "podCIDR: \"10.1.0.0\"",
		"userNamespaces: {idsPerPod: 0}":                      "userNamespaces.idsPerPod: 0",
		"defaultPodSysctls: {vm.swappiness: '1'}":             "defaultPodSysctls[vm.swappiness]: ",
		"memoryThrottlingFactor: 1.5":                         "memoryThrottlingFactor: 1.5",
		"memoryThrottlingFactor: 0":                           "memoryThrottlingFactor: 0",
		"memoryReservationPolicy: Hard":                       "memoryReservationPolicy: \"Hard\"",
		"qosReserved: {memory: half}":                         "qosReserved[memory]: ",
		"qosReserved: {memory: 101%}":                         "qosReserved[memory]: ",
		"qosReserved: {cpu: 50%}":                             "qosReserved[cpu]: ",
		"registryPullQPS: -1":                                 "registryPullQPS, ",
		"cpuCFSQuotaPeriod: 2s":                               "cpuCFSQuotaPeriod: 2s",
		"memorySwap: {swapBehavior: Much}":                    `memorySwap.swapBehavior: "Much"`,
		"imageGCHighThresholdPercent: 101":                    "imageGCHighThresholdPercent: 101",
		"imageGCLowThresholdPercent: 90":                      "imageGCLowThresholdPercent: 90",
		"imageMinimumGCAge: -1s":                              "imageMinimumGCAge: -1s",
		"imageMaximumGCAge: 1s":                               "imageMaximumGCAge: 1s",
		"maxParallelImagePulls: 0":                            "maxParallelImagePulls: 0",
		"maxParallelImagePulls: 2\nserializeImagePulls: true": "maxParallelImagePulls: 2, and serializeImagePulls is true",
		"imagePullCredentialsVerificationPolicy: Maybe":       `imagePullCredentialsVerificationPolicy: "Maybe" is unknown`,
		"preloadedImagesVerificationAllowlist: [a]":           "preloadedImagesVerificationAllowlist: it is only for",
		"imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\npreloadedImagesVerificationAllowlist: ['*']": "preloadedImagesVerificationAllowlist[0]: ",
		"crashLoopBackOff: {maxContainerRestartPeriod: 10m}":                                                                "crashLoopBackOff.maxContainerRestartPeriod: 10m0s",
		"crashLoopBackOff: {maxContainerRestartPeriod: 500ms}":                                                              "crashLoopBackOff.maxContainerRestartPeriod: 500ms",
	} {
		if _, err := Policy(read(t, content)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestManifestURL(t *testing.T) {
	got, err := ManifestURL(read(t, "staticPodURL: https://host/pods\nstaticPodURLHeader: {X: [a, b]}\nhttpCheckFrequency: 7s\n"))
	if want := (agent.ManifestURL{Address: "https://host/pods", Header: map[string][]string{"X": {"a", "b"}}, Period: 7 * time.Second}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ManifestURL(read(t, "")); err != nil || got.Address != "" || got.Period != 20*time.Second {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"staticPodURL: /pods", "staticPodURL: 'ftp://host/pods'", "httpCheckFrequency: -1s"} {
		if _, err := ManifestURL(read(t, bad+"\n")); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

// TestNicheFieldsAreNamed sets what has no effect here, and is told so.
func TestNicheFieldsAreNamed(t *testing.T) {
	for content, field := range map[string]string{
		"hairpinMode: none":             "hairpinMode",
		"kernelMemcgNotification: true": "kernelMemcgNotification", "streamingConnectionIdleTimeout: 1h": "streamingConnectionIdleTimeout",
		"iptablesDropBit: 3": "iptablesDropBit", "nodeLeaseDurationSeconds: 7": "nodeLeaseDurationSeconds", "eventRecordQPS: 7": "eventRecordQPS",
		"featureGates: {MemoryQoS: true}": "featureGates", "featureGates: {ReduceDefaultCrashLoopBackOffDecay: true, MemoryQoS: true}": "featureGates",
	} {
		_, warnings, err := Read(write(t, t.TempDir(), "config.yaml", head+content+"\n"), "")
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], field+" ") && !strings.Contains(warnings[0], field+":") {
			t.Errorf("%s: %q, %v", content, warnings, err)
		}
	}
}

func TestServer(t *testing.T) {
	for _, c := range []struct {
		content string
		port    int
		allow   bool
		health  int
		notes   int
	}{
		{"", 0, false, 10248, 0}, // nobody could authenticate
		{"enableServer: false\nhealthzPort: 0\n", -1, false, 0, 0},
		{"authentication: {x509: {clientCAFile: /ca}}\n", 10250, false, 10248, 0},
		{"authentication: {x509: {clientCAFile: /ca}, webhook: {enabled: true}}\nauthorization: {mode: Webhook}\n", 10250, false, 10248, 2},
		{"authentication: {anonymous: {enabled: true}}\nauthorization: {mode: AlwaysAllow}\nport: 1\nhealthzPort: 0\n", 1, true, 0, 0},
		{"port: 1\n", 0, false, 10248, 1},
		{"enableServer: false\nport: 7\n", 0, false, 10248, 0},
	} {
		s, notes, err := Server(read(t, c.content))
		switch {
		case err != nil || len(notes) != c.notes:
			t.Errorf("%q: %v, %v", c.content, notes, err)
		case c.port < 0 && s == nil:
		case s == nil || s.Port != c.port || s.AlwaysAllow != c.allow || s.HealthzPort != c.health || s.ReadOnlyPort != 0:
			t.Errorf("%q: %+v", c.content, s)
		}
	}
	for content, want := range map[string]string{
		"port: 70000":                       "port: 70000",
		"readOnlyPort: -1":                  "readOnlyPort: -1",
		"authorization: {mode: Maybe}":      "authorization.mode: ",
		"tlsCertFile: /x":                   "tlsCertFile and tlsPrivateKeyFile",
		"tlsMinVersion: VersionTLS14":       "tlsMinVersion: ",
		"tlsCipherSuites: [TLS_AES, ROT13]": "tlsCipherSuites[0]: ",
		"tlsCurvePreferences: [29, 0]":      "tlsCurvePreferences[1]: ",
	} {
		if _, _, err := Server(read(t, content)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestLogLimits(t *testing.T) {
	if bytes, files, err := LogLimits(read(t, "containerLogMaxSize: 5Mi\ncontainerLogMaxFiles: 3")); bytes != 5<<20 || files != 3 || err != nil {
		t.Error(bytes, files, err)
	}
	for content, want := range map[string]string{
		"containerLogMaxSize: big": "containerLogMaxSize: ", "containerLogMaxSize: -1Mi": "containerLogMaxSize: ", "containerLogMaxFiles: 1": "containerLogMaxFiles: 1",
	} {
		if _, _, err := LogLimits(read(t, content)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestCheckHost(t *testing.T) {
	none := write(t, t.TempDir(), "swaps", "Filename Type\n")
	some := write(t, t.TempDir(), "swaps", "Filename Type\n/dev/sda2 partition\n")
	sysctls := t.TempDir()
	for name, value := range map[string]string{"vm/overcommit_memory": "1", "vm/panic_on_oom": "2", "kernel/panic": "0", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(sysctls, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, sysctls, name, value+"\n")
	}
	for _, c := range []struct {
		content string
		v2      bool
		swaps   string
		want    string
	}{
		{"", false, some, ""},
		{"failCgroupV1: true", true, some, ""},
		{"failCgroupV1: true", false, some, "failCgroupV1: the host has cgroup v1"},
		{"failSwapOn: false", true, some, ""},
		{"memoryThrottlingFactor: 0.5", true, some, ""},
		{"memoryReservationPolicy: None", false, some, ""},
		{"memoryReservationPolicy: TieredReservation", false, some, "memoryThrottlingFactor, memoryReservationPolicy: the host has cgroup v1, which cannot do that"},
		{"failSwapOn: true", true, none, ""},
		{"failSwapOn: true", true, some, "failSwapOn: swap is on: /dev/sda2 partition"},
		{"protectKernelDefaults: true", true, some, "protectKernelDefaults: vm.panic_on_oom is \"2\", want 0\nprotectKernelDefaults: kernel.panic is \"0\", want 10"},
	} {
		got := ""
		if err := CheckHost(read(t, c.content), c.v2, c.swaps, sysctls); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestTracing(t *testing.T) {
	for text, want := range map[string]string{
		"":              "<nil> <nil>",
		"\ntracing: {}": "&{ 0} <nil>",
		"\ntracing: {endpoint: 'collector:4317', samplingRatePerMillion: 5}": "&{collector:4317 5} <nil>",
		"\ntracing: {samplingRatePerMillion: -5}":                            "<nil> tracing.samplingRatePerMillion: -5 is not between 0 and 1000000",
		"\ntracing: {endpoint: 'https://x:1'}":                               `<nil> tracing.endpoint: scheme "https" is not dns, unix or unix-abstract: traces go by gRPC`,
	} {
		file := filepath.Join(t.TempDir(), "kubelet.yaml")
		if err := os.WriteFile(file, []byte("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, warnings, err := Read(file, "")
		if err != nil || len(warnings) > 0 {
			t.Fatal(warnings, err)
		}
		s, err := Tracing(c)
		if got := fmt.Sprint(s, " ", err); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
