package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/test/host"
	"podstead/test/node"
	"podstead/test/peer"
)

// side is one of the runtimes that are compared, and its figures.
type side struct {
	name    string
	runtime *remote.Runtime
	image   string
	logs    string       // directory for logs of containers
	pids    func() []int // all processes that are the runtime's own
	stop    func()
	mu      sync.Mutex
	pods    int // made so far

	took                    map[step][]time.Duration
	burst                   time.Duration
	memoryEmpty, memoryFull int64 // bytes
	processes               int   // with all pods of the burst
}

// step is something that is timed.
type step string

const (
	runSandbox      step = "RunPodSandbox"
	createContainer step = "CreateContainer"
	startContainer  step = "StartContainer"
	podUp           step = "pod up (the three)"
	execTrue        step = "ExecSync `true`"
	podDown         step = "pod down (stop, remove)"
)

// startOurs starts "podstead cri", or "podstead node", which is the agent, too.
func startOurs(ctx context.Context, program, dir, verb string, args ...string) (*side, error) {
	n, err := node.Start(ctx, program, dir, verb, args...)
	if err != nil {
		return nil, err
	}
	r, err := remote.New(n.Endpoint())
	if err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return &side{name: "Podstead", runtime: r, logs: dir, pids: n.Pids, stop: func() {
		r.Close()
		if err := n.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stop podstead:", err)
		}
	}}, nil
}

func startContainerd(ctx context.Context, dir, pause string) (*side, error) {
	c, err := peer.StartContainerd(ctx, dir, pause)
	if err != nil {
		return nil, err
	}
	r, err := remote.New(c.Endpoint)
	if err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return &side{
		name: "containerd " + c.Version + " + runc", runtime: r, logs: dir,
		pids: func() []int { return append(append(c.Shims(), c.Pid()), node.Processes("/pause", "")...) },
		stop: func() {
			r.Close()
			if err := c.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "bench: stop containerd:", err)
			}
		},
	}, nil
}

func (s *side) pull(ctx context.Context, image string) error {
	s.image = image
	_, err := s.runtime.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return err
}

// pod is one pod with one container.
type pod struct{ sandbox, container string }

// start brings up a pod and times it.
func (s *side) start(ctx context.Context) (pod, map[step]time.Duration, error) {
	s.mu.Lock()
	s.pods++
	name := fmt.Sprintf("bench-%d", s.pods)
	s.mu.Unlock()
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Hostname:     name,
		LogDirectory: filepath.Join(s.logs, "logs", name),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    host.Cgroup() + "/" + name + "-" + strings.ToLower(s.name[:3]),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces, Seccomp: runtimeDefault()},
		},
	}
	container := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
		Image:    &runtimeapi.ImageSpec{Image: s.image},
		Command:  []string{"sleep", "1000000"},
		LogPath:  "c.log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces, Seccomp: runtimeDefault()},
		},
	}
	var p pod
	took := map[step]time.Duration{}
	err := timed(took, runSandbox, func() error {
		r, err := s.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
		p.sandbox = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return p, nil, err
	}
	err = timed(took, createContainer, func() error {
		r, err := s.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: container, SandboxConfig: sandbox})
		p.container = r.GetContainerId()
		return err
	})
	if err != nil {
		return p, nil, err
	}
	err = timed(took, startContainer, func() error {
		_, err := s.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container})
		return err
	})
	took[podUp] = took[runSandbox] + took[createContainer] + took[startContainer]
	return p, took, err
}

func runtimeDefault() *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}

// end takes down a pod.
func (s *side) end(ctx context.Context, p pod) error {
	_, err := s.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container})
	if err == nil {
		_, err = s.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandbox})
	}
	if err == nil {
		_, err = s.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
	}
	return err
}

// round times the life of one pod.
func (s *side) round(ctx context.Context) (map[step]time.Duration, error) {
	p, took, err := s.start(ctx)
	if err != nil {
		return nil, err
	}
	err = timed(took, execTrue, func() error {
		r, err := s.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: 60})
		if err == nil && r.GetExitCode() != 0 {
			err = fmt.Errorf("exit code %d: %s", r.GetExitCode(), r.GetStderr())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return took, timed(took, podDown, func() error { return s.end(ctx, p) })
}

// timed records how long f took, and adds to its error what it was.
func timed(took map[step]time.Duration, what step, f func() error) error {
	start := time.Now()
	err := f()
	took[what] = time.Since(start)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// up starts n pods, some at once.
func (s *side) up(ctx context.Context, n, atOnce int) ([]pod, error) {
	pods := make([]pod, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range pods {
		group.Go(func() (err error) {
			pods[i], _, err = s.start(ctx)
			return err
		})
	}
	return pods, group.Wait()
}

func (s *side) down(ctx context.Context, pods []pod, atOnce int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, p := range pods {
		group.Go(func() error { return s.end(ctx, p) })
	}
	return group.Wait()
}

func (s *side) add(took map[step]time.Duration) {
	if s.took == nil {
		s.took = map[step][]time.Duration{}
	}
	for what, d := range took {
		s.took[what] = append(s.took[what], d)
	}
}

// settle lets a runtime finish what it does after it has answered, before its
// memory is measured.
func (s *side) settle() { time.Sleep(3 * time.Second) }

// memory is the proportional set size of all own processes: shared pages count
// by the part of each process that shares them.
func (s *side) memory() int64 {
	var sum int64
	for _, pid := range s.pids() {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // ended meanwhile
		}
		for line := range strings.Lines(string(rollup)) {
			var kib int64
			if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
				sum += kib << 10
			}
		}
	}
	return sum
}
