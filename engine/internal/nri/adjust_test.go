package nri

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func container() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin", "A=1"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 1, Soft: 1}}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"}, {Destination: "/data/inner", Type: "bind", Source: "/i"}, {Destination: "/data", Type: "bind", Source: "/d"},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			Devices:    []specs.LinuxDevice{{Path: "/dev/a", Type: "c", Major: 7, Minor: 1}, {Path: "/dev/b", Type: "c", Major: 7, Minor: 2}},
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: new(int64(100)), Swap: new(int64(150))},
				Devices: []specs.LinuxDeviceCgroup{
					{Allow: false, Access: "rwm"},
					{Allow: true, Type: "c", Major: new(int64(7)), Minor: new(int64(1)), Access: "rwm"},
					{Allow: true, Type: "c", Major: new(int64(7)), Minor: new(int64(2)), Access: "r"},
				},
			},
		},
	}
}

func noDevices(*specs.Spec, []string) error { return nil }

// TestAdjust shows what each adjustment makes of a specification.
func TestAdjust(t *testing.T) {
	linux := func(a *api.LinuxContainerAdjustment) *api.ContainerAdjustment {
		return &api.ContainerAdjustment{Linux: a}
	}
	limits := func(r *api.LinuxResources) *api.ContainerAdjustment {
		return linux(&api.LinuxContainerAdjustment{Resources: r})
	}
	for name, test := range map[string]struct {
		a    *api.ContainerAdjustment
		want func(*specs.Spec)
	}{
		"nothing": {nil, func(*specs.Spec) {}},
		"environment": {
			&api.ContainerAdjustment{Env: []*api.KeyValue{{Key: "B", Value: "x=y"}, {Key: "PATH", Value: "/sbin"}, {Key: "-A"}}},
			func(s *specs.Spec) { s.Process.Env = []string{"PATH=/sbin", "B=x=y"} },
		},
		"replaced rlimit": {
			&api.ContainerAdjustment{Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 3, Soft: 2}}},
			func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 3, Soft: 2}} },
		},
		"mount between others": {
			&api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/data/", Type: "bind", Source: "/new", Options: []string{"rbind", "rslave"}}, {Destination: "-/proc"}}},
			func(s *specs.Spec) {
				s.Mounts = []specs.Mount{
					{Destination: "/data/", Type: "bind", Source: "/new", Options: []string{"rbind", "rslave"}},
					{Destination: "/data/inner", Type: "bind", Source: "/i"},
				}
				s.Linux.RootfsPropagation = "rslave"
			},
		},
		"removed device, and its rule": {
			linux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "-/dev/a"}}}),
			func(s *specs.Spec) {
				s.Linux.Devices = s.Linux.Devices[1:]
				s.Linux.Resources.Devices = append(s.Linux.Resources.Devices[:1:1], s.Linux.Resources.Devices[2])
			},
		},
		"namespaces": {
			linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "-pid"}, {Type: "network", Path: "/n"}}}),
			func(s *specs.Spec) {
				s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/n"}}
			},
		},
		"memory keeps its swap": {
			limits(&api.LinuxResources{Memory: &api.LinuxMemory{Limit: api.Int64(1000)}}),
			func(s *specs.Spec) {
				s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(1000)), Swap: new(int64(1050))}
			},
		},
		"empty limits are none": {
			limits(&api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{}}),
			func(*specs.Spec) {},
		},
		"pids without limit": {
			limits(&api.LinuxResources{Pids: &api.LinuxPids{Limit: -5}}),
			func(s *specs.Spec) { s.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64(-1))} },
		},
		"removed I/O priority": {
			linux(&api.LinuxContainerAdjustment{IoPriority: &api.LinuxIOPriority{}}),
			func(*specs.Spec) {},
		},
		"scheduler": {
			linux(&api.LinuxContainerAdjustment{Scheduler: &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 3}}),
			func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3} },
		},
	} {
		got, want := container(), container()
		if err := Adjust(got, test.a, noDevices); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		test.want(want)
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		if string(g) != string(w) {
			t.Errorf("%s:\n%s\nwant\n%s", name, g, w)
		}
	}
}

func TestAnnotationReplacedAndRemoved(t *testing.T) {
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}, Annotations: map[string]string{"a": "1", "b": "2", "c": "3"}}
	if err := Adjust(s, &api.ContainerAdjustment{Annotations: map[string]string{"-a": "", "a": "new", "-b": ""}}, noDevices); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"a": "new", "c": "3"}; !reflect.DeepEqual(s.Annotations, want) {
		t.Errorf("annotations are %v, want %v", s.Annotations, want)
	}
	if err := Adjust(s, &api.ContainerAdjustment{Annotations: map[string]string{"-": ""}}, noDevices); err == nil || !strings.Contains(err.Error(), "annotations") {
		t.Errorf("an empty key: %v", err)
	}
}

// TestLimitsBackAndForth: what CRI has fields for comes back as it went.
func TestLimitsBackAndForth(t *testing.T) {
	in := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20,
		CpusetCpus: "0", CpusetMems: "0", Unified: map[string]string{"memory.high": "max"},
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4}},
	}
	out := CRILimits(&api.LinuxResources{
		Cpu:    &api.LinuxCPU{Period: api.UInt64(uint64(100000)), Quota: api.Int64(50000), Shares: api.UInt64(uint64(512)), Cpus: "0", Mems: "0"},
		Memory: &api.LinuxMemory{Limit: api.Int64(1 << 20), Swap: api.Int64(2 << 20)}, Unified: map[string]string{"memory.high": "max"},
		HugepageLimits: []*api.HugepageLimit{{PageSize: "2MB", Limit: 4}},
	})
	if !proto.Equal(in, out) {
		t.Errorf("got %v, want %v", out, in)
	}
}

// FuzzAdjust takes what a plugin may send.
func FuzzAdjust(f *testing.F) {
	for _, a := range []*api.ContainerAdjustment{
		{Env: []*api.KeyValue{{Key: "A", Value: "1"}}, Mounts: []*api.Mount{{Destination: "/x"}}, Hooks: &api.Hooks{Prestart: []*api.Hook{{Path: "/x"}}}},
		{Linux: &api.LinuxContainerAdjustment{
			Devices: []*api.LinuxDevice{{Path: "-/dev/a"}, {Path: "/dev/c"}}, Resources: &api.LinuxResources{Memory: &api.LinuxMemory{}},
			NetDevices: map[string]*api.LinuxNetDevice{"a": {}}, Scheduler: &api.LinuxScheduler{}, Rdt: &api.LinuxRdt{}, MemoryPolicy: &api.LinuxMemoryPolicy{},
			SeccompPolicy: &api.LinuxSeccomp{Syscalls: []*api.LinuxSyscall{{Args: []*api.LinuxSeccompArg{{}}}}},
		}},
	} {
		b, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a api.ContainerAdjustment
		if proto.Unmarshal(b, &a) != nil {
			return
		}
		s := container()
		if err := Adjust(s, &a, noDevices); err == nil && s.Linux.CgroupsPath != "" {
			t.Errorf("the cgroup was changed to %q", s.Linux.CgroupsPath)
		}
	})
}
