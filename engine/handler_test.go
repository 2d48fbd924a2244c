package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/config"
)

// runOn runs a pod with a RuntimeClass's handler.
func (n *node) runOn(handler string, change ...func(*runtimeapi.PodSandboxConfig)) string {
	n.t.Helper()
	resp, err := n.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: n.pod(change...), RuntimeHandler: handler})
	if err != nil {
		n.t.Fatalf("RunPodSandbox: %v", err)
	}
	return resp.PodSandboxId
}

// with are the node's settings with these handlers.
func (n *node) with(handlers ...config.Handler) config.Config {
	c := n.cfg.Settings
	c.Handlers = handlers
	return c
}

// TestHandlers runs pods with several handlers side by side, and takes one out of
// the configuration while a pod has it.
func TestHandlers(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	if err := n.Reload(n.with(runc(t))); err != nil {
		t.Fatal(err)
	}
	own, other := n.run(n.pod()), n.runOn("runc")
	mine := n.ready(n.begin(own, n.script(forever)))
	theirs := n.ready(n.begin(other, n.script(forever)))

	// Another runtime's process is the supervisor's child, as ours is, and no
	// process of the runtime stays.
	for _, id := range []string{mine, theirs} {
		p, err := n.client.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", parentOf(t, p.Pid))); filepath.Base(exe) != "podstead-supervisor" {
			t.Errorf("the parent of %s is %s", id, exe)
		}
	}
	pod, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: other})
	if err != nil || pod.Status.RuntimeHandler != "runc" {
		t.Errorf("%v, %v", pod, err)
	}
	if h := n.features(); !h["runc"].RecursiveReadOnlyMounts || h["runc"].UserNamespaces || h[""] == nil || len(h) != 2 {
		t.Errorf("handlers: %v", h)
	}

	// Without its handler's configuration a pod goes on, over a new start, too;
	// only no other can be made.
	if err := n.Reload(n.with()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err = n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.pod(), RuntimeHandler: "runc"})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `"runc"`) {
			t.Errorf("a handler that is not configured: %v", err)
		}
		if out := n.sh(theirs, "echo here"); string(out.Stdout) != "here\n" {
			t.Errorf("exec: %v", out)
		}
		if st := n.exited(n.begin(other, n.script("exit 3"))); st.ExitCode != 3 {
			t.Errorf("%v", st)
		}
		n.restart()
	}
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: theirs, Timeout: 30}); err != nil {
		t.Fatal(err)
	}
	if st := n.status(theirs); st.ExitCode != 0 || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("%v", st)
	}
}

// TestHandlerThatIsMissing names the program that is not there; what the handler
// cannot is refused by the field's name.
func TestHandlerThatIsMissing(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	if err := n.Reload(n.with(config.Handler{Name: "gone", Path: "/no/such/runtime"}, runc(t))); err != nil {
		t.Fatal(err)
	}
	info, err := n.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil || !strings.Contains(info.Info["handlers"], "stat /no/such/runtime: no such file") {
		t.Errorf("status: %v, %v", info.GetInfo()["handlers"], err)
	}
	pod := n.runOn("gone")
	c := n.create(pod, n.script("true"))
	_, err = n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c})
	if err == nil || !strings.Contains(err.Error(), "handler gone: ") || !strings.Contains(err.Error(), "/no/such/runtime") {
		t.Errorf("start: %v", err)
	}
	if st := n.status(c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" || st.ExitCode != 128 {
		t.Errorf("%v", st)
	}
	never := n.create(pod, n.script("true"))
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: never, Timeout: 30}); err != nil {
		t.Errorf("stop of one that was never started: %v", err)
	}
	m := []*runtimeapi.IDMapping{{HostId: 200000, Length: 65536}}
	_, err = n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "runc", Config: n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: m, Gids: m}
	})})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "userns_options") {
		t.Errorf("user namespace: %v", err)
	}
	_, err = n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/m", Readonly: true, RecursiveReadOnly: true}}
	})})
	if err == nil || !strings.Contains(err.Error(), "recursive_read_only") {
		t.Errorf("recursive read-only: %v", err)
	}
}

// TestHandlerSaysWhy passes on what the runtime has logged.
func TestHandlerSaysWhy(t *testing.T) {
	n := newNode(t, runc(t))
	pod := n.run(n.pod())
	c := n.create(pod, n.script("", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/program"} }))
	_, err := n.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: c})
	if err == nil || !strings.Contains(err.Error(), "create") || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start: %v", err)
	}
	if st := n.status(c); st.Reason != "StartError" || !strings.Contains(st.Message, "/no/such/program") {
		t.Errorf("%v", st)
	}
}

// TestHandlerAnnotations passes on the annotations that the configuration names,
// and no others.
func TestHandlerAnnotations(t *testing.T) {
	n := newNode(t)
	h := runc(t)
	h.PodAnnotations, h.ContainerAnnotations = []string{"a.io/*"}, []string{"c"}
	if err := n.Reload(n.with(h)); err != nil {
		t.Fatal(err)
	}
	pod := n.runOn("runc", func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"a.io/x": "1", "b.io/x": "2", "c": "3"}
	})
	c := n.create(pod, n.script("true", func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{"a.io/x": "4", "c": "5"}
	}))
	data, err := os.ReadFile(filepath.Join(n.containerRecords.Path(c), "oci", c, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	var got []string
	for k, v := range s.Annotations {
		got = append(got, k+"="+v)
	}
	slices.Sort(got)
	if want := []string{"a.io/x=1", "c=5"}; !slices.Equal(got, want) {
		t.Errorf("annotations %v, want %v", got, want)
	}
	if s.Version != "1.0.2-dev" {
		t.Logf("the runtime reads version %s", s.Version)
	}
}

// features are those of the handlers in Status.
func (n *node) features() map[string]*runtimeapi.RuntimeHandlerFeatures {
	n.t.Helper()
	s, err := n.Status(context.Background(), &runtimeapi.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	out := map[string]*runtimeapi.RuntimeHandlerFeatures{}
	for _, h := range s.RuntimeHandlers {
		out[h.Name] = h.Features
	}
	return out
}

func parentOf(t *testing.T, pid int) (ppid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Sscan(string(b[strings.LastIndexByte(string(b), ')')+4:]), &ppid)
	return ppid
}
