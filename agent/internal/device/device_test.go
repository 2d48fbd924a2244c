package device_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"podstead/agent/internal/device"
	"podstead/agent/internal/device/devicetest"
)

const gpu = "example.com/gpu"

// rig is a manager that serves plugins.
type rig struct {
	*device.Manager
	t       *testing.T
	dir     string
	changed chan struct{}
	stop    func()
}

func start(t *testing.T, dir string) *rig {
	t.Helper()
	r := &rig{t: t, dir: dir, changed: make(chan struct{}, 100)}
	m, err := device.New(filepath.Join(dir, "devices.json"), func() { r.changed <- struct{}{} }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r.Manager = m
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, r.plugins()) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return r
}

func (r *rig) plugins() string { return filepath.Join(r.dir, "plugins") }

// until waits until f holds; it is asked again when devices change.
func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	for !f() {
		select {
		case <-r.changed:
		case <-r.t.Context().Done():
			r.t.Fatalf("not %s", what)
		}
	}
}

// has waits until so many devices can be used.
func (r *rig) has(n int) {
	r.t.Helper()
	r.until("as many devices as there should be", func() bool {
		_, usable := r.Capacity()
		return usable[gpu] == n
	})
}

func asks(name string, n int64) corev1.Container {
	c := corev1.Container{Name: name}
	if n > 0 {
		c.Resources.Limits = corev1.ResourceList{gpu: *resource.NewQuantity(n, resource.DecimalSI)}
	}
	return c
}

func pod(uid string, list ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)}, Spec: corev1.PodSpec{Containers: list}}
}

// ids are the devices of a container.
func (r *rig) ids(p *corev1.Pod, name string) []string {
	r.t.Helper()
	grants, err := r.Container(r.t.Context(), p, name)
	if err != nil {
		r.t.Fatal(err)
	}
	return grants[gpu].IDs
}

func TestPodsGetDevices(t *testing.T) {
	r := start(t, t.TempDir())
	first := pod("first", asks("a", 1), asks("b", 1), asks("none", 0))
	if lack := r.Lacks(first); lack != "Container a asks for 1 of "+gpu+", 0 are free" {
		t.Errorf("before there is a plugin: %q", lack)
	}
	p := &devicetest.Plugin{Resource: gpu}
	p.Start(t, r.plugins(), "d1", "d2", "d3", "-d4")
	r.has(3)
	if got := r.ids(first, "a"); !slices.Equal(got, []string{"d1"}) {
		t.Errorf("a: %v", got)
	}
	if got := r.ids(first, "none"); got != nil {
		t.Errorf("none: %v", got)
	}
	second := pod("second", asks("a", 2))
	if lack := r.Lacks(second); lack != "Container a asks for 2 of "+gpu+", 1 are free" {
		t.Errorf("second: %q", lack)
	}
	if _, err := r.Container(t.Context(), second, "a"); err == nil {
		t.Error("second gets devices that are not there")
	}
	p.Set("d1", "d2", "d3", "d4")
	r.has(4)
	if got := r.ids(second, "a"); !slices.Equal(got, []string{"d3", "d4"}) {
		t.Errorf("second: %v", got)
	}

	// Another run of the agent knows who has what, before plugins are back.
	r.stop()
	p.Stop()
	r = start(t, r.dir)
	if got := r.ids(first, "b"); !slices.Equal(got, []string{"d2"}) {
		t.Errorf("b, after a restart: %v", got)
	}
	p = &devicetest.Plugin{Resource: gpu}
	p.Start(t, r.plugins(), "d1", "d2", "d3", "d4")
	r.has(4)
	third := pod("third", asks("a", 1))
	if r.Lacks(third) == "" {
		t.Error("third could have what others have")
	}
	r.Release("second")
	r.until("free", func() bool { return r.Lacks(third) == "" })
	if got := r.ids(third, "a"); !slices.Equal(got, []string{"d3"}) {
		t.Errorf("third: %v", got)
	}
	r.Keep(map[string]bool{"third": true})
	r.until("free", func() bool { return r.Lacks(pod("fourth", asks("a", 3))) == "" })

	p.Stop()
	r.has(0)
	if got := r.ids(third, "a"); !slices.Equal(got, []string{"d3"}) {
		t.Errorf("third, without a plugin: %v", got)
	}
	r.stop()
}

// TestInitContainersPassOn: what an init container had is for those after it, a
// sidecar keeps it.
func TestInitContainersPassOn(t *testing.T) {
	r := start(t, t.TempDir())
	defer r.stop()
	(&devicetest.Plugin{Resource: gpu}).Start(t, r.plugins(), "d1", "d2", "d3")
	r.has(3)
	always := corev1.ContainerRestartPolicyAlways
	p := pod("p", asks("app", 2))
	side := asks("side", 1)
	side.RestartPolicy = &always
	p.Spec.InitContainers = []corev1.Container{asks("init", 2), side}
	got := [][]string{r.ids(p, "init"), r.ids(p, "side"), r.ids(p, "app")}
	if want := [][]string{{"d1", "d2"}, {"d1"}, {"d2", "d3"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestOptions(t *testing.T) {
	r := start(t, t.TempDir())
	defer r.stop()
	p := &devicetest.Plugin{Resource: gpu}
	p.Options.PreStartRequired, p.Options.GetPreferredAllocationAvailable = true, true
	p.Start(t, r.plugins(), "d1", "d2", "d3")
	r.has(3)
	one := pod("one", asks("a", 1))
	if got := r.ids(one, "a"); !slices.Equal(got, []string{"d3"}) {
		t.Errorf("preferred: %v", got)
	}
	r.ids(one, "a") // a restart of the container
	if want := []string{"Allocate d3", "PreStart d3", "PreStart d3"}; !slices.Equal(p.Calls(), want) {
		t.Errorf("%q, want %q", p.Calls(), want)
	}
	p.Prefer = func([]string, int) []string { return []string{"d3"} } // not free
	if got := r.ids(pod("two", asks("a", 1)), "a"); !slices.Equal(got, []string{"d1"}) {
		t.Errorf("a preference that cannot be: %v", got)
	}
}

func TestBadPlugins(t *testing.T) {
	r := start(t, t.TempDir())
	defer r.stop()
	p := &devicetest.Plugin{Resource: gpu}
	p.Start(t, r.plugins(), "d1")
	for _, c := range []struct{ resource, version, endpoint, want string }{
		{gpu, "v1alpha", "x.sock", `version: "v1alpha" is not v1beta1`},
		{"cpu", plugin.Version, "x.sock", "resource_name: "},
		{"kubernetes.io/gpu", plugin.Version, "x.sock", "resource_name: "},
		{"example.com/a b", plugin.Version, "x.sock", "resource_name: "},
		{gpu, plugin.Version, "../x.sock", "endpoint: "},
		{gpu, plugin.Version, "", "endpoint: "},
	} {
		p.Resource = c.resource
		if err := p.Register(t.Context(), c.version, c.endpoint); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	other, err := device.New(filepath.Join(t.TempDir(), "f"), func() {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Run(t.Context(), r.plugins()); err == nil || !strings.Contains(err.Error(), "another agent, listens on it") {
		t.Errorf("two agents: %v", err)
	}
}

func TestApply(t *testing.T) {
	config := &runtimeapi.ContainerConfig{
		Envs:        []*runtimeapi.KeyValue{{Key: "MINE", Value: []byte("1")}},
		Annotations: map[string]string{"ours": "1"}, CDIDevices: []*runtimeapi.CDIDevice{{Name: "v/c=1"}},
	}
	device.Apply(config, map[string]device.Grant{
		"b/b": {Response: &plugin.ContainerAllocateResponse{Envs: map[string]string{"MINE": "2", "B": "b"}, CdiDevices: []*plugin.CDIDevice{{Name: "v/c=1"}, {Name: "v/c=2"}}}},
		"a/a": {Response: &plugin.ContainerAllocateResponse{
			Envs: map[string]string{"A": "a"}, Annotations: map[string]string{"ours": "2", "theirs": "2"},
			Mounts:  []*plugin.Mount{{ContainerPath: "/c", HostPath: "/h", ReadOnly: true}},
			Devices: []*plugin.DeviceSpec{{ContainerPath: "/dev/c", HostPath: "/dev/h", Permissions: "rw"}}}},
	})
	want := &runtimeapi.ContainerConfig{
		Envs:        []*runtimeapi.KeyValue{{Key: "MINE", Value: []byte("1")}, {Key: "A", Value: []byte("a")}, {Key: "B", Value: []byte("b")}},
		Annotations: map[string]string{"ours": "1", "theirs": "2"},
		CDIDevices:  []*runtimeapi.CDIDevice{{Name: "v/c=1"}, {Name: "v/c=2"}},
		Mounts:      []*runtimeapi.Mount{{ContainerPath: "/c", HostPath: "/h", Readonly: true}},
		Devices:     []*runtimeapi.Device{{ContainerPath: "/dev/c", HostPath: "/dev/h", Permissions: "rw"}},
	}
	if config.String() != want.String() {
		t.Errorf("%v\nwant %v", config, want)
	}
}

// pinned has one processor for each container, of two.
type pinned struct{}

func (pinned) CPUIDs(uid, container string) []int64 { return []int64{int64(len(container))} }
func (pinned) AllocatableCPUIDs() []int64           { return []int64{1, 2} }
func (pinned) Memory(uid, container string) []*api.ContainerMemory {
	return []*api.ContainerMemory{{MemoryType: "memory", Size: uint64(len(container))}}
}
func (pinned) AllocatableMemory() []*api.ContainerMemory {
	return []*api.ContainerMemory{{MemoryType: "memory", Size: 7}}
}

func TestPodResources(t *testing.T) {
	r := start(t, t.TempDir())
	defer r.stop()
	(&devicetest.Plugin{Resource: gpu}).Start(t, r.plugins(), "d1", "d2", "-d3")
	r.has(2)
	p := pod("p", asks("a", 1), asks("plain", 0))
	r.ids(p, "a")
	over := pod("over", asks("a", 1))
	over.Status.Phase = corev1.PodFailed
	dir := filepath.Join(r.dir, "pod-resources")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, dir, func() []*corev1.Pod { return []*corev1.Pod{p, over} }, pinned{}) }()
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := api.NewPodResourcesListerClient(conn)
	list, err := client.List(ctx, &api.ListPodResourcesRequest{}, grpc.WaitForReady(true))
	if err != nil || len(list.PodResources) != 1 || len(list.PodResources[0].Containers) != 2 ||
		!slices.Equal(list.PodResources[0].Containers[0].Devices[0].DeviceIds, []string{"d1"}) ||
		!slices.Equal(list.PodResources[0].Containers[0].CpuIds, []int64{1}) || list.PodResources[0].Containers[0].Memory[0].Size != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
	if one, err := client.Get(ctx, &api.GetPodResourcesRequest{PodName: "p", PodNamespace: "ns"}); err != nil || one.PodResources.Name != "p" {
		t.Errorf("get: %v, %v", one, err)
	}
	if _, err := client.Get(ctx, &api.GetPodResourcesRequest{PodName: "x", PodNamespace: "ns"}); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("get of none: %v", err)
	}
	all, err := client.GetAllocatableResources(ctx, &api.AllocatableResourcesRequest{})
	if err != nil || len(all.Devices) != 1 || !slices.Equal(all.Devices[0].DeviceIds, []string{"d1", "d2"}) || !slices.Equal(all.CpuIds, []int64{1, 2}) || all.Memory[0].Size != 7 {
		t.Errorf("allocatable: %v, %v", all, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestHealth: what a plugin says of the devices that a container has is told, and
// what it says no more.
func TestHealth(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	plug := &devicetest.Plugin{Resource: gpu}
	plug.Start(t, r.plugins(), "d1", "d2")
	r.has(2)
	p := pod("first", asks("a", 2), asks("none", 0))
	if got := r.ids(p, "a"); len(got) != 2 {
		t.Fatal(got)
	}
	is := func(m *device.Manager) string {
		text := ""
		for _, s := range m.Health("first")["a"] {
			text += string(s.Name)
			for _, d := range s.Resources {
				text += fmt.Sprintf(" %s:%s", d.ResourceID, d.Health)
			}
		}
		return text
	}
	if got := is(r.Manager); got != gpu+" d1:Healthy d2:Healthy" {
		t.Error(got)
	}
	plug.Set("d1", "-d2")
	r.until("told of a device that is not well", func() bool { return is(r.Manager) == gpu+" d1:Healthy d2:Unhealthy" })
	plug.Set("d2")
	r.until("told of one that is lost", func() bool { return is(r.Manager) == gpu+" d1:Unhealthy d2:Healthy" })
	plug.Stop()
	r.until("told of a plugin that has gone", func() bool { return is(r.Manager) == gpu+" d1:Unhealthy d2:Unhealthy" })
	r.stop()
	later, err := device.New(filepath.Join(dir, "devices.json"), func() {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if got := is(later); got != gpu+" d1:Unknown d2:Unknown" {
		t.Errorf("before the plugin is there again: %s", got)
	}
	if (*device.Manager)(nil).Health("first") != nil {
		t.Error("without a manager")
	}
}
