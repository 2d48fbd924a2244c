package restart

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/test/peer"
)

var kills = flag.Int("kills", 2, "kill the node on Docker so `MANY` times in the middle of a pod's life")

// cniBridge is what the plugins' configuration calls their bridge.
const cniBridge = "dockercni0"

// plugins configures the usual CNI plugins, for both address families, and
// returns the arguments for the node.
func plugins(t *testing.T) (args []string) {
	t.Helper()
	const bin = "/usr/lib/cni"
	if _, err := os.Stat(bin + "/bridge"); err != nil {
		t.Skip("needs CNI plugins: ", err)
	}
	conf, leases := t.TempDir(), t.TempDir()
	err := os.WriteFile(filepath.Join(conf, "10-net.conflist"), fmt.Appendf(nil, `{"cniVersion": "0.4.0", "name": "net", "plugins": [
  {"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": %q,
    "ranges": [[{"subnet": "10.91.0.0/16"}], [{"subnet": "fd00:91::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`, cniBridge, leases), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := peer.RemoveLink(cniBridge); err != nil {
			t.Error(err)
		}
		left, _ := filepath.Glob(leases + "/net/*:*")
		v4, _ := filepath.Glob(leases + "/net/10.91.*")
		if left = append(left, v4...); len(left) > 0 && !t.Failed() {
			t.Errorf("addresses are still leased: %v", left)
		}
	})
	return []string{"--docker-network", "cni", "--cni-conf-dir", conf, "--cni-bin-dir", bin}
}

// again kills the node and starts it again; meanwhile what is done between.
func (w *world) again(meanwhile func()) {
	w.Helper()
	w.node.Kill()
	if meanwhile != nil {
		meanwhile()
	}
	if err := w.node.Again(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// TestKilledOnDocker kills the node in the middle of its work, which it then
// finds again: nothing is lost of logs, exits and events, and nothing left.
func TestKilledOnDocker(t *testing.T) {
	clean(t)
	args := plugins(t)
	w, _ := newDockerWorld(t, nil, args...)
	w.run()
	t.Cleanup(w.remove)
	counting := w.start("counter", counter)
	mortal := w.start("mortal", "while ! test -e /go; do sleep 0.01; done; echo bye; exit 7")
	echo := w.start("echo", "while read line; do echo got $line; done")
	before := w.podStatus(w.pod)
	if len(before.Network.AdditionalIps) != 1 || !strings.HasPrefix(before.Network.Ip, "10.91.") || !strings.HasPrefix(before.Network.AdditionalIps[0].Ip, "fd00:91:") {
		t.Fatalf("the pod's addresses are %v", before.Network)
	}

	// Each time at another point of a pod's life.
	for i := range *kills {
		w.lifeInterrupted(i, time.Duration(i+1)*1500*time.Millisecond/time.Duration(*kills+1))
	}

	if left, _ := filepath.Glob(w.node.State + "/state/docker/mounts/*"); len(left) > 0 {
		t.Errorf("mounts for containers are left: %v", left)
	}
	w.exec(mortal, "sh", "-c", "(sleep 0.2; touch /go) > /dev/null 2>&1 &")
	w.again(func() {
		w.until("the container's process has ended", func() bool { return len(processesRunning("/go; ")) == 0 })
	})
	if s := w.status(mortal); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 7 || s.GetReason() != "Error" {
		t.Errorf("the container that ended meanwhile is %s, with %d (%s)", s.GetState(), s.GetExitCode(), s.GetReason())
	}
	if lines := w.lines("mortal"); len(lines) != 1 || lines[0] != "bye" {
		t.Errorf("its log is %q", lines)
	}
	w.wantEvent(mortal, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	if after := w.podStatus(w.pod); !proto.Equal(before, after) {
		t.Errorf("the pod's status is %v, and was %v", after, before)
	}
	w.wantEcho(echo)
	seen := len(w.lines("counter"))
	w.until("the log goes on", func() bool { return len(w.lines("counter")) > seen+10 })
	w.wantCounted("counter")
	if s := w.status(counting); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the counter is %s", s.GetState())
	}
}

func (w *world) podStatus(id string) (status *runtimeapi.PodSandboxStatus) {
	w.Helper()
	w.call(func(ctx context.Context, r *remote.Runtime) error {
		resp, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		status = resp.GetStatus()
		return err
	})
	return status
}

// lifeInterrupted kills the node while a pod lives from its beginning to its
// end, after a delay. Then the client does again whatever had no answer, as a
// kubelet does.
func (w *world) lifeInterrupted(attempt int, delay time.Duration) {
	w.Helper()
	config := proto.CloneOf(w.sandbox)
	config.Metadata.Name, config.Metadata.Attempt = "other", uint32(attempt)
	config.Linux.CgroupParent += "-other"
	config.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18000, ContainerPort: 80}}
	name := fmt.Sprint("other-", attempt)
	var pod, ctr string
	steps := []func(context.Context, *remote.Runtime) error{
		func(ctx context.Context, r *remote.Runtime) error {
			resp, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			pod = resp.GetPodSandboxId()
			return err
		},
		func(ctx context.Context, r *remote.Runtime) error {
			req := w.container(pod, name, "echo begun; cat; echo ended")
			req.Config.Mounts = []*runtimeapi.Mount{
				{HostPath: w.sandbox.LogDirectory, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
				{Image: &runtimeapi.ImageSpec{Image: w.image}, ContainerPath: "/image", Readonly: true},
			}
			resp, err := r.CreateContainer(ctx, req)
			ctr = resp.GetContainerId()
			return err
		},
		func(ctx context.Context, r *remote.Runtime) error {
			_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: ctr})
			return err
		},
		func(ctx context.Context, r *remote.Runtime) error {
			_, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"true"}, Timeout: 60})
			return err
		},
		func(ctx context.Context, r *remote.Runtime) error {
			_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: ctr})
			return err
		},
		func(ctx context.Context, r *remote.Runtime) error {
			_, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		},
		func(ctx context.Context, r *remote.Runtime) error {
			_, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		},
	}
	done := 0
	live := func() error {
		r, err := remote.New(w.node.Endpoint())
		if err != nil {
			return err
		}
		defer r.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for ; done < len(steps); done++ {
			if err := steps[done](ctx, r); err != nil {
				return fmt.Errorf("step %d: %w", done, err)
			}
		}
		return nil
	}
	var work sync.WaitGroup
	work.Go(func() { live() }) // fails, in most cases
	select {
	case <-time.After(delay): // chance, and nothing depends on it
	case <-w.Context().Done():
	}
	w.again(work.Wait)
	interrupted := done
	if err := live(); err != nil {
		w.Fatalf("killed after %v in step %d: %v\n%s", delay, interrupted, err, w.node.LogTail())
	}
	w.Logf("killed after %v in step %d", delay, interrupted)
	lines := w.lines(name)
	if len(lines) != 1 || lines[0] != "begun" {
		w.Errorf("the log of the container, killed in step %d, is %q", interrupted, lines)
	}
}

// wantEvent looks for an event of what has happened before the reader came.
func (w *world) wantEvent(id string, what runtimeapi.ContainerEventType) {
	w.Helper()
	found := errors.New("found")
	r, err := remote.New(w.node.Endpoint())
	if err != nil {
		w.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	err = r.ContainerEvents(ctx, nil, func(ev *runtimeapi.ContainerEventResponse) error {
		if ev.ContainerId == id && ev.ContainerEventType == what {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		w.Errorf("no event says that container %s is %s: %v", id, what, err)
	}
}

// wantEcho attaches to a container that answers.
func (w *world) wantEcho(id string) {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), os.Getenv(programVariable), "ctl", "--runtime-endpoint", w.node.Endpoint(), "attach", "-i", id)
	in, err := cmd.StdinPipe()
	if err != nil {
		w.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	io.WriteString(in, "a line\n")
	answer, err := bufio.NewReader(out).ReadString('\n')
	if answer != "got a line\n" {
		w.Errorf("attached, the container answers %q, %v", answer, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
}
