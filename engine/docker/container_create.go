package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/spec"
)

// creation is a container that is being made.
type creation struct {
	pod    *sandbox
	config *runtimeapi.ContainerConfig
	rec    containerRecord
	image  image.InspectResponse
	target string // whose process namespace it joins
	mounts []mount.Mount
	binds  []string // mounts in Docker's older form
	// What the files of CDI devices add.
	devices  []container.DeviceMapping
	requests []container.DeviceRequest
	env      []string
	groups   []string
}

// CreateContainer makes a container in a sandbox that is ready. The same request
// again gets the same container, as long as nobody started it.
func (r *Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := r.present(); err != nil {
		return nil, err
	}
	req = proto.CloneOf(req)
	of := fingerprint(req)
	key := fmt.Sprintf("create %s %s_%d %s", req.PodSandboxId, req.Config.Metadata.Name, req.Config.Metadata.Attempt, of)
	id, err := r.join(ctx, key, createTimeout, func(ctx context.Context) (string, error) {
		return r.createContainer(ctx, req, of)
	})
	if err != nil {
		return nil, cri.LeadWithReason(err)
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (r *Runtime) createContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest, of string) (id string, err error) {
	p, err := r.mustPod(ctx, req.PodSandboxId)
	if err != nil {
		return "", err
	}
	if !r.ready(p) {
		return "", cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", p.id)
	}
	if err := r.checkContainer(req.Config, p.rec.config()); err != nil {
		return "", err
	}
	k := &creation{pod: p, config: req.Config}
	k.rec = containerRecord{SandboxID: p.id, CreatedAt: time.Now().UnixNano(), Fingerprint: of}
	k.rec.Config.M = withoutProcess(req.Config)
	if res := k.rec.config().GetLinux().GetResources(); res != nil {
		res.OomScoreAdj = int64(r.oomScore(int(res.OomScoreAdj))) // as it will be
	}
	made := false
	defer func() {
		if !made {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
			defer cancel()
			err = errors.Join(err, r.discardMounts(ctx, k.rec.Mounts))
		}
	}()
	for _, step := range []func(context.Context, *creation) error{r.findImage, r.resolveUser, r.findTarget, r.findMounts, r.findDevices} {
		if err := step(ctx, k); err != nil {
			return "", fmt.Errorf("create container %s: %w", req.Config.Metadata.Name, err)
		}
	}
	if k.rec.LogPath, err = spec.LogPath(p.rec.config().LogDirectory, req.Config.LogPath); err != nil {
		return "", err
	}
	options, err := r.containerOptions(k)
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", req.Config.Metadata.Name, err)
	}
	id, made, err = r.createDocker(ctx, k, options)
	return id, err
}

// createDocker makes the container, or finds the one that an equal request made.
func (r *Runtime) createDocker(ctx context.Context, k *creation, options client.ContainerCreateOptions) (id string, made bool, err error) {
	res, err := r.api().ContainerCreate(ctx, options)
	if err == nil {
		r.warn(res)
		r.log.Info("container is created", "container", res.ID, "pod", k.pod.id, "name", k.config.Metadata.Name, "image", k.rec.ImageID)
		return res.ID, true, nil
	}
	if !errdefs.IsConflict(err) {
		return "", false, failed(err, "create container %s", options.Name)
	}
	found, ferr := r.api().ContainerInspect(ctx, options.Name, client.ContainerInspectOptions{})
	if ferr != nil {
		return "", false, failed(err, "create container %s", options.Name)
	}
	c, ferr := r.ctr(ctx, found.Container.ID)
	if ferr == nil && c != nil && c.rec.Fingerprint == k.rec.Fingerprint && c.state.Status == container.StateCreated {
		return c.id, false, nil
	}
	return "", false, cri.Errorf(codes.AlreadyExists, "container %s exists already as %s", options.Name, found.Container.ID)
}

func (r *Runtime) findImage(ctx context.Context, k *creation) error {
	name := k.config.Image.Image
	res, err := r.api().ImageInspect(ctx, name)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return cri.Errorf(codes.NotFound, "image %q is not present", name)
	}
	if err != nil {
		return failed(err, "image %s", name)
	}
	k.image = res.InspectResponse
	k.rec.ImageID, k.rec.ImageRef = k.image.ID, imageRef(&k.image)
	k.rec.ImageName = name
	if name == k.image.ID && len(k.image.RepoTags) > 0 {
		k.rec.ImageName = fullName(k.image.RepoTags[0])
	}
	stop := ""
	if k.image.Config != nil {
		stop = k.image.Config.StopSignal
	}
	number, signal := spec.StopSignal(k.config, stop)
	k.rec.StopNumber, k.rec.StopSignal = int(number), signal
	return nil
}

func (r *Runtime) resolveUser(ctx context.Context, k *creation) error {
	accounts, err := r.accountsOf(ctx, k.rec.ImageID)
	if err != nil {
		return err
	}
	imageUser := ""
	if k.image.Config != nil {
		imageUser = k.image.Config.User
	}
	u, err := spec.ResolveUser(k.config.GetLinux().GetSecurityContext(), imageUser, accounts)
	if err != nil {
		return err
	}
	k.rec.UID, k.rec.GID, k.rec.Groups = u.UID, u.GID, slices.Clone(u.Groups)
	return nil
}

// findTarget finds the container whose process namespace is joined.
func (r *Runtime) findTarget(ctx context.Context, k *creation) error {
	o := k.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if o.GetPid() == runtimeapi.NamespaceMode_POD && k.pod.rec.namespaces().GetPid() != runtimeapi.NamespaceMode_POD {
		return invalid("linux.security_context.namespace_options.pid: POD, but the sandbox was not made with it")
	}
	if o.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil
	}
	target, err := r.mustCtr(ctx, o.TargetId)
	if err != nil {
		return err
	}
	if target.rec.SandboxID != k.pod.id {
		return invalid("linux.security_context.namespace_options.target_id: container %s is of another pod sandbox", target.id)
	}
	k.target = target.id
	return nil
}
