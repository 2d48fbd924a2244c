package engine

import (
	"context"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkPod brings a pod with one container up and down; the metrics are
// medians of each verb in microseconds.
func BenchmarkPod(b *testing.B) {
	n := newNode(b)
	ctx := context.Background()
	took := map[string][]time.Duration{}
	timed := func(verb string, f func() error) {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatalf("%s: %v", verb, err)
		}
		took[verb] = append(took[verb], time.Since(start))
	}
	for b.Loop() {
		var pod, c string
		timed("run", func() error {
			r, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.pod()})
			pod = r.GetPodSandboxId()
			return err
		})
		timed("create", func() error {
			r, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("sleep 1000", func(c *runtimeapi.ContainerConfig) {
				c.Command = []string{"/bin/sleep", "1000"}
				c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
			})})
			c = r.GetContainerId()
			return err
		})
		timed("start", func() error {
			_, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c})
			return err
		})
		timed("exec", func() error {
			_, err := n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"/bin/true"}})
			return err
		})
		timed("stop", func() error {
			_, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		})
		timed("remove", func() error {
			_, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		})
	}
	for verb, d := range took {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), verb+"-µs")
	}
}

// BenchmarkExecSync runs /bin/true in a container.
func BenchmarkExecSync(b *testing.B) {
	n := newNode(b)
	c := n.begin(n.run(n.pod()), n.script("sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"/bin/sleep", "1000"}
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
	}))
	for b.Loop() {
		if _, err := n.ExecSync(context.Background(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"/bin/true"}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStats asks for the stats and metrics of 200 containers; the metrics
// are medians of each verb in microseconds.
func BenchmarkStats(b *testing.B) {
	n := newNode(b)
	ctx := context.Background()
	for range 50 {
		pod := n.run(n.pod())
		for range 4 {
			n.begin(pod, n.script("", func(c *runtimeapi.ContainerConfig) {
				c.Command = []string{"/bin/sleep", "1000"}
				c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
			}))
		}
	}
	took := map[string][]time.Duration{}
	timed := func(verb string, f func() error) {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatalf("%s: %v", verb, err)
		}
		took[verb] = append(took[verb], time.Since(start))
	}
	for b.Loop() {
		timed("containers", func() error {
			_, err := n.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		})
		timed("pods", func() error {
			_, err := n.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		})
		timed("metrics", func() error {
			_, err := n.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return err
		})
	}
	for verb, d := range took {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), verb+"-µs")
	}
}
