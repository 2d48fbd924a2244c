package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/engine/internal/spec"
	"podstead/sys"
)

// shmOptions are those of a pod's /dev/shm; 64 MiB is what every runtime gives.
const shmOptions = "mode=1777,size=65536k"

// RunPodSandbox makes a pod's surroundings: cgroup, namespaces, network and the
// files that its containers share. Nothing of it is left if it fails.
func (e *Engine) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := spec.CheckSandbox(req.Config, e.host.spec); err != nil {
		return nil, err
	}
	h, err := e.handler(req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	if spec.HasUserNamespace(req.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()) && !h.is.Features().UserNamespaces {
		return nil, cri.Errorf(codes.InvalidArgument, "linux.security_context.namespace_options.userns_options: handler %q has no user namespaces", req.RuntimeHandler)
	}
	req = proto.CloneOf(req)
	of := fingerprintOf(req)
	id, err := e.sandboxRuns.do(ctx, e, sandboxName(req.Config.Metadata), of, runTimeout,
		func(ctx context.Context) (string, error) { return e.runSandbox(ctx, req, of, h.Handler) })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (e *Engine) runSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest, of fingerprint, h config.Handler) (id string, err error) {
	s, err := e.newSandbox(req, of, h)
	if err != nil {
		return "", err
	}
	if err := s.turn.take(ctx); err != nil {
		return "", err
	}
	defer s.turn.give()
	e.mu.Lock()
	e.sandboxes[s.id] = s
	e.mu.Unlock()
	defer func() {
		if err != nil {
			err = e.discardSandbox(ctx, s, fmt.Errorf("run pod sandbox %s: %w", s.id, err))
		}
	}()
	if err := e.labelSandbox(s); err != nil {
		return "", err
	}
	if err := e.changeSandbox(s, func(*sandboxRecord) {}); err != nil {
		return "", err
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"make cgroup", func(ctx context.Context) error { return e.makePodCgroup(ctx, s) }},
		{"make namespaces", func(ctx context.Context) error { return e.makeNamespaces(ctx, s) }},
		{"mount shared memory", func(context.Context) error { return e.mountShm(s) }},
		{"connect network", func(ctx context.Context) error { return e.connect(ctx, s) }},
		{"write files", func(context.Context) error { return e.writeSandboxFiles(s) }},
		{"set sysctls", func(context.Context) error { return e.setSysctls(s) }},
		{"start pause process", func(ctx context.Context) error { return e.startPause(ctx, s) }},
		{"handler", func(ctx context.Context) error { return e.runPodOfHandler(ctx, s) }},
	} {
		if err := traced(ctx, step.what, step.do); err != nil {
			return "", fmt.Errorf("%s: %w", step.what, err)
		}
	}
	if err := e.announceSandbox(ctx, s); err != nil {
		return "", err
	}
	e.log.Info("pod sandbox is ready", "pod", s.id, "name", req.Config.Metadata.Name, "namespace", req.Config.Metadata.Namespace)
	readyAt := s.record().ReadyAt
	e.sandboxEvent(s, eventCreated, readyAt)
	e.sandboxEvent(s, eventStarted, readyAt)
	return s.id, nil
}

func (e *Engine) recordReady(s *sandbox) error {
	return e.changeSandbox(s, func(r *sandboxRecord) { r.Phase, r.ReadyAt = sandboxReady, time.Now() })
}

func (e *Engine) newSandbox(req *runtimeapi.RunPodSandboxRequest, of fingerprint, h config.Handler) (*sandbox, error) {
	id := newID()
	parent, err := e.podCgroup(req.Config.GetLinux().GetCgroupParent(), id)
	if err != nil {
		return nil, err
	}
	rec := sandboxRecord{
		ID: id, Fingerprint: encodeFingerprint(of), Handler: req.RuntimeHandler, Runtime: h,
		Phase: sandboxCreating, CreatedAt: time.Now(), BootID: e.bootID,
		Hostname:     req.Config.Hostname,
		CgroupParent: parent,
		Pause:        req.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_POD,
	}
	rec.Config.M = req.Config
	// Who shares the host's network shares its name.
	if rec.Hostname == "" || rec.hostNetwork() {
		rec.Hostname = e.host.name
	}
	return &sandbox{id: id, turn: newTurn(), rec: rec}, nil
}

// discardSandbox undoes a creation that failed with cause. If even that fails,
// the sandbox stays, not ready, for StopPodSandbox to try again.
func (e *Engine) discardSandbox(ctx context.Context, s *sandbox, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	rec := s.record()
	if err := e.releaseSandbox(ctx, &rec); err != nil {
		err = errors.Join(err, e.changeSandbox(s, func(r *sandboxRecord) {
			r.Phase, r.Message = sandboxStopping, cause.Error()
		}))
		return errors.Join(cause, fmt.Errorf("undo: %w", err))
	}
	return errors.Join(cause, e.forgetSandbox(s))
}

// forgetSandbox removes what is left of a released sandbox: record and files.
func (e *Engine) forgetSandbox(s *sandbox) error {
	s.saving.Lock()
	err := e.sandboxRecords.Delete(s.id)
	s.gone = err == nil
	s.saving.Unlock()
	if err != nil {
		return err
	}
	e.mu.Lock()
	delete(e.sandboxes, s.id)
	e.mu.Unlock()
	rec := s.record()
	e.sandboxRuns.forget(rec.name(), s.id)
	return nil
}

// makeNamespaces makes what the pod does not share with the host. The UTS
// namespace goes with the network one: the host's network has the host's name.
func (e *Engine) makeNamespaces(ctx context.Context, s *sandbox) error {
	rec := s.record()
	if rec.userNamespace() {
		return e.makeUserNamespace(ctx, s)
	}
	dir := e.sandboxRunDir(s.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var kinds []string
	if !rec.hostNetwork() {
		made, err := e.cfg.Network.Namespace(s.id, e.netnsPath(&rec))
		if err != nil {
			return err
		}
		if !made {
			kinds = append(kinds, sys.NetNamespace)
		}
		kinds = append(kinds, sys.UTSNamespace)
	}
	if !rec.hostIPC() {
		kinds = append(kinds, sys.IPCNamespace)
	}
	if len(kinds) == 0 {
		return nil
	}
	return sys.NewNamespaces(dir, kinds, func() error {
		if !slices.Contains(kinds, sys.UTSNamespace) {
			return nil
		}
		return os.NewSyscallError("sethostname", unix.Sethostname([]byte(rec.Hostname)))
	})
}

func (e *Engine) mountShm(s *sandbox) error {
	rec := s.record()
	if rec.hostIPC() {
		return nil
	}
	dir := filepath.Join(e.sandboxRunDir(s.id), "shm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	uid, gid := rec.mappedRoot()
	options := fmt.Sprintf("%s,uid=%d,gid=%d", shmOptions, uid, gid)
	if label := rec.Labels.Mount; label != "" {
		options += fmt.Sprintf(",context=%q", label) // categories have commas
	}
	err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options)
	return os.NewSyscallError("mount", err)
}

// shmPath is what containers get as /dev/shm.
func (e *Engine) shmPath(r *sandboxRecord) string {
	if r.hostIPC() {
		return "/dev/shm"
	}
	return filepath.Join(e.sandboxRunDir(r.ID), "shm")
}

func (e *Engine) connect(ctx context.Context, s *sandbox) error {
	rec := s.record()
	if rec.hostNetwork() {
		return nil
	}
	result, err := e.cfg.Network.Setup(ctx, e.networkPod(&rec, e.netnsPath(&rec)))
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.rec.IPs = result.IPs
	s.mu.Unlock()
	return nil
}

// startPause runs the pid-1 process of a pid namespace that the pod's
// containers share. Other pods have no process of ours.
func (e *Engine) startPause(ctx context.Context, s *sandbox) error {
	rec := s.record()
	if !rec.Pause || rec.userNamespace() {
		return nil // the user namespace's maker has stayed for it
	}
	_, err := e.pause(ctx, s, &specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
	}}})
	return err
}

// pause runs a pause process in the pod's cgroup, whatever the pod's handler is.
func (e *Engine) pause(ctx context.Context, s *sandbox, sp *specs.Spec) (pid int, err error) {
	rec := s.record()
	g := e.cfg.Cgroups.Group(pauseCgroup(&rec))
	if err := g.Create(); err != nil {
		return 0, err
	}
	sp.Version = specs.Version
	sp.Process = &specs.Process{Cwd: "/", NoNewPrivileges: true, SelinuxLabel: rec.Labels.Process}
	sp.Linux.MountLabel = rec.Labels.Mount
	p, err := e.builtin.Pause(ctx, handler.Container{
		ID: s.id, Bundle: e.sandboxRunDir(s.id), CgroupJoin: g.JoinFiles(), CgroupDir: g.Dir(), Spec: sp,
	})
	if err != nil {
		return 0, err
	}
	if err := e.settle(pauseCgroup(&rec)); err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.rec.PausePid = p.Pid
	s.mu.Unlock()
	return p.Pid, nil
}
