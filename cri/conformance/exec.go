package conformance

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var execTests = []test{
	{"output and exit code", "ExecSync ExecSyncRequest.{container_id,cmd} ExecSyncResponse.*", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		r, err := c.execSync(t, "echo out; echo err >&2; exit 3", int64(patience.Seconds()))
		if err != nil {
			t.Fatal(err)
		}
		if string(r.GetStdout()) != "out\n" || string(r.GetStderr()) != "err\n" || r.GetExitCode() != 3 {
			t.Errorf("stdout %q, stderr %q, exit code %d", r.GetStdout(), r.GetStderr(), r.GetExitCode())
		}
	}},
	{"as the container: user, environment, directory, limits", "ExecSync", execAsContainer},
	{"empty input", "ExecSync", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		if got := c.exec(t, "cat"); got != "" {
			t.Errorf("output is %q", got)
		}
	}},
	{"timeout kills the process", "ExecSync ExecSyncRequest.timeout", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		start := time.Now()
		_, err := c.execSync(t, "exec sleep 4444", 1)
		wantCode(t, "exec", err, codes.DeadlineExceeded)
		if took := time.Since(start); took > patience {
			t.Errorf("it took %v", took)
		}
		eventually(t, "the process is gone", func() bool {
			return c.exec(t, "sh", "-c", "ps | grep -c '[s]leep 4444' || true") == "0"
		})
	}},
	{"inherited output does not hang", "ExecSync", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		r, err := c.execSync(t, "sleep 1000 & echo started", int64(patience.Seconds()))
		if err != nil || string(r.GetStdout()) != "started\n" {
			t.Errorf("output is %q, error %v", r.GetStdout(), err)
		}
	}},
	{"missing program", "ExecSync", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		r, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"/no/such/program"}})
		if err == nil && r.GetExitCode() != 127 && r.GetExitCode() != 126 {
			t.Errorf("exit code is %d, want an error, or what a shell returns", r.GetExitCode())
		}
	}},
	{"not running", "ExecSync", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "true")
		c.exited(t)
		_, err := c.execSync(t, "true", 1)
		wantError(t, "exec in an exited container", err)
		_, err = s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "no-such-container", Cmd: []string{"true"}})
		wantCode(t, "exec in an unknown container", err, codes.NotFound)
	}},
	{"much output", "ExecSync", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		r, err := c.execSync(t, "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2", int64(patience.Seconds()))
		if err != nil {
			t.Fatal(err)
		}
		if len(r.GetStdout()) != 3000000 || len(r.GetStderr()) != 2000000 || bytes.ContainsFunc(r.GetStdout(), func(r rune) bool { return r != 0 }) {
			t.Errorf("%d bytes of stdout, %d of stderr", len(r.GetStdout()), len(r.GetStderr()))
		}
	}},
	{"too much output is cut, without an error", "ExecSyncResponse.stdout", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		r, err := c.execSync(t, "head -c 20000000 /dev/zero; exit 4", int64(patience.Seconds()))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(r.GetStdout()); n < 15<<20 || n > 16<<20 || r.GetExitCode() != 4 {
			t.Errorf("%d bytes of stdout, exit code %d", n, r.GetExitCode())
		}
	}},
}

func (c *container) execSync(t *testing.T, script string, timeout int64) (*runtimeapi.ExecSyncResponse, error) {
	t.Helper()
	return c.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", script}, Timeout: timeout})
}

// execAsContainer lets the container's own process and one that is exec'd tell
// what they see.
func execAsContainer(t *testing.T, s *suite) {
	const ask = `echo $(id -u) $(id -G) $A $PWD; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/self/cgroup; for n in /proc/self/ns/*; do readlink $n; done; echo end`
	c := s.pod(t).sh(t, ask+"; sleep 1000", func(config *runtimeapi.ContainerConfig) {
		config.WorkingDir = "/tmp"
		config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}}
		config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		config.Linux.SecurityContext.NoNewPrivs = true
		config.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	})
	eventually(t, "its log ends", func() bool { return strings.HasSuffix(c.log(t), "end\n") })
	if own, execed := c.log(t), c.exec(t, "sh", "-c", ask)+"\n"; own != execed {
		t.Errorf("the container's own process sees\n%s\nan exec'd one\n%s", own, execed)
	}
}
