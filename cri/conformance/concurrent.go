package conformance

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var concurrentTests = []test{
	{"many pods at once", "RunPodSandbox CreateContainer StartContainer", func(t *testing.T, s *suite) {
		each(10, func(int) {
			c := s.pod(t).sh(t, "echo ran")
			if c.exited(t); c.log(t) != "ran\n" {
				t.Errorf("log is %q", c.log(t))
			}
		})
	}},
	{"the same pod many times at once", "RunPodSandbox", func(t *testing.T, s *suite) {
		config := s.podConfig(t)
		ids := make([]string, 8)
		each(len(ids), func(i int) {
			r, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			if err == nil {
				ids[i] = r.GetPodSandboxId()
			}
		})
		distinct := map[string]bool{}
		for _, id := range ids {
			if id != "" {
				distinct[id] = true
			}
		}
		for id := range distinct {
			s.removePod(t, id)
		}
		if len(distinct) != 1 {
			t.Errorf("%d sandboxes were made", len(distinct))
		}
	}},
	{"the same container many times at once", "CreateContainer", func(t *testing.T, s *suite) {
		p := s.pod(t)
		config := p.script("c", "sleep 1000")
		each(8, func(int) {
			s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		})
		if n := len(p.containers(t, &runtimeapi.ContainerFilter{PodSandboxId: p.id})); n != 1 {
			t.Errorf("%d containers were made", n)
		}
	}},
	{"stop and remove many times at once", "StopContainer StopPodSandbox", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "sleep 1000")
		each(8, func(i int) {
			if _, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: int64(i % 2)}); err != nil {
				t.Errorf("stop container: %v", err)
			}
		})
		each(8, func(int) {
			if _, err := s.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
				t.Errorf("stop sandbox: %v", err)
			}
		})
	}},
	{"remove many times at once", "RemoveContainer RemovePodSandbox", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "sleep 1000")
		each(4, func(int) {
			if _, err := s.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.id}); err != nil {
				t.Errorf("remove container: %v", err)
			}
		})
		each(4, func(int) {
			if _, err := s.Runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
				t.Errorf("remove sandbox: %v", err)
			}
		})
	}},
	{"many execs at once", "ExecSync", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		each(20, func(i int) {
			r, err := c.execSync(t, fmt.Sprintf("echo %d; exit %d", i, i), int64(patience.Seconds()))
			if err != nil || string(r.GetStdout()) != fmt.Sprintln(i) || r.GetExitCode() != int32(i) {
				t.Errorf("exec %d: %q, exit code %d, error %v", i, r.GetStdout(), r.GetExitCode(), err)
			}
		})
	}},
	{"a retry after a deadline", "RunPodSandbox", func(t *testing.T, s *suite) {
		config := s.podConfig(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		first, err := s.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		var id string
		eventually(t, "a retry succeeds", func() bool {
			if err == nil {
				id = first.GetPodSandboxId()
				return true
			}
			r, again := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			id = r.GetPodSandboxId()
			return again == nil
		})
		t.Cleanup(func() { s.removePod(t, id) })
		if n := len(s.sandboxes(t, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"uid": config.GetMetadata().GetUid()}})); n != 1 {
			t.Errorf("%d sandboxes were made", n)
		}
	}},
	{"one stuck container does not block another", "StopContainer", func(t *testing.T, s *suite) {
		p := s.pod(t)
		stuck := p.sh(t, ignoring)
		stuck.says(t, "ready\n")
		stopping := make(chan struct{})
		go func() {
			defer close(stopping)
			s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: stuck.id, Timeout: 100000})
		}()
		other := p.sh(t, "echo ran")
		if got := other.output(t); got != "ran\n" {
			t.Errorf("log is %q", got)
		}
		other.remove(t)
		stuck.stop(t, 0)
		<-stopping
	}},
}

// each runs f n times at once. f must not end the test by t.Fatal unless all of
// the others will end, too.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// endTests come last.
var endTests = []test{
	{"nothing is left", "", func(t *testing.T, s *suite) {
		run := map[string]string{runLabel: s.run}
		if left := s.sandboxes(t, &runtimeapi.PodSandboxFilter{LabelSelector: run}); len(left) != 0 {
			t.Errorf("%d sandboxes: %v", len(left), left)
		}
		if left := s.containers(t, &runtimeapi.ContainerFilter{LabelSelector: run}); len(left) != 0 {
			t.Errorf("%d containers: %v", len(left), left)
		}
	}},
}
