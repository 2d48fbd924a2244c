package restart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/node"
	"podstead/test/peer"
)

// onDocker are the arguments of "podstead cri" for a Docker Engine.
func onDocker(endpoint string, more ...string) []string {
	return append([]string{"--backend", "docker", "--docker-endpoint", endpoint}, more...)
}

// clean makes a test fail that leaves something. It is to be called first, since
// clean-up is done in the opposite order.
func clean(t *testing.T) {
	t.Helper()
	host.Require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
}

// newDockerWorld starts a Docker Engine and a node on it.
func newDockerWorld(t *testing.T, settings map[string]any, args ...string) (*world, *peer.Docker) {
	t.Helper()
	d := peer.RunDocker(t, settings)
	w := settle(t, node.Run(t, os.Getenv(programVariable), "cri", onDocker(d.Endpoint, args...)...))
	return w, d
}

// conditions are what Status tells, "READY" for what is.
func (w *world) conditions() (conditions []string) {
	w.Helper()
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		s, err := r.Status(ctx, &runtimeapi.StatusRequest{})
		for _, c := range s.GetStatus().GetConditions() {
			state := "READY"
			if !c.Status {
				state = c.Reason + ": " + c.Message
			}
			conditions = append(conditions, state)
		}
		return err
	})
	return conditions
}

// wantGone checks that the node says that Docker is not there.
func (w *world) wantGone(endpoint string) {
	w.Helper()
	if c := w.conditions(); !strings.HasPrefix(c[0], "DockerGone: ") || !strings.Contains(c[0], endpoint) {
		w.Errorf("without Docker the conditions are %q", c)
	}
	r, err := remote.New(w.node.Endpoint())
	if err != nil {
		w.Fatal(err)
	}
	defer r.Close()
	_, listErr := r.ListPodSandbox(w.Context(), &runtimeapi.ListPodSandboxRequest{})
	_, runErr := r.RunPodSandbox(w.Context(), &runtimeapi.RunPodSandboxRequest{Config: w.sandbox})
	for _, err := range []error{listErr, runErr} {
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), endpoint) {
			w.Errorf("without Docker a call fails with %v", err)
		}
	}
}

// untilReady waits until pods can be run.
func (w *world) untilReady() {
	w.Helper()
	w.until("all is ready", func() bool { return fmt.Sprint(w.conditions()) == "[READY READY]" })
}

// TestDockerStops stops Docker with its containers, and starts it again. The
// node is started meanwhile, before Docker, as on a machine that boots.
func TestDockerStops(t *testing.T) {
	clean(t)
	w, d := newDockerWorld(t, nil)
	w.run()
	t.Cleanup(w.remove)
	id := w.start("counter", "trap 'echo 0; exit 5' TERM; "+counter)
	w.until("it counts", func() bool { return len(w.lines("counter")) > 10 })
	d.Halt()
	w.wantGone(d.Endpoint)
	if err := errors.Join(w.node.End(), w.node.Again(t.Context())); err != nil {
		t.Fatal(err)
	}
	w.wantGone(d.Endpoint)
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.untilReady()
	if s := w.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 5 {
		t.Errorf("Docker has ended the container, which is %s with %d", s.GetState(), s.GetExitCode())
	}
	if lines := w.lines("counter"); lines[len(lines)-1] != "0" {
		t.Errorf("the log ends with %q, and not with the container's last word", lines[len(lines)-1])
	}
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		s, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: w.pod})
		if s.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("the sandbox, which Docker has ended, is %s", s.GetStatus().GetState())
		}
		return err
	})
	// What a kubelet does then.
	w.remove()
	w.sandbox.Metadata.Attempt++
	w.run()
	if out := w.exec(w.start("next", "sleep 1000"), "echo", "hello"); out != "hello\n" {
		t.Errorf("exec prints %q", out)
	}
}

// TestDockerIsUpgraded stops Docker below containers that live on.
func TestDockerIsUpgraded(t *testing.T) {
	clean(t)
	w, d := newDockerWorld(t, map[string]any{"live-restore": true})
	w.run()
	t.Cleanup(w.remove)
	id := w.start("counter", counter)
	w.until("it counts", func() bool { return len(w.lines("counter")) > 10 })
	d.Halt()
	w.wantGone(d.Endpoint)
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.untilReady()
	seen := len(w.lines("counter"))
	w.until("the log goes on", func() bool { return len(w.lines("counter")) > seen+10 })
	w.wantCopied("counter", d, id)
	if out := w.exec(id, "echo", "hello"); out != "hello\n" {
		t.Errorf("exec prints %q", out)
	}
}

// wantCopied checks that a container's log is what Docker has logged, each line
// once. A Docker Engine that ends below a container loses what it has read of
// its output and not written yet.
func (w *world) wantCopied(name string, d *peer.Docker, id string) {
	w.Helper()
	ours := w.lines(name) // first, as the container goes on
	dockers, err := d.Lines(id)
	if err != nil {
		w.Fatal(err)
	}
	for i, line := range ours {
		if i >= len(dockers) || line != dockers[i] {
			w.Fatalf("line %d of %s is %q, Docker has %q", i, name, line, dockers[min(i, len(dockers)):min(i+3, len(dockers))])
		}
	}
}

// TestBadEndpoints starts the program where there is no Docker Engine that it
// could ever use.
func TestBadEndpoints(t *testing.T) {
	host.Require(t)
	for name, test := range map[string]struct {
		endpoint string
		args     []string
		want     string
	}{
		"not on this machine": {endpoint: "tcp://192.0.2.1:2375", want: `"tcp://192.0.2.1:2375": only unix:// is possible`},
		"too old":             {endpoint: fakeDocker(t, "1.39", "linux"), want: "too old"},
		"of another system":   {endpoint: fakeDocker(t, "1.44", "windows"), want: `for "windows", not linux`},
		"flag without effect": {endpoint: "unix:///x", args: []string{"--pod-cidr", "10.0.0.0/24"}, want: "--pod-cidr: has no effect"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			args := append([]string{"cri", "--state", dir + "/state", "--run", dir + "/run"}, onDocker(test.endpoint, test.args...)...)
			var said bytes.Buffer
			cmd := exec.CommandContext(t.Context(), os.Getenv(programVariable), args...)
			cmd.Stderr = &said
			if err := cmd.Run(); err == nil {
				t.Error("the program ends without an error")
			}
			if !strings.Contains(said.String(), test.want) {
				t.Errorf("the program says\n%s\nwithout %q", &said, test.want)
			}
		})
	}
}

// fakeDocker answers as a Docker Engine of some kind does, and returns its
// endpoint.
func fakeDocker(t *testing.T, version, system string) string {
	t.Helper()
	socket := t.TempDir() + "/docker.sock"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", version)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"OSType": %q}`, system)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return "unix://" + socket
}
