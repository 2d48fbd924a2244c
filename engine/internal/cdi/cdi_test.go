package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

func TestAskedOnce(t *testing.T) {
	got, err := Asked(&runtimeapi.ContainerConfig{
		CDIDevices: []*runtimeapi.CDIDevice{{Name: "v.com/c=b"}, {Name: "v.com/c=a"}, {Name: "v.com/c=b"}},
		Annotations: map[string]string{
			"cdi.k8s.io/z": "v.com/c=z", "cdi.k8s.io/a": "v.com/c=a,v.com/c=y", "cdi.k8s.iox/a": "no name", "other": "no name",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"v.com/c=b", "v.com/c=a", "v.com/c=y", "v.com/c=z"}; !slices.Equal(got, want) {
		t.Errorf("asked for %v, want %v", got, want)
	}
}

func TestAskedForNonsense(t *testing.T) {
	for name, c := range map[string]*runtimeapi.ContainerConfig{
		`config.CDI_devices[1].name: "gpu0"`:       {CDIDevices: []*runtimeapi.CDIDevice{{Name: "v.com/c=a"}, {Name: "gpu0"}}},
		`config.CDI_devices[0].name: ""`:           {CDIDevices: []*runtimeapi.CDIDevice{nil}},
		`config.annotations["cdi.k8s.io/x"]: " v/`: {Annotations: map[string]string{"cdi.k8s.io/x": "v.com/c=a, v/c=b"}},
	} {
		_, err := Asked(c)
		if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("want %s, got %v", name, err)
		}
	}
}

// file writes a file that describes devices.
func file(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func env(device, value string) string {
	return `{"cdiVersion": "0.6.0", "kind": "v.com/c", "containerEdits": {"env": ["COMMON=1"]},
		"devices": [{"name": "` + device + `", "containerEdits": {"env": ["` + device + `=` + value + `"]}}]}`
}

func container() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin"}},
		Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
			{Allow: false, Access: "rwm"},
		}}},
	}
}

func TestEverythingThatAFileMaySay(t *testing.T) {
	dir := t.TempDir()
	file(t, dir, "all.yaml", `
cdiVersion: 1.1.0
kind: v.com/c
containerEdits:
  env: [COMMON=1]
  additionalGids: [1234, 0]
devices:
- name: one
  containerEdits:
    env: [PATH=/changed]
    deviceNodes:
    - {path: /dev/renamed, hostPath: /dev/null, permissions: rw, uid: 7, gid: 8}
    - {path: /dev/closed, type: c, major: 1, minor: 5, permissions: none}
    mounts:
    - {hostPath: /etc, containerPath: /mnt/a/b}
    - {hostPath: /usr, containerPath: /mnt, options: [ro, bind]}
    - {hostPath: tmpfs, containerPath: /mnt/t, type: tmpfs}
    hooks:
    - {hookName: createContainer, path: /bin/hook, args: [hook, x], env: [A=1]}
    netDevices: [{hostInterfaceName: eth7, name: net0}]
    intelRdt: {closID: gold}
`)
	s := container()
	if err := New([]string{dir}).Inject(s, []string{"v.com/c=one"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/changed", "COMMON=1"}; !equalSet(s.Process.Env, want) {
		t.Errorf("env is %v", s.Process.Env)
	}
	if !slices.Equal(s.Process.User.AdditionalGids, []uint32{1234}) {
		t.Errorf("additional gids are %v", s.Process.User.AdditionalGids)
	}
	if len(s.Linux.Devices) != 2 || s.Linux.Devices[0].Path != "/dev/renamed" || s.Linux.Devices[0].Major != 1 ||
		s.Linux.Devices[0].Minor != 3 || *s.Linux.Devices[0].UID != 7 || *s.Linux.Devices[0].GID != 8 {
		t.Errorf("devices are %+v", s.Linux.Devices)
	}
	rules := s.Linux.Resources.Devices
	if len(rules) != 2 || rules[1].Access != "rw" || *rules[1].Minor != 3 {
		t.Errorf("device rules are %+v: permissions \"none\" must not become all", rules)
	}
	var mounts []string
	for _, m := range s.Mounts {
		mounts = append(mounts, m.Destination+" "+m.Type+" "+strings.Join(m.Options, ","))
	}
	if want := []string{"/mnt bind ro,bind", "/mnt/t tmpfs ", "/mnt/a/b bind rbind"}; !slices.Equal(mounts, want) {
		t.Errorf("mounts are %q, want %q", mounts, want)
	}
	if s.Hooks == nil || len(s.Hooks.CreateContainer) != 1 || s.Hooks.CreateContainer[0].Path != "/bin/hook" {
		t.Errorf("hooks are %+v", s.Hooks)
	}
	if s.Linux.NetDevices["eth7"].Name != "net0" || s.Linux.IntelRdt == nil || s.Linux.IntelRdt.ClosID != "gold" {
		t.Errorf("network devices are %v, intelRdt %v", s.Linux.NetDevices, s.Linux.IntelRdt)
	}
}

func equalSet(a, b []string) bool {
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// TestChangesAreSeenAtOnce is what a driver relies on that describes a claim's
// device and lets the kubelet go on.
func TestChangesAreSeenAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "late")
	r := New([]string{dir})
	want := func(names []string, text string) {
		t.Helper()
		s := container()
		err := r.Inject(s, names)
		switch {
		case text == "" && (cri.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), names[0])):
			t.Errorf("%v: error is %v", names, err)
		case text != "" && (err != nil || !slices.Contains(s.Process.Env, text)):
			t.Errorf("%v: env is %v, error %v", names, s.Process.Env, err)
		}
	}
	a := []string{"v.com/c=a"}
	want(a, "")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	want(a, "")
	path := file(t, dir, "x.json", env("a", "1"))
	want(a, "a=1")
	file(t, dir, "x.json", env("a", "22"))
	want(a, "a=22")
	replaced := file(t, dir, "tmp", env("a", "33")) // of the same size
	if err := os.Rename(replaced, path); err != nil {
		t.Fatal(err)
	}
	want(a, "a=33")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want(a, "")
}

func TestOneBadFileHarmsNobodyElse(t *testing.T) {
	low, high := t.TempDir(), t.TempDir()
	file(t, low, "good.json", env("good", "1"))
	file(t, low, "twice1.json", env("twice", "1"))
	file(t, low, "twice2.json", env("twice", "2"))
	file(t, low, "shadowed.json", env("shadowed", "low"))
	file(t, high, "shadowed.json", env("shadowed", "high"))
	file(t, low, "broken.json", `{"cdiVersion": "0.6.0", "kind": `)
	file(t, low, "unknown.yaml", "cdiVersion: 0.6.0\nkind: v.com/c\nsurprise: 1\ndevices: [{name: u, containerEdits: {env: [A=1]}}]\n")
	file(t, low, "README.md", "no description of a device")
	plain := filepath.Join(low, "good.json") // no directory
	r := New([]string{plain, low, high})

	s := container()
	if err := r.Inject(s, []string{"v.com/c=good", "v.com/c=shadowed"}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Env, "shadowed=high") {
		t.Errorf("env is %v: the later directory wins", s.Process.Env)
	}
	err := r.Inject(container(), []string{"v.com/c=good", "v.com/c=twice"})
	if err == nil || !strings.Contains(err.Error(), "CDI device v.com/c=twice:") || !strings.Contains(err.Error(), "twice1.json") {
		t.Errorf("a device described twice: %v", err)
	}
	st := r.State()
	if want := []string{"v.com/c=good", "v.com/c=shadowed"}; !slices.Equal(st.Devices, want) {
		t.Errorf("devices are %v, want %v", st.Devices, want)
	}
	for _, name := range []string{"broken.json", "unknown.yaml", "conflicting device \"v.com/c=twice\"", plain + ":"} {
		if !strings.Contains(strings.Join(st.Problems, "\n"), name) {
			t.Errorf("problems do not name %s: %q", name, st.Problems)
		}
	}
}

// TestInjectedAtTheSameTime is for the race detector: injecting fills in what
// the host says of a node.
func TestInjectedAtTheSameTime(t *testing.T) {
	dir := t.TempDir()
	file(t, dir, "null.yaml", "cdiVersion: 0.6.0\nkind: v.com/c\ndevices: [{name: n, containerEdits: {deviceNodes: [{path: /dev/null}]}}]\n")
	r := New([]string{dir})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := r.Inject(container(), []string{"v.com/c=n"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestNodeThatTheHostDoesNotHave(t *testing.T) {
	dir := t.TempDir()
	file(t, dir, "x.yaml", "cdiVersion: 0.6.0\nkind: v.com/c\ndevices: [{name: n, containerEdits: {deviceNodes: [{path: /dev/podstead-none}]}}]\n")
	err := New([]string{dir}).Inject(container(), []string{"v.com/c=n"})
	if cri.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "/dev/podstead-none") || !strings.Contains(err.Error(), "v.com/c=n") {
		t.Errorf("error is %v", err)
	}
}

func FuzzFile(f *testing.F) {
	f.Add(env("a", "1"))
	f.Add("cdiVersion: 0.6.0\nkind: v.com/c\ndevices: [{name: a, containerEdits: {mounts: [{hostPath: x, containerPath: y}]}}]")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		file(t, dir, "x.yaml", text)
		r := New([]string{dir})
		for _, name := range r.State().Devices {
			_ = r.Inject(container(), []string{name})
		}
	})
}
