package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/handler"
	"podstead/engine/internal/selinux"
	"podstead/engine/internal/spec"
	"podstead/image"
	"podstead/oci/criu"
	"podstead/oci/launch"
	"podstead/supervisor"
	"podstead/sys"
)

// CreateContainer prepares a container up to its execve: StartContainer only
// releases it. Nothing of it is left if it fails.
func (e *Engine) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	s, err := e.mustSandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	id, err := e.create(ctx, s, proto.CloneOf(req.Config), "")
	if err != nil {
		return nil, cri.LeadWithReason(err)
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// create makes a container, once for each name and attempt; from is the archive
// to restore it from, if that is not what the image names.
func (e *Engine) create(ctx context.Context, s *sandbox, config *runtimeapi.ContainerConfig, from string) (string, error) {
	rec := s.record()
	if err := spec.CheckContainer(config, rec.config()); err != nil {
		return "", err
	}
	if rec.Phase != sandboxReady {
		return "", cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready (%s)", s.id, rec.Phase)
	}
	of := fingerprintOf(config)
	return e.containerRuns.do(ctx, e, containerName(s.id, config.Metadata), of, createTimeout,
		func(ctx context.Context) (string, error) { return e.createContainer(ctx, s, config, of, from) })
}

// creation is a container on its way into being: what the steps of
// createContainer find out and hand on.
type creation struct {
	c       *container
	config  *runtimeapi.ContainerConfig
	sandbox sandboxRecord
	image   image.Image
	lower   []string // layers of the image, top first
	user    spec.User
	spec    *specs.Spec
	from    string  // archive to restore it from, if not the image
	source  *source // checkpoint to restore it from, or nil
	told    bool    // plugins were asked about it
	admit   func()  // lets new plugins in, see askPlugins; nil before
}

func (e *Engine) createContainer(ctx context.Context, s *sandbox, config *runtimeapi.ContainerConfig, of fingerprint, from string) (id string, err error) {
	k := &creation{config: config, from: from}
	if k.c, err = e.registerContainer(s, config, of); err != nil {
		return "", err
	}
	k.sandbox = s.record()
	c := k.c
	if err := c.turn.take(ctx); err != nil {
		return "", err
	}
	defer c.turn.give()
	defer func() {
		if err != nil {
			err = e.discardContainer(ctx, c, fmt.Errorf("create container %s: %w", c.id, err))
			e.undoForPlugins(ctx, k)
		}
		if k.admit != nil {
			k.admit()
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context, *creation) error
	}{
		{"checkpoint", e.takeCheckpoint},
		{"find image", e.holdImage},
		{"record", e.recordIntent},
		{"restore files", e.restoreFiles},
		{"user", e.resolveUser},
		{"label", e.labelContainer},
		{"specification", e.buildSpec},
		{"cgroup", e.makeContainerCgroup},
		{"log", e.prepareLog},
		{"launch", e.launchContainer},
	} {
		if err := traced(ctx, step.what, func(ctx context.Context) error { return step.do(ctx, k) }); err != nil {
			return "", fmt.Errorf("%s: %w", step.what, err)
		}
	}
	e.relay(ctx, "PostCreateContainer", c, e.plugins.PostCreate)
	e.log.Info("container is created", "container", c.id, "pod", s.id, "name", config.Metadata.Name, "image", k.image.ID)
	e.containerEvent(c, eventCreated, c.record().PreparedAt)
	return c.id, nil
}

// registerContainer enters a new container into the engine, if its sandbox is
// ready at that moment: a sandbox that is being stopped finds all containers
// that there will ever be.
func (e *Engine) registerContainer(s *sandbox, config *runtimeapi.ContainerConfig, of fingerprint) (*container, error) {
	id := newID()
	c := newContainer(containerRecord{
		ID: id, SandboxID: s.id, Fingerprint: encodeFingerprint(of), BootID: e.bootID,
		Phase: containerCreating, CreatedAt: time.Now(),
	})
	c.rec.Config.M = config
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec.Phase != sandboxReady {
		return nil, cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready (%s)", s.id, s.rec.Phase)
	}
	c.rec.Runtime = s.rec.Runtime
	c.rec.Cgroup = memberCgroup(s.rec.CgroupParent, id)
	e.mu.Lock()
	e.containers[id] = c
	e.mu.Unlock()
	return c, nil
}

// discardContainer undoes a creation that failed with cause. If even that
// fails, the container stays, exited, for RemoveContainer to try again.
func (e *Engine) discardContainer(ctx context.Context, c *container, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	rec := c.record()
	err := e.releaseContainer(ctx, &rec)
	if err == nil {
		e.poststop(ctx, c)
		err = e.forgetContainer(c)
	}
	if err != nil {
		e.recordExit(c, exit{code: exitUnknown, reason: reasonError, message: cause.Error(), at: time.Now()})
		return errors.Join(cause, fmt.Errorf("undo: %w", err))
	}
	return cause
}

// holdImage finds the image and keeps its layers for this container.
func (e *Engine) holdImage(ctx context.Context, k *creation) error {
	var img image.Image
	var err error
	if k.source != nil {
		img, err = e.baseImage(k)
	} else {
		img, err = e.cfg.Images.Get(k.config.Image.Image)
	}
	if errors.Is(err, image.ErrNotFound) {
		return cri.Errorf(codes.NotFound, "image %q is not present", k.config.Image.Image)
	}
	if err != nil {
		return err
	}
	k.image = img
	k.lower, err = e.cfg.Images.Hold(ctx, img.ID, k.c.id)
	return err
}

// recordIntent writes the record before anything is made that only it knows of.
func (e *Engine) recordIntent(_ context.Context, k *creation) error {
	img := k.image
	logPath, err := spec.LogPath(k.sandbox.config().LogDirectory, k.config.LogPath)
	if err != nil {
		return err
	}
	project := e.takeProject()
	signal, signalName := spec.StopSignal(k.config, img.Config.Config.StopSignal)
	err = e.changeContainer(k.c, func(r *containerRecord) {
		r.ImageID, r.ImageRef, r.ImageName = img.ID, imageRef(img), imageName(img, k.config.Image)
		r.LogPath = logPath
		r.FromCheckpoint, r.Project = k.source != nil, project
		r.StopSignal, r.StopSignalName = int(signal), signalName
		r.Resources.M = k.config.GetLinux().GetResources()
	})
	if err != nil {
		return err
	}
	rec := k.c.record()
	return e.makeLayer(&rec)
}

func (e *Engine) resolveUser(_ context.Context, k *creation) error {
	accounts, err := e.accounts.get(k.image.ID, k.lower)
	if err != nil {
		return err
	}
	sc := k.config.GetLinux().GetSecurityContext()
	k.user, err = spec.ResolveUser(sc, k.image.Config.Config.User, accounts)
	return err
}

func (e *Engine) buildSpec(ctx context.Context, k *creation) error {
	config, err := e.prepareMounts(ctx, k)
	if err != nil {
		return err
	}
	sc := k.config.GetLinux().GetSecurityContext()
	devices, access, err := lookUpDevices(k.config.Devices, sc.GetPrivileged())
	if err != nil {
		return err
	}
	ns, err := e.containerNamespaces(k)
	if err != nil {
		return err
	}
	wanted, err := spec.SeccompWanted(sc)
	if err != nil {
		return err
	}
	h, err := e.handlerOf(k.sandbox.Runtime)
	if err != nil {
		return err
	}
	host := e.host.spec
	host.SELinux = e.usesSELinux()
	host.RecursiveReadOnly = h.Features().RecursiveReadOnlyMounts
	s, warnings, err := spec.Build(spec.Input{
		Config: config, Image: k.image.Config.Config, User: k.user,
		Hostname: k.sandbox.Hostname, Namespaces: ns, CgroupPath: k.c.rec.Cgroup,
		Files: spec.Files{
			Hostname:   e.sandboxFile(k.sandbox.ID, "hostname"),
			Hosts:      e.sandboxFile(k.sandbox.ID, "hosts"),
			ResolvConf: e.sandboxFile(k.sandbox.ID, "resolv.conf"),
			Shm:        e.shmPath(&k.sandbox),
		},
		Host: host, Devices: devices, DeviceAccess: access,
		ProcessLabel: k.c.rec.Labels.Process, MountLabel: k.c.rec.Labels.Mount,
	})
	if err != nil {
		return err
	}
	for _, w := range warnings {
		e.log.Warn("container does not get all it asks for", "container", k.c.id, "why", w)
	}
	if err := e.applySeccomp(s, wanted); err != nil {
		return err
	}
	profile := s.Linux.Seccomp
	if err := e.adjustSpec(ctx, k, s); err != nil {
		return err
	}
	k.spec = s
	isDefault := !wanted.Unconfined && wanted.Localhost == "" && s.Linux.Seccomp == profile
	k.c.mu.Lock()
	k.c.spec, k.c.rec.User, k.c.rec.DefaultSeccomp = s, k.user, isDefault
	k.c.mu.Unlock()
	return e.saveSpec(k.c, s, isDefault)
}

// containerNamespaces chooses what the container shares with its pod.
func (e *Engine) containerNamespaces(k *creation) (spec.Namespaces, error) {
	r := &k.sandbox
	ns := spec.Namespaces{Network: e.netnsPath(r), IPC: e.ipcPath(r), User: e.usernsPath(r)}
	if r.userNamespace() {
		u := r.namespaces().GetUsernsOptions()
		ns.UIDs, ns.GIDs = spec.IDMappings(u.Uids), spec.IDMappings(u.Gids)
	}
	if !r.hostNetwork() {
		ns.UTS = e.namespacePath(r.ID, sys.UTSNamespace)
	}
	o := k.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_CONTAINER:
		ns.PrivatePID = true
	case runtimeapi.NamespaceMode_POD:
		if !r.Pause {
			return ns, cri.Errorf(codes.InvalidArgument, "linux.security_context.namespace_options.pid: POD, but the sandbox was not made with it")
		}
		ns.PID = pidNamespace(r.PausePid)
	case runtimeapi.NamespaceMode_TARGET:
		target, err := e.mustContainer(o.TargetId)
		if err != nil {
			return ns, err
		}
		t := target.record()
		if t.SandboxID != r.ID || t.Phase != containerRunning {
			return ns, cri.Errorf(codes.FailedPrecondition, "target container %s is not running in pod sandbox %s", o.TargetId, r.ID)
		}
		pid := e.hostPid(&t)
		if pid == 0 {
			return ns, cri.Errorf(codes.InvalidArgument, "linux.security_context.namespace_options.pid: TARGET: the handler's processes are not the host's")
		}
		ns.PID = pidNamespace(pid)
	}
	return ns, nil
}

func (e *Engine) makeContainerCgroup(_ context.Context, k *creation) error {
	g := e.cfg.Cgroups.Group(k.c.rec.Cgroup)
	if err := g.Create(); err != nil {
		return err
	}
	return g.Set(k.spec.Linux.Resources)
}

// prepareLog makes the directories that the log file goes into.
func (e *Engine) prepareLog(_ context.Context, k *creation) error {
	if k.c.rec.LogPath == "" {
		return nil
	}
	return os.MkdirAll(filepath.Dir(k.c.rec.LogPath), 0o755)
}

func (e *Engine) launchContainer(ctx context.Context, k *creation) error {
	h, err := e.handlerOf(k.sandbox.Runtime)
	if err != nil {
		return err
	}
	rec := k.c.record()
	c := e.handled(&rec)
	c.Spec, c.Annotations = k.spec, annotationsFor(&k.sandbox, k.config)
	c.Rootfs = &launch.Overlay{
		Lower: k.lower,
		Upper: e.containerFile(k.c.id, "upper"), Work: e.containerFile(k.c.id, "work"),
		Options:  selinux.MountOption(rec.Labels.Mount),
		IDMapped: k.sandbox.userNamespace(),
	}
	if err := e.expectHooks(k, h); err != nil {
		return err
	}
	var p supervisor.Process
	if k.source != nil {
		p, err = e.launchRestored(ctx, k, c)
	} else {
		p, err = h.Create(ctx, c)
	}
	if err != nil {
		return err
	}
	if p.Pid != 0 {
		if err := e.settle(rec.Cgroup); err != nil {
			return err
		}
	}
	var stdio []string
	if _, ok := h.(handler.Checkpointer); ok {
		if stdio, err = criu.Stdio(p.Pid); err != nil {
			return err
		}
	}
	return e.changeContainer(k.c, func(r *containerRecord) {
		r.Pid, r.StartTicks, r.Stdio = p.Pid, p.StartTicks, stdio
		if r.Phase == containerCreating {
			r.Phase, r.PreparedAt = containerCreated, time.Now()
		}
		r.Resources.M = withOOMScore(r.Resources.M, e.hostPid(r))
	})
}

// withOOMScore returns limits with the OOM score that the process has: it takes
// a capability to lower it, without which that is passed over.
func withOOMScore(l *runtimeapi.LinuxContainerResources, pid int) *runtimeapi.LinuxContainerResources {
	if l.GetOomScoreAdj() == 0 {
		return l
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"))
	if err != nil {
		return l // it has ended
	}
	adj, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || adj == l.OomScoreAdj {
		return l
	}
	l = proto.CloneOf(l)
	l.OomScoreAdj = adj
	return l
}

// imageRef is how status names the image in use: by digest if it has one.
func imageRef(img image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

// imageName is the name that a person would know the image by.
func imageName(img image.Image, asked *runtimeapi.ImageSpec) string {
	switch {
	case asked.Image != img.ID:
		return asked.Image
	case asked.UserSpecifiedImage != "":
		return asked.UserSpecifiedImage
	case len(img.RepoTags) > 0:
		return img.RepoTags[0]
	}
	return asked.Image
}
