package docker

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/client"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/internal/spec"
)

// imageUsers keeps the users of images, by ID, which only an inspection tells
// and which never change. The zero value is ready.
type imageUsers struct {
	mu   sync.Mutex
	byID map[string]string
}

func (u *imageUsers) get(id string) (string, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	user, ok := u.byID[id]
	return user, ok
}

// keep replaces all that is known by what was seen now.
func (u *imageUsers) keep(byID map[string]string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.byID = byID
}

// fullName writes out what Docker leaves out of names: docker.io/library/.
func fullName(name string) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return n.String()
}

// ListImages lists the images, or the one that the filter names in any form.
func (r *Runtime) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	if name := req.GetFilter().GetImage().GetImage(); name != "" {
		img, err := r.image(ctx, name)
		if img != nil {
			resp.Images = append(resp.Images, criImage(img))
		}
		return resp, err
	}
	list, err := r.api().ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		return nil, failed(err, "list images")
	}
	users := map[string]string{}
	for _, s := range list.Items {
		user, ok := r.imageUsers.get(s.ID)
		if !ok {
			img, err := r.image(ctx, s.ID)
			if err != nil {
				return nil, err
			}
			if img == nil {
				continue // just removed
			}
			user = userOf(img)
		}
		users[s.ID] = user
		resp.Images = append(resp.Images, describe(s.ID, s.RepoTags, s.RepoDigests, s.Size, user))
	}
	r.imageUsers.keep(users)
	return resp, nil
}

// image finds an image by any of its names, nil if there is none.
func (r *Runtime) image(ctx context.Context, name string) (*image.InspectResponse, error) {
	res, err := r.api().ImageInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, failed(err, "image %s", name)
	}
	return &res.InspectResponse, nil
}

// ImageStatus describes an image; one that is not there is no error and no
// image.
func (r *Runtime) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	img, err := r.image(ctx, req.Image.Image)
	if img == nil || err != nil {
		return &runtimeapi.ImageStatusResponse{}, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(img)}
	if req.Verbose {
		b, err := json.Marshal(map[string]any{"imageSpec": img.Config, "docker": img})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"info": string(b)}
	}
	return resp, nil
}

func userOf(img *image.InspectResponse) string {
	if img.Config == nil {
		return ""
	}
	return img.Config.User
}

func criImage(img *image.InspectResponse) *runtimeapi.Image {
	return describe(img.ID, img.RepoTags, img.RepoDigests, img.Size, userOf(img))
}

func describe(id string, tags, digests []string, size int64, user string) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: id, Size: uint64(max(size, 1)), RepoTags: names(tags), RepoDigests: names(digests),
		Spec: &runtimeapi.ImageSpec{Image: id}, Pinned: slices.Contains(tags, pauseImage),
	}
	spec.SetImageUser(out, user)
	return out
}

// names writes out names. Docker lists a name without a tag as "NAME:<none>".
func names(short []string) []string {
	var full []string
	for _, s := range short {
		if !strings.Contains(s, "<none>") {
			full = append(full, fullName(s))
		}
	}
	return full
}

// RemoveImage removes an image with all its names. One that is not there is no
// error.
func (r *Runtime) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := cri.Validate(req); err != nil {
		return nil, err
	}
	img, err := r.image(ctx, req.Image.Image)
	if err != nil || img == nil {
		return &runtimeapi.RemoveImageResponse{}, err
	}
	_, err = r.join(ctx, "remove "+img.ID, removeTimeout, func(ctx context.Context) (string, error) {
		// By its ID and with force Docker removes all names, but not an image
		// that a running container uses.
		_, err := r.api().ImageRemove(ctx, img.ID, client.ImageRemoveOptions{Force: true, PruneChildren: true})
		if errdefs.IsNotFound(err) {
			return "", nil
		}
		return "", failed(err, "remove image %s", img.ID)
	})
	return &runtimeapi.RemoveImageResponse{}, err
}
