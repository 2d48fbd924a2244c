package engine

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	testhost "podstead/test/host"
	"podstead/test/leak"
)

// impatient calls do by many callers at once, again and again, each of whom
// leaves after at most a few milliseconds, until one that waits has its answer.
func impatient(t *testing.T, do func(context.Context) error) error {
	t.Helper()
	done := make(chan struct{})
	var callers sync.WaitGroup
	for range 6 {
		callers.Go(func() {
			for range 100 {
				select {
				case <-done:
					return
				default:
				}
				ctx, leave := context.WithTimeout(context.Background(), time.Duration(rand.IntN(3000))*time.Microsecond)
				err := do(ctx)
				leave()
				switch cri.Code(err) {
				case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.AlreadyExists, codes.FailedPrecondition:
				default:
					t.Errorf("a caller who may leave got: %v", err)
					return
				}
				if err == nil {
					return
				}
			}
		})
	}
	err := do(context.Background())
	close(done)
	callers.Wait()
	return err
}

// TestImpatientCallers runs pods whose every verb is called by many callers who
// hardly wait. Each verb does its work once, whoever waits gets its result, and
// nothing stays reserved.
func TestImpatientCallers(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	n.sh(n.ready(n.begin(n.run(n.pod()), n.script(forever))), "true") // makes what is made once
	for _, s := range n.allSandboxes() {
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.id}); err != nil {
			t.Fatal(err)
		}
	}
	scope := leak.Scope{Cgroup: testhost.Cgroup(), Dirs: []string{n.cfg.StateDir, n.cfg.RunDir}}
	before := leak.Take(scope)
	config := n.pod()
	for range 5 {
		pod := n.getImpatiently("RunPodSandbox", func(ctx context.Context) (string, error) {
			r, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			return r.GetPodSandboxId(), err
		})
		script := n.script(forever)
		c := n.getImpatiently("CreateContainer", func(ctx context.Context) (string, error) {
			r, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: script})
			return r.GetContainerId(), err
		})
		if pods, containers := len(n.allSandboxes()), len(n.allContainers()); pods != 1 || containers != 1 {
			t.Fatalf("there are %d sandboxes and %d containers", pods, containers)
		}
		err := impatient(t, func(ctx context.Context) error {
			_, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c})
			return err
		})
		// Who comes after it was told to another is told that it runs.
		if st := n.status(c).State; st != runtimeapi.ContainerState_CONTAINER_RUNNING || err != nil && cri.Code(err) != codes.FailedPrecondition {
			t.Fatalf("after StartContainer (%v) it is %v", err, st)
		}
		n.ready(c) // to be asked to end
		for what, do := range map[string]func(context.Context) error{
			"StopContainer": func(ctx context.Context) error {
				_, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 100})
				return err
			},
			"StopPodSandbox": func(ctx context.Context) error {
				_, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
				return err
			},
			"RemoveContainer": func(ctx context.Context) error {
				_, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c})
				return err
			},
		} {
			if err := impatient(t, do); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		err = impatient(t, func(ctx context.Context) error {
			_, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		})
		if err != nil {
			t.Errorf("RemovePodSandbox: %v", err)
		}
	}
	scope.Settle = time.Nanosecond
	readySlot := func(left string) bool { return strings.HasPrefix(left, "network interface veth") }
	eventually(t, "nothing is left but namespaces that are kept ready", func() bool {
		return len(slices.DeleteFunc(leak.Since(before, scope), readySlot)) == 0
	})
}

// getImpatiently makes something by impatient callers and returns its ID, which
// one of them must get.
func (n *node) getImpatiently(what string, get func(context.Context) (string, error)) string {
	n.t.Helper()
	var mu sync.Mutex
	ids := map[string]int{}
	err := impatient(n.t.(*testing.T), func(ctx context.Context) error {
		id, err := get(ctx)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			ids[id]++
		}
		return err
	})
	if err != nil && cri.Code(err) != codes.AlreadyExists || len(ids) != 1 {
		n.t.Fatalf("%s: the patient caller got %v; IDs and how many got them: %v", what, err, ids)
	}
	for id := range ids {
		return id
	}
	return ""
}

// TestCreationUnderRemoval removes sandboxes while containers are created in
// them: each container is there and goes with its sandbox, or was never made.
func TestCreationUnderRemoval(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	for range 10 {
		pod := n.run(n.pod())
		var work sync.WaitGroup
		for i := range 6 {
			config := n.script(forever)
			work.Go(func() {
				time.Sleep(time.Duration(rand.IntN(10*(i+1))) * time.Millisecond) // so that they meet at all stages
				r, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
				if err == nil {
					_, err = n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId})
				}
				switch cri.Code(err) {
				case codes.OK, codes.NotFound, codes.FailedPrecondition:
				default:
					t.Errorf("create and start while the sandbox is being removed: %v", err)
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Errorf("remove: %v", err)
		}
		work.Wait()
		if pods, containers := len(n.allSandboxes()), len(n.allContainers()); pods != 0 || containers != 0 {
			t.Fatalf("%d sandboxes and %d containers are left", pods, containers)
		}
	}
}
