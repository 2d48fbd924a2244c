package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	testhost "podstead/test/host"
	"podstead/test/leak"
)

// TestSandboxFailsWhole makes RunPodSandbox fail at one step after the other:
// the error names the cause, nothing is left, and the same name works at once.
func TestSandboxFailsWhole(t *testing.T) {
	n := newNodeWithSlots(t, 0)
	ctx := context.Background()
	holder := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8123, ContainerPort: 80}}
	}))
	scope := leak.Scope{Cgroup: testhost.Cgroup(), Dirs: []string{n.cfg.StateDir, n.cfg.RunDir}}
	for name, tc := range map[string]struct {
		change func(*runtimeapi.PodSandboxConfig)
		want   string
		code   codes.Code
	}{
		"cgroup": {func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "a.slice:b:c" }, "cgroup_parent", codes.InvalidArgument},
		"network": {func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8123, ContainerPort: 80}}
		}, "8123", codes.Unknown},
		"bandwidth": {func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "fast"}
		}, "kubernetes.io/egress-bandwidth", codes.Unknown},
		"sysctl": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "many"}
		}, "net.ipv4.ip_forward", codes.Unknown},
		"forbidden sysctl": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "|/bin/sh"}
		}, "kernel.core_pattern", codes.InvalidArgument},
		"user namespace and host pids": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
			m := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: m, Gids: m}
		}, "userns_options", codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			before := leak.Take(scope)
			config := n.pod(tc.change)
			_, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			if cri.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want %v that says %q", err, tc.code, tc.want)
			}
			for _, left := range leak.Since(before, scope) {
				t.Errorf("left: %s", left)
			}
			good := n.pod()
			good.Metadata = config.Metadata
			id := n.run(good)
			if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.pod(), RuntimeHandler: "kata"}); cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "kata") {
		t.Errorf("unknown handler: %v", err)
	}
	if _, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: holder}); err != nil {
		t.Error(err)
	}
}

// TestContainerFailsWhole does the same with CreateContainer.
func TestContainerFailsWhole(t *testing.T) {
	n := newNodeWithSlots(t, 0)
	ctx := context.Background()
	pod := n.run(n.pod())
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	scope := leak.Scope{Cgroup: testhost.Cgroup(), Dirs: []string{n.cfg.StateDir, n.cfg.RunDir}}
	id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	for name, tc := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		want   string
		code   codes.Code
	}{
		"image": {func(c *runtimeapi.ContainerConfig) { c.Image.Image = "test.local/none:1" }, "test.local/none:1", codes.NotFound},
		"user":  {func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "wendy" }, "wendy", codes.InvalidArgument},
		"group": {func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup = id(5) }, "run_as_group", codes.InvalidArgument},
		"mount": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: file + "/below"}}
		}, file, codes.Unknown},
		"device": {func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/x", HostPath: file}}
		}, "devices[0]", codes.InvalidArgument},
		"seccomp": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such.json"}
		}, "/no/such.json", codes.InvalidArgument},
		"apparmor": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "x"}
		}, "apparmor", codes.InvalidArgument},
		"CDI": {func(c *runtimeapi.ContainerConfig) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "a.com/b=c"}} }, "a.com/b=c", codes.FailedPrecondition},
		"limits": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpusetCpus: "9999"}
		}, "9999", codes.Unknown},
		"log": {func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../../etc/cron.d/x" }, "log_path", codes.InvalidArgument},
		"launch": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/bin/busybox/below", HostPath: n.logs}}
		}, "/bin/busybox/below", codes.Unknown},
		"image volume": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: testImage}, ImageSubPath: "no/such", Readonly: true}}
		}, "ImageVolumeMountFailed", codes.Unknown},
		"target": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "nobody"}
		}, "nobody", codes.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			before := leak.Take(scope)
			config := n.script("true", tc.change)
			_, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			if cri.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want %v that says %q", err, tc.code, tc.want)
			}
			for _, left := range leak.Since(before, scope) {
				t.Errorf("left: %s", left)
			}
			if left := len(n.images.Holders()); left != 0 {
				t.Errorf("%d image holds are left", left)
			}
			good := n.script("true")
			good.Metadata = config.Metadata
			c := n.create(pod, good)
			if _, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := os.Stat("/etc/cron.d/x"); err == nil {
		t.Error("the log left its directory")
	}
}

func TestStartFailureIsAnExit(t *testing.T) {
	n := newNodeWithSlots(t, 0)
	ctx := context.Background()
	// It can be executed by its mode, and then the kernel does not know its format.
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("?"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := n.create(n.run(n.pod()), n.script("", func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"/no/format"}
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/no/format", HostPath: program}}
	}))
	_, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c})
	if err == nil || !strings.Contains(err.Error(), "/no/format") {
		t.Fatalf("error %v does not name the program", err)
	}
	st := n.status(c)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" || st.ExitCode != 128 || !strings.Contains(st.Message, "/no/format") {
		t.Errorf("status %v", st)
	}
}

// TestRetryGetsTheResult gives up on a request before it is done: the work goes
// on, and asking again returns its result; a third time is AlreadyExists.
func TestRetryGetsTheResult(t *testing.T) {
	n := newNodeWithSlots(t, 0)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	ctx := context.Background()
	req := &runtimeapi.RunPodSandboxRequest{Config: n.pod()}
	if _, err := n.RunPodSandbox(gone, req); cri.Code(err) != codes.Canceled {
		t.Fatalf("error %v, want Canceled", err)
	}
	pod, err := n.RunPodSandbox(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.RunPodSandbox(ctx, req); cri.Code(err) != codes.AlreadyExists {
		t.Errorf("third time: %v", err)
	}
	if got := len(n.allSandboxes()); got != 1 {
		t.Errorf("%d sandboxes", got)
	}
	create := &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: n.script(forever)}
	if _, err := n.CreateContainer(gone, create); cri.Code(err) != codes.Canceled {
		t.Fatalf("error %v, want Canceled", err)
	}
	c, err := n.CreateContainer(ctx, create)
	if err != nil {
		t.Fatal(err)
	}
	other := n.script("true")
	other.Metadata = create.Config.Metadata
	if _, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: other}); cri.Code(err) != codes.AlreadyExists {
		t.Errorf("another config of the same name: %v", err)
	}
	if _, err := n.StartContainer(gone, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); cri.Code(err) != codes.Canceled {
		t.Fatalf("error %v, want Canceled", err)
	}
	eventually(t, "the abandoned start goes on", func() bool {
		return n.status(c.ContainerId).State == runtimeapi.ContainerState_CONTAINER_RUNNING
	})
	if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Errorf("the retry: %v", err)
	}
	if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); cri.Code(err) != codes.FailedPrecondition {
		t.Errorf("once more: %v", err)
	}
}

// TestOneStuckContainer blocks one container in a stop that takes for ever;
// everything else goes on.
func TestOneStuckContainer(t *testing.T) {
	n := newNodeWithSlots(t, 0)
	ctx := context.Background()
	pod := n.run(n.pod())
	stubborn := n.begin(pod, n.script(`trap '' TERM; echo ready; while :; do sleep 1000; done`))
	n.ready(stubborn)
	slow := make(chan error, 1)
	go func() {
		_, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: stubborn, Timeout: 3600})
		slow <- err
	}()
	other := n.ready(n.begin(pod, n.script(forever)))
	if out := n.sh(other, "echo fine"); string(out.Stdout) != "fine\n" {
		t.Errorf("exec elsewhere: %v", out)
	}
	if out := n.sh(stubborn, "echo alive"); string(out.Stdout) != "alive\n" {
		t.Errorf("exec in it: %v", out)
	}
	if _, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: other}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-slow:
		t.Fatalf("stop returned early: %v", err)
	default:
	}
	// The shorter timeout wins, also for those who gave the longer one.
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: stubborn}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-slow:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the first stop does not return")
	}
	if st := n.status(stubborn); st.ExitCode != 137 || st.Reason != "Error" {
		t.Errorf("status %v", st)
	}
}

// TestExecOfACallerWhoLeft gives up on an exec before it is launched: nothing
// of it runs in the end.
func TestExecOfACallerWhoLeft(t *testing.T) {
	n := newNodeWithSlots(t, 0)
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever)))
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for range 5 {
		_, err := n.ExecSync(gone, &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"sleep", "5432"}})
		if cri.Code(err) != codes.Canceled {
			t.Fatalf("error %v, want Canceled", err)
		}
	}
	eventually(t, "no exec is under way, and none is left", func() bool {
		if n.exits.expected() > 0 { // to be launched, or not yet ended
			return false
		}
		all, err := n.client.List(context.Background())
		return err == nil && len(all) == 1
	})
	if out := n.sh(c, "ps | grep '[5]432'"); len(out.Stdout) > 0 {
		t.Errorf("still there:\n%s", out.Stdout)
	}
}

// expected counts the exec'd processes whose end is waited for.
func (x *exits) expected() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.waiting)
}
