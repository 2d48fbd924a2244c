package hostile

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// something makes a call, often one that gets on with what there is.
func (c *caller) something() {
	slot, attempt := c.IntN(slots), uint32(c.IntN(4)/3)
	config := c.podOf(slot, attempt)
	pod := c.newest(podName(config.GetMetadata()))
	if pod == "" && c.IntN(4) > 0 {
		c.runPod(config)
		return
	}
	if pod == "" {
		pod = "no-such-sandbox"
	}
	cc := c.containerOf(config, c.IntN(containerSlots), uint32(c.IntN(4)/3))
	container := c.newest(containerName(pod, cc.GetMetadata()))
	if container == "" && c.IntN(4) > 0 {
		c.create(pod, config, cc)
		return
	}
	if container == "" {
		container = "no-such-container"
	}
	switch n := c.IntN(100); {
	case n < 4:
		c.runPod(config)
	case n < 8:
		c.stopPod(pod)
	case n < 12:
		c.removePod(pod)
	case n < 18:
		c.podStatus(pod)
	case n < 22:
		c.create(pod, config, cc)
	case n < 45:
		c.start(container)
	case n < 52:
		c.stop(container)
	case n < 58:
		c.remove(container)
	case n < 70:
		c.status(container)
	case n < 80:
		c.exec(container)
	default:
		c.other(pod, container, n)
	}
}

func (c *caller) runPod(config *runtimeapi.PodSandboxConfig) {
	name := podName(config.GetMetadata())
	c.call("run "+name, func(ctx context.Context) error {
		r, err := c.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		if err == nil {
			c.wasMade(r.GetPodSandboxId(), name, "", isMade, false)
		}
		return err
	}, codes.AlreadyExists)
}

func (c *caller) stopPod(id string) {
	c.asked(id, false)
	err := c.call("stop pod "+id, func(ctx context.Context) error {
		_, err := c.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	if err == nil {
		c.has(id, isEnded)
	}
}

func (c *caller) removePod(id string) {
	c.asked(id, true)
	err := c.call("remove pod "+id, func(ctx context.Context) error {
		_, err := c.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
	if err == nil {
		c.has(id, isGone)
	}
}

func (c *caller) podStatus(id string) {
	before := c.before(id)
	c.call("status of pod "+id, func(ctx context.Context) error {
		r, err := c.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: c.IntN(4) == 0})
		switch {
		case err == nil:
			c.found(id, before, sandboxStage(r.GetStatus().GetState()))
		case cri.IsNotFound(err):
			c.found(id, before, isGone)
		}
		return err
	}, codes.NotFound)
}

func (c *caller) create(pod string, sandbox *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) {
	name, before := containerName(pod, config.GetMetadata()), c.before(pod)
	c.call("create "+name, func(ctx context.Context) error {
		r, err := c.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: sandbox})
		if err == nil {
			c.wasMade(r.GetContainerId(), name, pod, before, config.Command[2] == scripts[2])
		}
		return err
	}, codes.AlreadyExists, codes.NotFound, codes.FailedPrecondition)
}

func (c *caller) start(id string) {
	before := c.before(id)
	err := c.call("start "+id, func(ctx context.Context) error {
		_, err := c.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	}, codes.NotFound, codes.FailedPrecondition)
	if err == nil {
		if before == isGone {
			c.found(id, before, isRunning)
		}
		c.has(id, isRunning)
	}
}

func (c *caller) stop(id string) {
	c.asked(id, false)
	timeout := int64(c.IntN(2))
	err := c.call(fmt.Sprintf("stop %s in %d s", id, timeout), func(ctx context.Context) error {
		_, err := c.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: timeout})
		return err
	})
	if err == nil {
		c.has(id, isEnded)
	}
}

func (c *caller) remove(id string) {
	c.asked(id, true)
	err := c.call("remove "+id, func(ctx context.Context) error {
		_, err := c.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	})
	if err == nil {
		c.has(id, isGone)
	}
}

func (c *caller) status(id string) {
	before := c.before(id)
	c.call("status of "+id, func(ctx context.Context) error {
		r, err := c.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: c.IntN(4) == 0})
		switch {
		case err == nil:
			c.found(id, before, containerStage(r.GetStatus().GetState()))
			c.exited(r.GetStatus())
		case cri.IsNotFound(err):
			c.found(id, before, isGone)
		}
		return err
	}, codes.NotFound)
}

func (c *caller) exec(id string) {
	before := c.before(id)
	script, code, timeout := "exit 0", int32(0), int64(20)
	switch c.IntN(3) {
	case 0:
		script, code = "echo x; exit 3", 3
	case 1:
		script, timeout = "sleep 100", 1
	}
	c.call("exec in "+id+": "+script, func(ctx context.Context) error {
		r, err := c.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: timeout})
		c.mu.Lock()
		defer c.mu.Unlock()
		// A command that a stop has killed was there, and has ended with 137.
		if err == nil && r.GetExitCode() != code && r.GetExitCode() != 137 {
			c.wrong("exec in %s: %q ended with %d", id, script, r.GetExitCode())
		}
		if err == nil && before >= isEnded {
			c.wrong("exec in %s succeeded although it was %s", id, before)
		}
		return err
	}, codes.NotFound, codes.FailedPrecondition, codes.DeadlineExceeded)
}

// other asks about things, and does what changes no stage.
func (c *caller) other(pod, container string, n int) {
	switch n % 10 {
	case 0:
		c.call("update "+container, func(ctx context.Context) error {
			_, err := c.rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: container, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: int64(64+c.IntN(64)) << 20, CpuShares: 100},
			})
			return err
		}, codes.NotFound, codes.FailedPrecondition)
	case 1:
		c.call("reopen the log of "+container, func(ctx context.Context) error {
			_, err := c.rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: container})
			return err
		}, codes.NotFound, codes.FailedPrecondition)
	case 2:
		c.call("stats of "+container, func(ctx context.Context) error {
			_, err := c.rt.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: container})
			return err
		}, codes.NotFound)
	case 3:
		c.call("stats of pod "+pod, func(ctx context.Context) error {
			_, err := c.rt.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
			return err
		}, codes.NotFound)
	case 4:
		c.call("list stats", func(ctx context.Context) error {
			_, err := c.rt.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		})
	case 5:
		c.list(pod)
	case 6:
		c.call("URL of an exec in "+container, func(ctx context.Context) error {
			_, err := c.rt.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: container, Cmd: []string{"true"}, Stdout: true})
			return err
		}, codes.NotFound, codes.FailedPrecondition)
	case 7:
		c.call("update pod "+pod, func(ctx context.Context) error {
			_, err := c.rt.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100}})
			return err
		}, codes.NotFound)
	case 8:
		c.call("verbose status", func(ctx context.Context) error {
			_, err := c.rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
			return err
		})
	case 9:
		c.call("remove an image that is not there", func(ctx context.Context) error {
			_, err := c.rt.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec("test.local/no/such:image")})
			return err
		})
	}
}

// list lists the containers of a pod, which are held to what was known.
func (c *caller) list(pod string) {
	c.call("list the containers of "+pod, func(ctx context.Context) error {
		known := map[string]stage{}
		for _, id := range c.alive() {
			known[id] = c.before(id)
		}
		r, err := c.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod}})
		for _, item := range r.GetContainers() {
			if before, ok := known[item.GetId()]; ok {
				c.found(item.GetId(), before, containerStage(item.GetState()))
			}
		}
		return err
	})
}
