package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/checkpoint"
)

// CheckpointPod writes the state of a pod's containers, all at one moment, into
// an empty directory. They go on, whatever comes of it; after an error the
// directory is empty again.
func (e *Engine) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	s, err := e.mustSandbox(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if p := s.record().Phase; p != sandboxReady {
		return nil, cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready (%s)", s.id, p)
	}
	list, err := e.selected(s, req.ContainerIds)
	if err != nil {
		return nil, err
	}
	out, err := emptyDir(req.OutputPath)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	ctx, cancel := context.WithTimeout(ctx, checkpointTimeout) // the caller's own is shorter
	defer cancel()
	err = e.withCheckpoints(ctx, list, func(dirs []checkpoint.Dir) error { return e.savePod(ctx, s, out, list, dirs) })
	if err != nil {
		return nil, withCode(ctx, fmt.Errorf("checkpoint pod sandbox %s: %w", s.id, err))
	}
	e.log.Info("pod was checkpointed", "pod", s.id, "path", req.OutputPath, "containers", len(list))
	return &runtimeapi.CheckpointPodResponse{}, nil
}

// selected finds the containers of a request, in an order that all such
// requests have: each waits for the others' containers.
func (e *Engine) selected(s *sandbox, ids []string) ([]*container, error) {
	var list []*container
	for i, id := range ids {
		c, err := e.mustContainer(id)
		if err != nil {
			return nil, err
		}
		if c.sandboxID != s.id {
			return nil, cri.Errorf(codes.InvalidArgument, "container_ids[%d]: container %s is not of pod sandbox %s", i, c.id, s.id)
		}
		if slices.Contains(list, c) {
			return nil, cri.Errorf(codes.InvalidArgument, "container_ids[%d]: container %s is there twice", i, c.id)
		}
		if err := e.canCheckpoint(c); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *container) int { return strings.Compare(a.id, b.id) })
	return list, nil
}

// emptyDir opens the directory that a caller has made for a checkpoint.
func emptyDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, cri.Errorf(codes.InvalidArgument, "output_path: open %s: %s", path, err)
	}
	d := os.NewFile(uintptr(fd), path)
	if _, err := d.Readdirnames(1); !errors.Is(err, io.EOF) {
		d.Close()
		return nil, cri.Errorf(codes.InvalidArgument, "output_path: %s is not empty", path)
	}
	return d, nil
}

// savePod writes all archives and then the list of them, by way of the open
// directory, wherever its path leads meanwhile.
func (e *Engine) savePod(ctx context.Context, s *sandbox, out *os.File, list []*container, dirs []checkpoint.Dir) (err error) {
	base := fmt.Sprintf("/proc/self/fd/%d", out.Fd())
	defer func() {
		if err == nil {
			return
		}
		for i := range list {
			err = errors.Join(err, removeIfThere(filepath.Join(base, checkpoint.ContainerFile(i))))
		}
		err = errors.Join(err, checkpoint.RemovePod(base))
	}()
	rec := s.record()
	pod := checkpoint.Pod{Hostname: rec.Hostname}
	m := rec.config().GetMetadata()
	pod.Name, pod.Namespace, pod.UID = m.GetName(), m.GetNamespace(), m.GetUid()
	for i, c := range list {
		if err := dirs[i].Save(ctx, filepath.Join(base, checkpoint.ContainerFile(i))); err != nil {
			return err
		}
		config := c.record()
		pod.Containers = append(pod.Containers, config.config().GetMetadata().GetName())
	}
	return checkpoint.WritePod(base, pod)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// RestorePod makes a pod sandbox and its containers from a checkpoint; each is
// restored when it is started. What they may do is the request's, their memory
// and files are the checkpoint's. After an error nothing is left of them.
func (e *Engine) RestorePod(ctx context.Context, req *runtimeapi.RestorePodRequest) (_ *runtimeapi.RestorePodResponse, err error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	h, err := e.handler(req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	if _, err := e.checkpointer(h.Handler); err != nil {
		return nil, err
	}
	archives, err := podArchives(req)
	if err != nil {
		return nil, err
	}
	run, err := e.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: req.Config, RuntimeHandler: req.RuntimeHandler})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		_, rerr := e.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: run.PodSandboxId})
		if rerr != nil {
			err = errors.Join(err, fmt.Errorf("undo: %w", rerr))
		}
	}()
	s, err := e.mustSandbox(run.PodSandboxId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.RestorePodResponse{PodSandboxId: run.PodSandboxId}
	for i, config := range req.ContainerConfigs {
		id, err := e.create(ctx, s, proto.CloneOf(config), archives[i])
		if err != nil {
			return nil, fmt.Errorf("restore container %s: %w", config.Metadata.Name, err)
		}
		resp.RestoredContainers = append(resp.RestoredContainers, &runtimeapi.RestoredContainer{Name: config.Metadata.Name, ContainerId: id})
	}
	return resp, nil
}

// podArchives finds the archive of each container of the request. Both have to
// have the same names.
func podArchives(req *runtimeapi.RestorePodRequest) ([]string, error) {
	pod, err := checkpoint.ReadPod(req.CheckpointPath)
	if err != nil {
		return nil, cri.Errorf(codes.InvalidArgument, "checkpoint_path: %s", err)
	}
	var archives []string
	for i, config := range req.ContainerConfigs {
		n := slices.Index(pod.Containers, config.Metadata.Name)
		if n < 0 {
			return nil, cri.Errorf(codes.InvalidArgument, "container_configs[%d].metadata.name: the checkpoint has no container %q", i, config.Metadata.Name)
		}
		archives = append(archives, filepath.Join(req.CheckpointPath, checkpoint.ContainerFile(n)))
	}
	if len(pod.Containers) != len(archives) {
		return nil, cri.Errorf(codes.InvalidArgument, "container_configs: %d, and the checkpoint has %d containers: %q",
			len(archives), len(pod.Containers), pod.Containers)
	}
	return archives, nil
}
