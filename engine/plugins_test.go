package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plugin is an NRI plugin as others write them, which also keeps a list of what
// it is told.
type plugin struct {
	stub stub.Stub
	name string
	lost chan struct{} // closed when the connection is

	mu     sync.Mutex
	events []string
	config string // that of Configure

	// Any may be nil.
	synchronize func([]*api.PodSandbox, []*api.Container) []*api.ContainerUpdate
	create      func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update      func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
	stop        func(*api.Container) []*api.ContainerUpdate
	refuse      func(event string) error
}

// withPlugins restarts the engine with a socket for plugins.
func (n *node) withPlugins() *node {
	n.t.Helper()
	n.cfg.Settings.NRI.Socket = filepath.Join(n.cfg.RunDir, "nri.sock")
	n.restart()
	return n
}

// connect connects a plugin and waits until it has been synchronised.
func (n *node) connect(name string, p *plugin, options ...stub.Option) *plugin {
	n.t.Helper()
	if err := n.tryConnect(name, p, options...); err != nil {
		n.t.Fatalf("plugin %s: %v", name, err)
	}
	return p
}

// tryConnect is connect for a plugin that may be dropped, being too slow.
func (n *node) tryConnect(name string, p *plugin, options ...stub.Option) error {
	n.t.Helper()
	p.name, p.lost = name, make(chan struct{})
	synchronized := make(chan struct{})
	then := p.synchronize
	p.synchronize = func(pods []*api.PodSandbox, containers []*api.Container) []*api.ContainerUpdate {
		defer close(synchronized)
		if then == nil {
			return nil
		}
		return then(pods, containers)
	}
	idx, base, _ := strings.Cut(name, "-")
	options = append(options, stub.WithPluginIdx(idx), stub.WithPluginName(base),
		stub.WithSocketPath(n.cfg.Settings.NRI.Socket), stub.WithOnClose(sync.OnceFunc(func() { close(p.lost) })))
	var err error
	if p.stub, err = stub.New(p, options...); err != nil {
		n.t.Fatal(err)
	}
	if err := p.stub.Start(context.Background()); err != nil {
		return err
	}
	n.t.Cleanup(p.stub.Stop)
	select {
	case <-synchronized:
	case <-p.lost:
		return errors.New("dropped before it was synchronized")
	case <-time.After(patience):
		return errors.New("never synchronized")
	}
	dropped := false
	eventually(n.t, "plugin is let in", func() bool {
		select {
		case <-p.lost:
			dropped = true
		default:
		}
		return dropped || !n.plugins.Idle()
	})
	if dropped {
		return errors.New("dropped when it was synchronized")
	}
	return nil
}

func (p *plugin) note(event string, name string) error {
	p.mu.Lock()
	p.events = append(p.events, event+" "+name)
	p.mu.Unlock()
	if p.refuse != nil {
		return p.refuse(event)
	}
	return nil
}

func (p *plugin) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *plugin) Configure(_ context.Context, config, _, _ string) (api.EventMask, error) {
	p.config = config
	return 0, nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	return p.synchronize(pods, containers), nil
}

func (p *plugin) RunPodSandbox(_ context.Context, s *api.PodSandbox) error {
	return p.note("RunPodSandbox", s.Name)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, s *api.PodSandbox, _, r *api.LinuxResources) error {
	return p.note("UpdatePodSandbox", fmt.Sprint(s.Name, " ", r.GetCpu().GetShares().GetValue()))
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, s *api.PodSandbox) error {
	return p.note("PostUpdatePodSandbox", s.Name)
}

func (p *plugin) StopPodSandbox(_ context.Context, s *api.PodSandbox) error {
	return p.note("StopPodSandbox", s.Name)
}

func (p *plugin) RemovePodSandbox(_ context.Context, s *api.PodSandbox) error {
	return p.note("RemovePodSandbox", s.Name)
}

func (p *plugin) CreateContainer(_ context.Context, s *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	err := p.note("CreateContainer", c.Name)
	if p.create == nil || err != nil {
		return nil, nil, err
	}
	return p.create(s, c)
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("PostCreateContainer", c.Name)
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("StartContainer", c.Name)
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("PostStartContainer", c.Name+" "+c.State.String())
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	err := p.note("UpdateContainer", c.Name)
	if p.update == nil || err != nil {
		return nil, err
	}
	return p.update(c, r), nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("PostUpdateContainer", c.Name)
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	err := p.note("StopContainer", fmt.Sprint(c.Name, " ", c.ExitCode))
	if p.stop == nil || err != nil {
		return nil, err
	}
	return p.stop(c), nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("RemoveContainer", c.Name)
}

// TestPluginHearsOfEverything follows a pod's life, in the order in which it is
// told.
func TestPluginHearsOfEverything(t *testing.T) {
	n := newNode(t).withPlugins()
	ctx := context.Background()
	p := n.connect("10-listener", &plugin{})
	pod := n.run(n.pod())
	id := n.begin(pod, n.script("exit 3"))
	if code := n.exited(id).ExitCode; code != 3 {
		t.Fatalf("exit code is %d", code)
	}
	eventually(t, "the plugin knows of the exit", func() bool { return slices.Contains(p.told(), "StopContainer c2 3") })
	other := n.begin(pod, n.script("sleep 1000"))
	if _, err := n.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: other, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 77}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: other}); err != nil {
		t.Fatal(err)
	}
	heard := len(p.told())
	if last := p.told()[heard-1]; last != "StopContainer c3 137" {
		t.Errorf("when StopContainer returned, the plugin had last been told %q", last)
	}
	if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"RunPodSandbox pod-1",
		"CreateContainer c2", "PostCreateContainer c2", "StartContainer c2", "PostStartContainer c2 CONTAINER_RUNNING", "StopContainer c2 3",
		"CreateContainer c3", "PostCreateContainer c3", "StartContainer c3", "PostStartContainer c3 CONTAINER_RUNNING",
		"UpdateContainer c3", "PostUpdateContainer c3", "UpdatePodSandbox pod-1 77", "PostUpdatePodSandbox pod-1",
		"StopContainer c3 137", "StopPodSandbox pod-1", "RemoveContainer", "RemoveContainer", "RemovePodSandbox pod-1",
	}
	got := p.told()
	for i := range got {
		if strings.HasPrefix(got[i], "RemoveContainer") { // both at the same time
			got[i] = "RemoveContainer"
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the plugin was told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestPluginIsSynchronized is about a plugin that comes late, and about one that
// comes again after the engine was started anew.
func TestPluginIsSynchronized(t *testing.T) {
	n := newNode(t).withPlugins()
	pod := n.run(n.pod())
	n.exited(n.begin(pod, n.script("true")))
	running := n.begin(pod, n.script("sleep 1000"))
	created := n.create(pod, n.script("true"))
	for _, when := range []string{"late", "after a restart"} {
		if when != "late" {
			n.restart()
		}
		var pods, containers []string
		p := n.connect("10-late", &plugin{synchronize: func(ps []*api.PodSandbox, cs []*api.Container) []*api.ContainerUpdate {
			for _, s := range ps {
				pods = append(pods, s.Id)
			}
			for _, c := range cs {
				containers = append(containers, c.Id+" "+c.State.String()+" "+strings.Join(c.Args, " "))
			}
			u := &api.ContainerUpdate{}
			u.SetContainerId(running)
			u.SetLinuxCPUShares(300)
			return []*api.ContainerUpdate{u}
		}})
		slices.Sort(containers)
		want := []string{running + " CONTAINER_RUNNING /bin/sh -c sleep 1000", created + " CONTAINER_CREATED /bin/sh -c true"}
		slices.Sort(want)
		if !slices.Equal(pods, []string{pod}) || !slices.Equal(containers, want) {
			t.Errorf("%s: pods %v, containers %q, want %q", when, pods, containers, want)
		}
		if got := n.status(running).Resources.Linux.CpuShares; got != 300 {
			t.Errorf("%s: the update that synchronisation asked for gave %d shares", when, got)
		}
		if when == "late" {
			if err := n.Engine.Close(); err != nil {
				t.Fatal(err)
			}
			<-p.lost
			n.start()
		}
	}
}

// TestPluginAdjusts tries what a plugin may change, on a real container.
func TestPluginAdjusts(t *testing.T) {
	n := newNode(t).withPlugins()
	n.describe("x.yaml", "cdiVersion: 0.6.0\nkind: v.com/c\ndevices: [{name: d, containerEdits: {env: [CDI=1]}}]\n")
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("mounted\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.connect("10-all", &plugin{create: func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddAnnotation("plugin", "was here")
		a.AddEnv("ADDED", "1")
		a.AddEnv("CHANGED", "new")
		a.RemoveEnv("REMOVED")
		a.AddMount(&api.Mount{Destination: "/plugin/mount", Source: source, Type: "bind", Options: []string{"rbind", "ro"}})
		a.RemoveMount("/dev/mqueue")
		a.AddDevice(&api.LinuxDevice{Path: "/dev/plugin", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(0o666)})
		a.AddCDIDevice(&api.CDIDevice{Name: "v.com/c=d"})
		a.AddRlimit("RLIMIT_NOFILE", 333, 222)
		a.SetLinuxOomScoreAdj(new(777))
		a.SetLinuxCPUShares(512)
		a.SetLinuxMemoryLimit(64 << 20)
		a.SetLinuxPidLimits(99)
		a.SetLinuxSysctl("net.ipv4.ip_forward", "1")
		a.SetArgs(append(c.Args, "argument"))
		return a, nil, nil
	}})
	pod := n.run(n.pod())
	id := n.begin(pod, n.script("while :; do sleep 1000; done", func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "CHANGED", Value: []byte("old")}, {Key: "REMOVED", Value: []byte("1")}, {Key: "KEPT", Value: []byte("1")}}
	}))
	for command, want := range map[string]string{
		"echo $ADDED $CHANGED $REMOVED $KEPT $CDI":        "1 new 1 1\n",
		"cat /plugin/mount/file":                          "mounted\n",
		"touch /plugin/mount/x 2>/dev/null || echo ro":    "ro\n",
		"test -e /dev/mqueue/. && mountpoint /dev/mqueue": "",
		"head -c 2 /dev/plugin | od -An -tx1":             " 00 00\n",
		"ulimit -Sn; ulimit -Hn":                          "222\n333\n",
		"cat /proc/1/oom_score_adj":                       "777\n",
		"cat /proc/sys/net/ipv4/ip_forward":               "1\n",
		`tr '\0' ' ' < /proc/1/cmdline`:                   "/bin/sh -c while :; do sleep 1000; done argument ",
	} {
		if got := string(n.sh(id, command).Stdout); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	st := n.status(id)
	if r := st.Resources.Linux; r.CpuShares != 512 || r.MemoryLimitInBytes != 64<<20 || r.OomScoreAdj != 777 {
		t.Errorf("status has the resources %v", r)
	}
	info, err := n.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil || !strings.Contains(info.Info["info"], `"plugin":"was here"`) {
		t.Errorf("the annotation is not in the specification: %v", err)
	}
}

// TestPluginReplacesSeccomp is about the filter, which is kept apart from the
// specification if it is the default one: an exec must get the plugin's.
func TestPluginReplacesSeccomp(t *testing.T) {
	n := newNode(t).withPlugins()
	n.connect("10-seccomp", &plugin{create: func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		policy := c.Linux.SeccompPolicy
		if policy == nil || policy.DefaultAction != "SCMP_ACT_ERRNO" {
			return nil, nil, fmt.Errorf("the policy is %v", policy)
		}
		for _, s := range policy.Syscalls {
			s.Names = slices.DeleteFunc(s.Names, func(n string) bool { return n == "mkdir" || n == "mkdirat" })
		}
		policy.DefaultErrno = api.UInt32(uint32(95))
		policy.Syscalls = append(policy.Syscalls, &api.LinuxSyscall{Names: []string{"mkdir", "mkdirat"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: api.UInt32(uint32(28))})
		a := &api.ContainerAdjustment{}
		a.SetLinuxSeccompPolicy(policy)
		return a, nil, nil
	}})
	id := n.begin(n.run(n.pod()), n.script("sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}))
	for _, when := range []string{"before", "after a restart"} {
		if got := n.sh(id, "mkdir /x"); !strings.Contains(string(got.Stderr), "No space left") {
			t.Errorf("%s: mkdir says %s", when, got.Stderr)
		}
		n.restart()
	}
}

// TestPluginAsksForTheImpossible wants errors with a name, and nothing left of
// the container, of which the plugin is told, too.
func TestPluginAsksForTheImpossible(t *testing.T) {
	n := newNode(t).withPlugins()
	var adjust *api.ContainerAdjustment
	p := n.connect("10-wild", &plugin{create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return adjust, nil, nil
	}})
	pod := n.run(n.pod())
	linux := func(l *api.LinuxContainerAdjustment) *api.ContainerAdjustment {
		return &api.ContainerAdjustment{Linux: l}
	}
	limits := func(r *api.LinuxResources) *api.ContainerAdjustment {
		return linux(&api.LinuxContainerAdjustment{Resources: r})
	}
	for want, a := range map[string]*api.ContainerAdjustment{
		"cgroups_path":                 linux(&api.LinuxContainerAdjustment{CgroupsPath: "/somewhere/else"}),
		"resources.blockio_class":      limits(&api.LinuxResources{BlockioClass: api.String("gold")}),
		"resources.rdt_class":          limits(&api.LinuxResources{RdtClass: api.String("gold")}),
		"linux.intelRdt":               linux(&api.LinuxContainerAdjustment{Rdt: &api.LinuxRdt{ClosId: api.String("gold")}}),
		"linux.netDevices":             linux(&api.LinuxContainerAdjustment{NetDevices: map[string]*api.LinuxNetDevice{"eth7": {Name: "x"}}}),
		"CDI_devices":                  {CDIDevices: []*api.CDIDevice{{Name: "v.com/c=none"}}},
		"hooks.poststop[0].path":       {Hooks: &api.Hooks{Poststop: []*api.Hook{{Path: "bin/true"}}}},
		`env: "A=B"`:                   {Env: []*api.KeyValue{{Key: "A=B", Value: "1"}}},
		`the destination "relative"`:   {Mounts: []*api.Mount{{Destination: "relative", Type: "bind", Source: "/"}}},
		"/proc/self/x":                 {Mounts: []*api.Mount{{Destination: "/proc/self/x", Type: "bind", Source: "/etc", Options: []string{"bind"}}}},
		"mount namespace":              linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "-mount"}}}),
		`"outer" is not supported`:     linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "outer"}}}),
		`linux.sysctl["kernel.panic"]`: linux(&api.LinuxContainerAdjustment{Sysctl: map[string]string{"kernel.panic": "1"}}),
		"linux.seccomp":                linux(&api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_PARTY"}}),
		"rlimits":                      {Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_PARTY", Hard: 1, Soft: 1}}},
		"linux.resources.devices":      linux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "/dev/x", Type: "z"}}}),
		"hugepageLimits":               limits(&api.LinuxResources{HugepageLimits: []*api.HugepageLimit{{PageSize: "7MB", Limit: 1}}}),
	} {
		adjust = a
		_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true")})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one that names %s", err, want)
		}
		if left := n.containersOf(pod); len(left) > 0 {
			t.Fatalf("%s: %d containers are left", want, len(left))
		}
		if told := p.told(); !strings.HasPrefix(told[len(told)-1], "RemoveContainer") {
			t.Errorf("%s: the plugin was last told %q", want, told[len(told)-1])
		}
	}
	adjust = nil
	n.exited(n.begin(pod, n.script("true")))
}

// TestPluginsRefuse is about plugins that do not want something to be.
func TestPluginsRefuse(t *testing.T) {
	n := newNode(t).withPlugins()
	ctx := context.Background()
	var no atomic.Value
	no.Store("")
	n.connect("10-no", &plugin{refuse: func(event string) error {
		if event == no.Load() {
			return errors.New("not on my node")
		}
		return nil
	}})
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "not on my node") {
			t.Errorf("%s: error is %v", what, err)
		}
	}
	no.Store("RunPodSandbox")
	_, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.pod()})
	refused(no.Load().(string), err)
	no.Store("")
	pod := n.run(n.pod())
	no.Store("CreateContainer")
	_, err = n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true")})
	refused(no.Load().(string), err)
	no.Store("UpdatePodSandbox")
	_, err = n.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 77}})
	refused(no.Load().(string), err)
	no.Store("StartContainer")
	id := n.create(pod, n.script("true"))
	_, err = n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	refused(no.Load().(string), err)
	if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != reasonStartError {
		t.Errorf("the container that may not start is %v (%s)", st.State, st.Reason)
	}
	no.Store("UpdateContainer")
	id = n.begin(pod, n.script("sleep 1000"))
	_, err = n.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}})
	refused(no.Load().(string), err)
	// What ends cannot be refused.
	for _, event := range []string{"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", "PostStartContainer"} {
		no.Store(event)
		pod := n.run(n.pod())
		n.begin(pod, n.script("sleep 1000"))
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Errorf("%s: %v", event, err)
		}
	}
}

// TestPluginUpdatesOthers covers every way in which a plugin can change the
// limits of containers.
func TestPluginUpdatesOthers(t *testing.T) {
	n := newNode(t).withPlugins()
	ctx := context.Background()
	pod := n.run(n.pod())
	victim := n.begin(pod, n.script("sleep 1000"))
	shares := func(id string, value uint64) []*api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(id)
		u.SetLinuxCPUShares(value)
		return []*api.ContainerUpdate{u}
	}
	p := n.connect("10-update", &plugin{
		create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			return nil, shares(victim, 111), nil
		},
		update: func(c *api.Container, r *api.LinuxResources) []*api.ContainerUpdate {
			return append(shares(victim, 222), shares(c.Id, r.Cpu.Shares.Value+1)...)
		},
		stop: func(*api.Container) []*api.ContainerUpdate { return shares(victim, 333) },
	})
	want := func(what, id string, value int64) {
		t.Helper()
		if got := n.status(id).Resources.Linux.CpuShares; got != value {
			t.Errorf("%s: %d shares, want %d", what, got, value)
		}
	}
	id := n.begin(pod, n.script("sleep 1000"))
	want("creation of another", victim, 111)
	if _, err := n.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 500}}); err != nil {
		t.Fatal(err)
	}
	want("update of another", victim, 222)
	want("update of itself", id, 501)
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	want("end of another", victim, 333)

	failed, err := p.stub.UpdateContainers(append(shares(victim, 444), append(shares(id, 5), shares("none", 5)...)...))
	if err != nil {
		t.Fatal(err)
	}
	want("unsolicited", victim, 444)
	if len(failed) != 2 || failed[0].ContainerId != id || failed[1].ContainerId != "none" {
		t.Errorf("failed are %v, want those of an exited and of an unknown container", failed)
	}
}

// TestPluginEvicts: the stub has no words for it, so it is put into its answer.
func TestPluginEvicts(t *testing.T) {
	n := newNode(t).withPlugins()
	pod := n.run(n.pod())
	victim := n.begin(pod, n.script("sleep 1000"))
	n.connect("10-evict", &plugin{}, stub.WithTTRPCOptions(nil, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
			r, err := method(ctx, u)
			if r, ok := r.(*api.CreateContainerResponse); ok {
				r.Evict = []*api.ContainerEviction{{ContainerId: victim, Reason: "room for another"}, {ContainerId: "none"}}
			}
			return r, err
		})}))
	n.create(pod, n.script("true"))
	if st := n.exited(victim); st.ExitCode != 137 || !strings.Contains(st.Message, "10-evict: room for another") {
		t.Errorf("evicted: %d, %s", st.ExitCode, st.Message)
	}
}

// TestPluginsConflict: the second one to change what the first has changed
// fails the container.
func TestPluginsConflict(t *testing.T) {
	n := newNode(t).withPlugins()
	for _, name := range []string{"20-second", "10-first"} {
		n.connect(name, &plugin{create: func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			a.AddEnv("WHO", name)
			return a, nil, nil
		}})
	}
	_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: n.run(n.pod()), Config: n.script("true")})
	if err == nil || !strings.Contains(err.Error(), "10-first") || !strings.Contains(err.Error(), "20-second") || !strings.Contains(err.Error(), "WHO") {
		t.Errorf("error is %v, want one that names both plugins and the variable", err)
	}
}
