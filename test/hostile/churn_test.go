package hostile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

// TestChurnUnderKills makes and removes pods while the engine is killed again
// and again, at random moments. Calls may fail then; what they made must not
// outlive the pods' removal.
func TestChurnUnderKills(t *testing.T) {
	// The supervisor waits longer before each new start: 7 take about 10 seconds.
	const kills, workers = 7, 3
	n := start(t)
	n.engine = 0
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ctx, stop := context.WithTimeout(t.Context(), bound)
	defer stop()
	var churn sync.WaitGroup
	defer churn.Wait()
	defer stop()
	cycles := make([]int, workers)
	for w := range workers {
		churn.Go(func() {
			r, err := remote.New(n.service.Endpoint())
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			for i := 0; ctx.Err() == nil; i++ {
				if n.cycle(ctx, r, fmt.Sprintf("churn-%d-%d", w, i)) == nil {
					cycles[w]++
				}
			}
		})
	}
	for range kills {
		pid := 0
		n.eventually("an engine runs", func() error {
			if pid = n.find("podstead", "node"); pid == 0 {
				return errors.New("there is none")
			}
			return nil
		})
		select {
		case <-time.After(time.Duration(random.IntN(300)) * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the kills took too long")
		}
		syscall.Kill(pid, syscall.SIGKILL)
		n.eventually("it is gone", func() error {
			if n.find("podstead", "node") == pid {
				return errors.New("it runs")
			}
			return nil
		})
	}
	stop()
	churn.Wait()
	t.Logf("undisturbed cycles per worker: %v", cycles)
	n.eventually("all pods can be removed", func() error {
		list, err := n.rt.ListPodSandbox(n.ctx(), &runtimeapi.ListPodSandboxRequest{})
		for _, s := range list.GetItems() {
			_, e := n.rt.RemovePodSandbox(n.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()})
			err = errors.Join(err, e)
		}
		return err
	})
	containers, err := n.rt.ListContainers(n.ctx(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(containers.GetContainers()) > 0 {
		t.Errorf("containers without a pod: %v, %v", containers, err)
	}
}

// cycle is the life of a pod.
func (n *node) cycle(ctx context.Context, r *remote.Runtime, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "churn", Uid: name},
		LogDirectory: n.service.State + "/pod-logs/" + name,
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 0}},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: n.cgroup() + "/" + name},
	}
	p, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return err
	}
	c, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.GetPodSandboxId(), SandboxConfig: sandbox, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: spec(busybox), LogPath: "main.log",
		Command: []string{"sh", "-c", "echo begin; sleep 1000 & wait"},
	}})
	if err == nil {
		_, err = r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()})
	}
	if err == nil {
		_, err = r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.GetContainerId(), Cmd: []string{"true"}, Timeout: 10})
	}
	if err == nil {
		_, err = r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.GetContainerId()})
	}
	if err == nil {
		_, err = r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.GetContainerId()})
	}
	_, e := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetPodSandboxId()})
	return errors.Join(err, e)
}
