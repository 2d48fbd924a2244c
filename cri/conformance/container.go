package conformance

import (
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var containerTests = []test{
	{"lifecycle", "CreateContainer StartContainer StopContainer RemoveContainer ContainerStatus CreateContainerRequest.* " +
		"CreateContainerResponse.* StartContainerRequest.* StopContainerRequest.container_id RemoveContainerRequest.* " +
		"ContainerStatusRequest.container_id ContainerStatusResponse.status " +
		"ContainerStatus.{id,metadata,state,created_at,started_at,finished_at,exit_code} " +
		"ContainerStatus.{image,image_ref,labels,annotations,log_path} " +
		"ContainerConfig.{metadata,image,command,labels,annotations,log_path} ContainerMetadata.name ImageSpec.image", containerLifecycle},
	{"labels and annotations are kept as they are", "Container.{image,labels,annotations} ImageSpec.user_specified_image ContainerConfig.{labels,annotations,linux}", func(t *testing.T, s *suite) {
		p := s.pod(t)
		odd := map[string]string{"": "empty key", "a": "", "b": "\x01\n\t\"\\", "ünï": "cødé ☃", "long": strings.Repeat("x", 4000), "io.kubernetes.cri-o.x": "y"}
		c := p.sh(t, "sleep 1000", func(config *runtimeapi.ContainerConfig) {
			maps.Copy(config.Labels, odd)
			maps.Copy(config.Annotations, odd)
			config.Image.UserSpecifiedImage = "as/the/user:wrote"
		})
		list := p.containers(t, &runtimeapi.ContainerFilter{Id: c.id})
		if len(list) != 1 {
			t.Fatalf("%d containers are listed", len(list))
		}
		status := c.status(t)
		for what, got := range map[string]map[string]string{
			"listed labels": list[0].GetLabels(), "listed annotations": list[0].GetAnnotations(),
			"labels": status.GetLabels(), "annotations": status.GetAnnotations(),
		} {
			for k, v := range odd {
				if got[k] != v {
					t.Errorf("%s: %q is %q, want %q", what, k, got[k], v)
				}
			}
		}
		if got := list[0].GetImage(); got.GetImage() == "" || got.GetUserSpecifiedImage() != "as/the/user:wrote" {
			t.Errorf("it is listed with the image %v", got)
		}
	}},
	{"unknown id", "StopContainer RemoveContainer ContainerStatus StartContainer", func(t *testing.T, s *suite) {
		ctx, id := t.Context(), "no-such-container"
		if _, err := s.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("stop: %v", err)
		}
		if _, err := s.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("remove: %v", err)
		}
		_, err := s.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		wantCode(t, "status", err, codes.NotFound)
		_, err = s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		wantCode(t, "start", err, codes.NotFound)
	}},
	{"unknown sandbox", "CreateContainer", func(t *testing.T, s *suite) {
		p := &pod{suite: s, config: s.podConfig(t)}
		_, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: "no-such-sandbox", Config: p.script("c", "true"), SandboxConfig: p.config})
		wantCode(t, "create", err, codes.NotFound)
	}},
	{"unknown image", "CreateContainer", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "true")
		config.Image = &runtimeapi.ImageSpec{Image: "test.local/no/such:image"}
		_, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		wantCode(t, "create", err, codes.NotFound)
		if left := p.containers(t, &runtimeapi.ContainerFilter{PodSandboxId: p.id}); len(left) != 0 {
			t.Errorf("it left containers %v", left)
		}
	}},
	{"same container twice", "CreateContainer", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "sleep 1000")
		c := p.create(t, config)
		r, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if err == nil && r.GetContainerId() != c.id {
			t.Error("the second call made a second container")
		}
		if n := len(p.containers(t, &runtimeapi.ContainerFilter{PodSandboxId: p.id})); n != 1 {
			t.Errorf("%d containers are listed", n)
		}
	}},
	{"next attempt of the same container", "ContainerMetadata.attempt", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "true")
		p.start(t, config).exited(t)
		config.Metadata = &runtimeapi.ContainerMetadata{Name: "c", Attempt: 1}
		next := p.start(t, config)
		if got := next.exited(t).GetMetadata().GetAttempt(); got != 1 {
			t.Errorf("attempt is %d", got)
		}
	}},
	{"start of an exited container is refused", "StartContainer", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "true")
		c.exited(t)
		_, err := s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
		wantError(t, "start", err)
	}},
	{"start without the program tells why", "CreateContainer", startWithoutProgram},
	{"exit codes", "ContainerStatus.{exit_code,reason}", func(t *testing.T, s *suite) {
		p := s.pod(t)
		for script, want := range map[string]struct {
			code   int32
			reason string
		}{
			"exit 0":     {0, "Completed"},
			"exit 7":     {7, "Error"},
			"exit 255":   {255, "Error"},
			"kill -9 $$": {137, "Error"},
		} {
			// As pid 1 of its namespace a shell cannot kill itself; its child can.
			script := "sh -c '" + script + "'; exit $?"
			if status := p.sh(t, script).exited(t); status.GetExitCode() != want.code || status.GetReason() != want.reason {
				t.Errorf("%s: exit code %d, reason %q, want %d, %q", script, status.GetExitCode(), status.GetReason(), want.code, want.reason)
			}
		}
	}},
	{"filters are joined by and", "ListContainers ListContainersRequest.filter ListContainersResponse.containers ContainerFilter.* " +
		"ContainerStateValue.state Container.{id,pod_sandbox_id,metadata,image_ref,state,created_at}", containerFilters},
	{"removing it while it runs", "RemoveContainer", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "echo hello; sleep 1000")
		eventually(t, "the log has its line", func() bool { return c.log(t) == "hello\n" })
		c.remove(t)
		_, err := s.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		wantCode(t, "status after remove", err, codes.NotFound)
		if _, err := os.Stat(c.logFile); err != nil {
			t.Errorf("the log went with the container: %v", err)
		}
	}},
	{"removing it before it starts", "RemoveContainer", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.create(t, p.script("c", "sleep 1000"))
		c.remove(t)
		if left := p.containers(t, &runtimeapi.ContainerFilter{PodSandboxId: p.id}); len(left) != 0 {
			t.Errorf("still listed: %v", left)
		}
	}},
	{"stopping it before it starts", "StopContainer", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.create(t, p.script("c", "sleep 1000"))
		if _, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 1}); err != nil {
			t.Fatalf("stop: %v", err)
		}
		if state := c.status(t).GetState(); state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Error("it is running")
		}
	}},
}

func containerLifecycle(t *testing.T, s *suite) {
	p := s.pod(t)
	before := time.Now().Add(-time.Second).UnixNano()
	config := p.script("c", "sleep 1000")
	c := p.create(t, config)
	created := c.status(t)
	if created.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || created.GetStartedAt() != 0 || created.GetFinishedAt() != 0 {
		t.Errorf("after create: state %s, started at %d, finished at %d", created.GetState(), created.GetStartedAt(), created.GetFinishedAt())
	}
	if at := created.GetCreatedAt(); at < before || at > time.Now().UnixNano() {
		t.Errorf("created at %v", time.Unix(0, at))
	}
	if created.GetImage().GetImage() == "" || created.GetImageRef() == "" || created.GetMetadata().GetName() != "c" || created.GetLogPath() != c.logFile {
		t.Errorf("image %v, image ref %q, metadata %v, log path %q", created.GetImage(), created.GetImageRef(), created.GetMetadata(), created.GetLogPath())
	}
	if !maps.Equal(created.GetLabels(), config.GetLabels()) || !maps.Equal(created.GetAnnotations(), config.GetAnnotations()) {
		t.Errorf("labels are %v, annotations %v", created.GetLabels(), created.GetAnnotations())
	}
	c.start(t)
	running := c.status(t)
	if running.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || running.GetStartedAt() < running.GetCreatedAt() {
		t.Errorf("after start: state %s, started %v after create", running.GetState(), time.Duration(running.GetStartedAt()-running.GetCreatedAt()))
	}
	for range 2 {
		if _, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id}); err != nil {
			t.Fatalf("stop: %v", err)
		}
		stopped := c.status(t)
		if stopped.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || stopped.GetFinishedAt() < stopped.GetStartedAt() || stopped.GetExitCode() != 137 {
			t.Errorf("after stop: state %s, finished %v after start, exit code %d", stopped.GetState(), time.Duration(stopped.GetFinishedAt()-stopped.GetStartedAt()), stopped.GetExitCode())
		}
		if stopped.GetStartedAt() != running.GetStartedAt() || stopped.GetCreatedAt() != created.GetCreatedAt() {
			t.Error("stop changed when it was created or started")
		}
	}
	for range 2 {
		c.remove(t)
	}
	_, err := s.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	wantCode(t, "status after remove", err, codes.NotFound)
}

func startWithoutProgram(t *testing.T, s *suite) {
	p := s.pod(t)
	config := p.script("c", "")
	config.Command = []string{"/no/such/program"}
	r, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err == nil { // to fail here already is as good
		c := &container{pod: p, id: r.GetContainerId()}
		_, err = s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
		status := c.status(t)
		if status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || status.GetExitCode() == 0 || status.GetReason() == "" || !strings.Contains(status.GetMessage(), "/no/such/program") {
			t.Errorf("after the failed start: state %s, exit code %d, reason %q, message %q, want exited with a reason and the program's name",
				status.GetState(), status.GetExitCode(), status.GetReason(), status.GetMessage())
		}
	}
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("error is %v, want one that names the program", err)
	}
}

func containerFilters(t *testing.T, s *suite) {
	p, other := s.pod(t), s.pod(t)
	a := p.sh(t, "sleep 1000")
	b := p.create(t, p.script("b", "true"))
	other.create(t, other.script("b", "true"))
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	run := map[string]string{runLabel: s.run, "container": "b"}
	for name, test := range map[string]struct {
		filter *runtimeapi.ContainerFilter
		want   int
	}{
		"by sandbox":           {&runtimeapi.ContainerFilter{PodSandboxId: p.id}, 2},
		"by sandbox and state": {&runtimeapi.ContainerFilter{PodSandboxId: p.id, State: running}, 1},
		"by labels":            {&runtimeapi.ContainerFilter{LabelSelector: run}, 2},
		"by labels and pod":    {&runtimeapi.ContainerFilter{LabelSelector: run, PodSandboxId: other.id}, 1},
		"by id":                {&runtimeapi.ContainerFilter{Id: b.id}, 1},
		"by id and state":      {&runtimeapi.ContainerFilter{Id: b.id, State: running}, 0},
		"by id and wrong pod":  {&runtimeapi.ContainerFilter{Id: a.id, PodSandboxId: other.id}, 0},
		"by unknown id":        {&runtimeapi.ContainerFilter{Id: "no-such-container"}, 0},
		"by unknown sandbox":   {&runtimeapi.ContainerFilter{PodSandboxId: "no-such-sandbox"}, 0},
	} {
		if got := p.containers(t, test.filter); len(got) != test.want {
			t.Errorf("%s: %d containers, want %d", name, len(got), test.want)
		}
	}
	for _, c := range p.containers(t, &runtimeapi.ContainerFilter{Id: a.id}) {
		if c.GetPodSandboxId() != p.id || c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || c.GetImageRef() == "" || c.GetCreatedAt() == 0 || !strings.HasPrefix(c.GetMetadata().GetName(), "c") {
			t.Errorf("listed as %v", c)
		}
	}
}

// containers lists containers.
func (s *suite) containers(t *testing.T, filter *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	t.Helper()
	r, err := s.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: filter})
	if err != nil {
		t.Fatalf("list containers: %v", err)
	}
	return r.GetContainers()
}

func (c *container) remove(t *testing.T) {
	t.Helper()
	if _, err := c.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatalf("remove container: %v", err)
	}
}
