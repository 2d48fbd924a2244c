package engine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/figure"
	"podstead/engine/internal/spec"
	"podstead/image"
)

// ListImages lists the images, or the one that the filter names in any form.
func (e *Engine) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	if name := req.GetFilter().GetImage().GetImage(); name != "" {
		img, err := e.cfg.Images.Get(name)
		if err == nil {
			resp.Images = append(resp.Images, e.criImage(img))
		} else if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
		return resp, nil
	}
	for _, img := range e.cfg.Images.List() {
		resp.Images = append(resp.Images, e.criImage(img))
	}
	return resp, nil
}

// ImageStatus describes an image; one that is not there is no error and no
// image.
func (e *Engine) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	img, err := e.cfg.Images.Get(req.Image.Image)
	if errors.Is(err, image.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: e.criImage(img)}
	if req.Verbose {
		b, err := json.Marshal(map[string]any{"imageSpec": img.Config, "pulled": img.Pulled})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"info": string(b)}
	}
	return resp, nil
}

// RemoveImage removes an image with all its names. One that is not there is no
// error; one in use stays on disk as long as it is.
func (e *Engine) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	if err := e.cfg.Images.Remove(ctx, req.Image.Image); err != nil && !errors.Is(err, image.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells where images and writable layers are, and how much they
// take: images by the image store's own accounts, and writable layers, where
// they are on another file system, by their last counts.
func (e *Engine) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	usage := func(dir string, bytes, inodes uint64) []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{
			Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: dir},
			UsedBytes: figure.Value(bytes), InodesUsed: figure.Value(inodes),
		}}
	}
	bytes, inodes := e.cfg.Images.Usage()
	resp := &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems: usage(e.imageDir(), bytes, inodes), ContainerFilesystems: usage(e.imageDir(), bytes, inodes),
	}
	split, err := onTwoFilesystems(e.imageDir(), e.layersDir())
	if err != nil {
		return nil, err
	}
	if split {
		bytes, inodes = e.layersUsage(ctx)
		resp.ContainerFilesystems = usage(e.layersDir(), bytes, inodes)
	}
	return resp, nil
}

func onTwoFilesystems(a, b string) (bool, error) {
	var devices [2]uint64
	for i, path := range []string{a, b} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return false, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		devices[i] = st.Dev
	}
	return devices[0] != devices[1], nil
}

func (e *Engine) imageDir() string {
	if e.cfg.ImageDir != "" {
		return e.cfg.ImageDir
	}
	return e.cfg.StateDir
}

func (e *Engine) criImage(img image.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: img.ID, RepoTags: slices.Clone(img.RepoTags), RepoDigests: slices.Clone(img.RepoDigests),
		Size: uint64(max(img.Size, 1)), Pinned: img.Pinned || e.isPinned(img),
		Spec: &runtimeapi.ImageSpec{Image: img.ID},
	}
	spec.SetImageUser(out, img.Config.Config.User)
	return out
}
