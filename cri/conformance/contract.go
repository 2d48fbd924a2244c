package conformance

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// contractTests are about what is refused in which state, and what a kubelet
// may rely on when it asks again.
var contractTests = []test{
	{"a start only from created, in a ready sandbox", "StartContainer", func(t *testing.T, s *suite) {
		p := s.pod(t)
		running, created := p.sh(t, "sleep 1000"), p.create(t, p.script("created", "sleep 1000"))
		start := func(c *container) error {
			_, err := s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
			return err
		}
		wantError(t, "a start of what runs", start(running))
		p.stop(t)
		wantError(t, "a start in a stopped sandbox", start(created))
		for what, c := range map[string]*container{"that ran": running, "that was created": created} {
			if state := c.status(t).GetState(); state == runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container %s runs in a stopped sandbox", what)
			}
		}
	}},
	{"streams only to what runs", "Exec Attach PortForward", func(t *testing.T, s *suite) {
		p := s.pod(t)
		ended, created := p.sh(t, "true"), p.create(t, p.script("created", "sleep 1000"))
		ended.exited(t)
		for what, c := range map[string]*container{"an exited container": ended, "a created container": created} {
			_, err := s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Stdout: true})
			wantError(t, "exec in "+what, err)
			_, err = s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c.id, Stdout: true})
			wantError(t, "attach to "+what, err)
		}
		p.stop(t)
		_, err := s.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}})
		wantError(t, "forward to a stopped sandbox", err)
	}},
	{"an exited container has no limits to change", "UpdateContainerResources", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "true", limited(64*mebibyte))
		c.exited(t)
		_, err := s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: memory(32 * mebibyte)})
		wantError(t, "update", err)
		if got := c.status(t).GetResources().GetLinux().GetMemoryLimitInBytes(); got != 64*mebibyte {
			t.Errorf("status has the limit %d", got)
		}
	}},
	{"what does not exist is not found", "ReopenContainerLog PodSandboxStats ListPodSandboxStats ListContainerStats", func(t *testing.T, s *suite) {
		_, err := s.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: "no-such-container"})
		wantCode(t, "reopen", err, codes.NotFound)
		_, err = s.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "no-such-sandbox"})
		wantCode(t, "sandbox stats", err, codes.NotFound)
		sandboxes, err := s.Runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: "no-such-sandbox"}})
		if err != nil || len(sandboxes.GetStats()) != 0 {
			t.Errorf("stats of no sandbox: %v, %v", sandboxes, err)
		}
		containers, err := s.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: "no-such-container"}})
		if err != nil || len(containers.GetStats()) != 0 {
			t.Errorf("stats of no container: %v, %v", containers, err)
		}
	}},
	{"the stop signal is sent once", "StopContainer", signalledOnce},
	{"children in the host's process namespace die with it", "StopContainer", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		})
		watcher := p.sh(t, "sleep 1000")
		c := p.sh(t, "setsid sleep 4747 & echo ready; sleep 1000")
		c.says(t, "ready\n")
		c.stop(t, 0)
		eventually(t, "its background process is gone", func() bool {
			return watcher.exec(t, "sh", "-c", "ps | grep -c '[s]leep 4747' || true") == "0"
		})
	}},
	{"creation, start, stop and removal again, after callers who left", "CreateContainer StartContainer StopContainer RemoveContainer StopPodSandbox RemovePodSandbox", retries},
	{"what the runtime is stays the same", "Status RuntimeConfig StatusResponse.{runtime_handlers,features}", func(t *testing.T, s *suite) {
		var handlers, configs []proto.Message
		for range 3 {
			r, err := s.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if len(r.GetInfo()) != 0 {
				t.Errorf("info that was not asked for: %v", r.GetInfo())
			}
			config, err := s.Runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
			if err != nil {
				t.Fatal(err)
			}
			// The kubelet writes a node's status whenever the order changes.
			handlers = append(handlers, &runtimeapi.StatusResponse{RuntimeHandlers: r.GetRuntimeHandlers(), Features: r.GetFeatures()})
			configs = append(configs, config)
		}
		for i := range handlers {
			if !proto.Equal(handlers[0], handlers[i]) || !proto.Equal(configs[0], configs[i]) {
				t.Errorf("first %v and %v, then %v and %v", handlers[0], configs[0], handlers[i], configs[i])
			}
		}
	}},
	{"a pull ends with its caller", "PullImage", pullGivenUp},
	{"images for a handler that is not there", "PullImage ImageSpec.runtime_handler", func(t *testing.T, s *suite) {
		image := &runtimeapi.ImageSpec{Image: s.Image, RuntimeHandler: "no-such-handler"}
		_, err := s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: image})
		wantError(t, "pull", err)
		if err != nil && !strings.Contains(err.Error(), "no-such-handler") {
			t.Errorf("error is %v, want one that names the handler", err)
		}
	}},
	{"images are filtered by every name", "ListImages ImageStatus ImageFilter.image", imageNames},
}

// signalledOnce stops a container that counts its signals by two callers, of
// whom the second leaves, and then by a third who does not wait.
func signalledOnce(t *testing.T, s *suite) {
	c := s.pod(t).sh(t, "trap 'echo signal' TERM; echo ready; while :; do sleep 0.05; done")
	c.says(t, "ready\n")
	first := make(chan error, 1)
	go func() {
		_, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 100000})
		first <- err
	}()
	c.says(t, "ready\nsignal\n")
	ctx, leave := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer leave()
	if _, err := s.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 100000}); err == nil {
		t.Error("a stop succeeded although the container runs")
	}
	c.stop(t, 0)
	if err := <-first; err != nil {
		t.Errorf("the first stop: %v", err)
	}
	if got := c.log(t); got != "ready\nsignal\n" {
		t.Errorf("log is %q, want one signal", got)
	}
}

// again calls a verb for a caller who leaves at once, and then until it
// succeeds: what was begun is joined or done, and never in the way.
func again(t *testing.T, what string, do func(context.Context) error) {
	t.Helper()
	ctx, leave := context.WithTimeout(t.Context(), time.Millisecond)
	defer leave()
	if do(ctx) == nil {
		return // it was quicker
	}
	eventually(t, what+" succeeds after a caller left", func() bool { return do(t.Context()) == nil })
}

func retries(t *testing.T, s *suite) {
	p := s.pod(t)
	config := p.script("c", "sleep 1000")
	c := &container{pod: p}
	again(t, "create", func(ctx context.Context) error {
		r, err := s.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		c.id = r.GetContainerId()
		return err
	})
	if list := p.containers(t, &runtimeapi.ContainerFilter{PodSandboxId: p.id}); len(list) != 1 || list[0].GetId() != c.id {
		t.Fatalf("containers are %v, want %s alone", list, c.id)
	}
	again(t, "start", func(ctx context.Context) error {
		_, err := s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.id})
		return err
	})
	if state := c.status(t).GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("it is %s after the start", state)
	}
	again(t, "stop", func(ctx context.Context) error {
		_, err := s.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id})
		return err
	})
	again(t, "remove", func(ctx context.Context) error {
		_, err := s.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
		return err
	})
	again(t, "stop sandbox", func(ctx context.Context) error {
		_, err := s.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	again(t, "remove sandbox", func(ctx context.Context) error {
		_, err := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	if list := s.sandboxes(t, p.filter()); len(list) != 0 {
		t.Errorf("sandboxes are left: %v", list)
	}
	// The names are free.
	s.podOf(t, p.config).start(t, config)
}

// pullGivenUp pulls from a registry that never answers.
func pullGivenUp(t *testing.T, s *suite) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan struct{}, 100)
	go func() {
		var open []net.Conn
		defer func() {
			for _, conn := range open {
				conn.Close()
			}
		}()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open = append(open, conn)
			asked <- struct{}{}
		}
	}()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	ended := make(chan error, 1)
	go func() {
		_, err := s.Runtime.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: l.Addr().String() + "/never:1"}})
		ended <- err
	}()
	select {
	case <-asked:
	case err := <-ended:
		t.Fatalf("the pull ended before it asked: %v", err)
	case <-time.After(patience):
		t.Fatal("the registry is not asked")
	}
	leave()
	select {
	case err := <-ended:
		wantError(t, "a pull that was given up", err)
	case <-time.After(patience):
		t.Error("the pull goes on although its caller has left")
	}
}

// imageNames looks for the suite's image by all that it can be called.
func imageNames(t *testing.T, s *suite) {
	image := s.image(t, s.Image)
	names := append(append([]string{image.GetId()}, image.GetRepoTags()...), image.GetRepoDigests()...)
	// Without a tag it is "latest", which is another image, or none.
	if untagged, tagged := strings.CutSuffix(s.Image, ":1"); tagged {
		if got := s.image(t, untagged); got != nil {
			t.Errorf("%s is %v, want none", untagged, got.GetRepoTags())
		}
	}
	for _, name := range names {
		r, err := s.Runtime.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: name}}})
		if err != nil {
			t.Fatal(err)
		}
		if l := r.GetImages(); len(l) != 1 || l[0].GetId() != image.GetId() {
			t.Errorf("%s: images are %v", name, l)
		}
	}
	r, err := s.Runtime.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "test.local/no/such:image"}}})
	if err != nil || len(r.GetImages()) != 0 {
		t.Errorf("an image that is not there: %v, %v", r.GetImages(), err)
	}
}
