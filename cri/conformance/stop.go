package conformance

import (
	"context"
	"fmt"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ignoring is a script that does not end by SIGTERM.
const ignoring = "trap '' TERM; echo ready; while :; do sleep 1; done"

var stopTests = []test{
	{"by SIGTERM", "StopContainer StopContainerRequest.timeout", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
		c.says(t, "ready\n")
		c.stop(t, 60)
		if status := c.status(t); status.GetExitCode() != 3 {
			t.Errorf("exit code is %d, want that of its handler", status.GetExitCode())
		}
		if got := c.log(t); got != "ready\nbye\n" {
			t.Errorf("log is %q", got)
		}
	}},
	{"by SIGKILL at the timeout", "StopContainer StopContainerRequest.timeout", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, ignoring)
		c.says(t, "ready\n")
		c.stop(t, 1)
		if status := c.status(t); status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || status.GetExitCode() != 137 {
			t.Errorf("state is %s, exit code %d", status.GetState(), status.GetExitCode())
		}
	}},
	{"timeout 0 kills at once", "StopContainer", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
		c.says(t, "ready\n")
		c.stop(t, 0)
		if got := c.status(t).GetExitCode(); got != 137 {
			t.Errorf("exit code is %d", got)
		}
	}},
	{"by the signal that was asked for", "ContainerConfig.stop_signal ContainerStatus.stop_signal", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "trap 'exit 4' USR1; echo ready; while :; do sleep 0.1; done", func(config *runtimeapi.ContainerConfig) {
			config.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
		})
		c.says(t, "ready\n")
		c.stop(t, 60)
		if status := c.status(t); status.GetExitCode() != 4 || status.GetStopSignal() != runtimeapi.Signal_SIGNAL_SIGUSR1 {
			t.Errorf("exit code is %d, stop signal %s", status.GetExitCode(), status.GetStopSignal())
		}
	}},
	{"by a real-time signal", "ContainerConfig.stop_signal ContainerStatus.stop_signal", func(t *testing.T, s *suite) {
		for signal, number := range map[runtimeapi.Signal]int{
			runtimeapi.Signal_SIGNAL_SIGRTMIN: 34, runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3: 37, runtimeapi.Signal_SIGNAL_SIGRTMAX: 64,
		} {
			c := s.pod(t).sh(t, fmt.Sprintf("trap 'exit 4' %d; echo ready; while :; do sleep 0.1; done", number), func(config *runtimeapi.ContainerConfig) {
				config.StopSignal = signal
			})
			c.says(t, "ready\n")
			c.stop(t, 60)
			if status := c.status(t); status.GetExitCode() != 4 || status.GetStopSignal() != signal {
				t.Errorf("%s: exit code is %d, stop signal %s", signal, status.GetExitCode(), status.GetStopSignal())
			}
		}
	}},
	{"SIGTERM is reported when nothing was asked for", "ContainerStatus.stop_signal", func(t *testing.T, s *suite) {
		p := s.pod(t)
		if got := p.create(t, p.script("c", "true")).status(t).GetStopSignal(); got != runtimeapi.Signal_SIGNAL_SIGTERM {
			t.Errorf("stop signal is %s", got)
		}
	}},
	{"a shorter timeout wins", "StopContainer StopContainerRequest.timeout", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, ignoring)
		c.says(t, "ready\n")
		first := make(chan error, 1)
		go func() {
			_, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 100000})
			first <- err
		}()
		c.stop(t, 1)
		select {
		case err := <-first:
			if err != nil {
				t.Errorf("the first, patient stop: %v", err)
			}
		case <-time.After(patience):
			t.Error("the first, patient stop goes on although the container has ended")
		}
	}},
	{"a caller that leaves does not stop the stopping", "StopContainer", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, ignoring)
		c.says(t, "ready\n")
		ctx, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer leave()
		if _, err := s.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 1}); err == nil {
			t.Skip("it was stopped before the caller could leave")
		}
		c.exited(t)
	}},
	{"children die with it", "StopContainer", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		})
		watcher := p.sh(t, "sleep 1000")
		c := p.sh(t, "sleep 4343 & echo ready; sleep 1000")
		c.says(t, "ready\n")
		c.stop(t, 0)
		eventually(t, "its background process is gone", func() bool {
			return watcher.exec(t, "sh", "-c", "ps | grep -c '[s]leep 4343' || true") == "0"
		})
	}},
	{"an exited container", "StopContainer", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "exit 5")
		c.exited(t)
		c.stop(t, 10)
		if got := c.status(t).GetExitCode(); got != 5 {
			t.Errorf("stop changed the exit code to %d", got)
		}
	}},
}

func (c *container) stop(t *testing.T, timeout int64) {
	t.Helper()
	if _, err := c.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: timeout}); err != nil {
		t.Fatalf("stop: %v", err)
	}
}

// says waits until the log is what is expected.
func (c *container) says(t *testing.T, want string) {
	t.Helper()
	eventually(t, "its log is "+want, func() bool { return c.log(t) == want })
}
