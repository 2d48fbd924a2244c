package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cgroup"
	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/sys"
)

// podsOf returns the handler that something was made with, if it has something
// of its own for each pod.
func (e *Engine) podsOf(c config.Handler) (handler.Pods, bool, error) {
	if c.Name == "" || c.Kind() != config.Shim {
		return nil, false, nil
	}
	h, err := e.handlerOf(c)
	if err != nil {
		return nil, false, err
	}
	pods, ok := h.(handler.Pods)
	return pods, ok, nil
}

// podProcesses are what the supervisor knows the processes by without which the
// sandbox is not ready, with what is lost when they end.
func (r *sandboxRecord) podProcesses() map[string]string {
	of := map[string]string{}
	if r.Pause {
		of[r.ID] = "the pause process ended, and with it the pod's pid namespace"
	}
	if r.Runtime.Name != "" && r.Runtime.Kind() == config.Shim {
		of[handler.PodProcess(r.ID)] = "the pod's shim ended"
	}
	return of
}

// runPodOfHandler makes what the handler has for each pod.
func (e *Engine) runPodOfHandler(ctx context.Context, s *sandbox) error {
	rec := s.record()
	pods, ok, err := e.podsOf(rec.Runtime)
	if err != nil || !ok {
		return err
	}
	if err := e.cfg.Cgroups.Group(pauseCgroup(&rec)).Create(); err != nil {
		return err
	}
	p := e.podForHandler(&rec)
	p.Spec, p.Annotations = e.podSpec(&rec), podAnnotations(&rec)
	maps.Copy(p.Annotations, config.Select(rec.config().Annotations, rec.Runtime.PodAnnotations))
	_, err = pods.RunPod(ctx, p)
	return err
}

// removePodOfHandler ends it.
func (e *Engine) removePodOfHandler(ctx context.Context, r *sandboxRecord) error {
	pods, ok, err := e.podsOf(r.Runtime)
	if err != nil || !ok {
		return err
	}
	if err := pods.RemovePod(ctx, e.podForHandler(r)); err != nil {
		return err
	}
	return e.removeCgroup(ctx, pauseCgroup(r))
}

func (e *Engine) podForHandler(r *sandboxRecord) handler.Pod {
	return handler.Pod{ID: r.ID, Dir: e.sandboxRecords.Path(r.ID)}
}

// podSpec describes the sandbox container of a runtime that wants one: a program
// that does nothing, in the pod's namespaces.
func (e *Engine) podSpec(r *sandboxRecord) *specs.Spec {
	const nobody = 65535
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Args: []string{"/pause"}, Cwd: "/", Env: []string{"PATH=/"}, NoNewPrivileges: true,
			User: specs.User{UID: nobody, GID: nobody}, OOMScoreAdj: new(-998),
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: pauseCgroup(r),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
		},
	}
	join := func(kind specs.LinuxNamespaceType, path string) {
		if path != "" {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	join(specs.NetworkNamespace, e.netnsPath(r))
	join(specs.IPCNamespace, e.ipcPath(r))
	if !r.hostNetwork() {
		join(specs.UTSNamespace, e.namespacePath(r.ID, sys.UTSNamespace))
		s.Hostname = r.Hostname
	}
	if !r.hostIPC() {
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: "/dev/shm", Type: "bind", Source: e.shmPath(r), Options: []string{"rbind", "ro"},
		})
	}
	return s
}

// The annotations by which containerd's CRI tells runtimes what is what, and
// which shims therefore look for.
const (
	annotate      = "io.kubernetes.cri."
	containerType = annotate + "container-type"
)

// podAnnotations are those of the sandbox container.
func podAnnotations(r *sandboxRecord) map[string]string {
	m := r.config().GetMetadata()
	a := map[string]string{
		containerType: "sandbox", annotate + "sandbox-id": r.ID,
		annotate + "sandbox-name": m.GetName(), annotate + "sandbox-namespace": m.GetNamespace(), annotate + "sandbox-uid": m.GetUid(),
	}
	if dir := r.config().GetLogDirectory(); dir != "" {
		a[annotate+"sandbox-log-directory"] = dir
	}
	// How large a virtual machine has to be.
	limits := r.config().GetLinux().GetResources()
	for key, value := range map[string]int64{
		"sandbox-cpu-period": limits.GetCpuPeriod(), "sandbox-cpu-quota": limits.GetCpuQuota(),
		"sandbox-cpu-shares": limits.GetCpuShares(), "sandbox-memory": limits.GetMemoryLimitInBytes(),
	} {
		if value != 0 {
			a[annotate+key] = strconv.FormatInt(value, 10)
		}
	}
	return a
}

// containerAnnotations are those of a container in it.
func containerAnnotations(r *sandboxRecord, c *runtimeapi.ContainerConfig) map[string]string {
	a := podAnnotations(r)
	a[containerType] = "container"
	a[annotate+"container-name"] = c.GetMetadata().GetName()
	a[annotate+"image-name"] = c.GetImage().GetImage()
	return a
}

// endForHandler tells the handler that a container's process has ended, and
// asks it what it knows of that: whether the container ran out of memory.
func (e *Engine) endForHandler(r *containerRecord) (oom bool, err error) {
	pods, ok, err := e.podsOf(r.Runtime)
	if err != nil || !ok {
		return false, err
	}
	ctx, cancel := context.WithTimeout(e.life, leftoverTimeout)
	defer cancel()
	c := e.handled(r)
	return pods.OOMKilled(c), pods.Ended(ctx, c)
}

// killByHandler kills a container whose processes are in no cgroup of the
// host's, maybe.
func (e *Engine) killByHandler(ctx context.Context, r *containerRecord) error {
	pods, ok, err := e.podsOf(r.Runtime)
	if err != nil || !ok {
		return err
	}
	if err := pods.Signal(ctx, e.handled(r), r.ID, 9); err != nil && !isGone(err) {
		return fmt.Errorf("kill: %w", err)
	}
	return nil
}

// updateByHandler changes limits that are not those of the cgroup alone.
func (e *Engine) updateByHandler(ctx context.Context, r *containerRecord, limits *specs.LinuxResources) error {
	pods, ok, err := e.podsOf(r.Runtime)
	if err != nil || !ok || r.Phase != containerRunning {
		return err
	}
	c := e.handled(r)
	c.Resources = limits
	return pods.Update(ctx, c)
}

// hostPid is the container's first process as this host knows it, 0 if it is
// somewhere else: in a virtual machine.
func (e *Engine) hostPid(r *containerRecord) int {
	pods, ok, err := e.podsOf(r.Runtime)
	if err != nil || !ok {
		return r.Pid
	}
	pid := pods.Pid(e.handled(r))
	members, err := e.cfg.Cgroups.Group(r.Cgroup).Procs()
	if err != nil || !slices.Contains(members, pid) {
		return 0
	}
	return pid
}

// usageOf reads what a container uses: from its cgroup, or, if its processes are
// somewhere else, from its handler, as far as that knows.
func (e *Engine) usageOf(r *containerRecord, g *cgroup.Group) (cgroup.Stats, error) {
	s, err := g.Stats()
	if err != nil || r.Phase != containerRunning {
		return s, err
	}
	pods, ok, err := e.podsOf(r.Runtime)
	if err != nil || !ok || e.hostPid(r) != 0 {
		return s, err
	}
	ctx, cancel := context.WithTimeout(e.life, statsTimeout)
	defer cancel()
	if theirs, err := pods.Stats(ctx, e.handled(r)); err == nil {
		return theirs, nil
	}
	return s, nil
}

// statsTimeout bounds a handler's answer.
const statsTimeout = 5 * time.Second
