package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/client"
)

// progressEvery is the pace of progress reports of a pull.
const progressEvery = 100 * time.Millisecond

func (s *server) listImages(w http.ResponseWriter, r *http.Request) error {
	resp, err := s.runtime.ListImages(r.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	users := s.usedBy()
	list := []client.Image{}
	for _, i := range resp.Images {
		image := client.Image{ID: i.Id, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: i.Size, Pinned: i.Pinned, User: i.Username}
		for _, name := range append([]string{i.Id}, append(i.RepoTags, i.RepoDigests...)...) {
			for _, pod := range users[name] {
				if !slices.Contains(image.UsedBy, pod) {
					image.UsedBy = append(image.UsedBy, pod)
				}
			}
		}
		list = append(list, image)
	}
	return reply(w, list)
}

// usedBy maps names and IDs of images to the pods whose containers use them.
func (s *server) usedBy() map[string][]string {
	users := map[string][]string{}
	for _, p := range s.backend.Pods() {
		for _, cs := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
			for _, name := range []string{cs.ImageID, cs.Image} {
				if name != "" {
					users[name] = append(users[name], p.Namespace+"/"+p.Name)
				}
			}
		}
	}
	return users
}

func (s *server) pullImage(w http.ResponseWriter, r *http.Request) error {
	var req client.PullRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req); err != nil || req.Image == "" {
		return apierrors.NewBadRequest("the request names no image")
	}
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(flusher{w})
	type result struct {
		ref string
		err error
	}
	done := make(chan result, 1)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		resp, err := s.runtime.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: req.Image}, Auth: auth(req)})
		done <- result{resp.GetImageRef(), err}
	}()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case r := <-done:
			update := client.PullUpdate{Done: r.ref}
			if r.err != nil {
				update = client.PullUpdate{Error: r.err.Error()}
			}
			_ = out.Encode(update)
			return nil
		case <-tick.C:
			if p := s.progress(req.Image); p != nil {
				if err := out.Encode(client.PullUpdate{Progress: p}); err != nil {
					return nil // the client is gone, and with it the pull
				}
			}
		}
	}
}

func auth(r client.PullRequest) *runtimeapi.AuthConfig {
	if r.Username == "" && r.Auth == "" {
		return nil
	}
	return &runtimeapi.AuthConfig{Username: r.Username, Password: r.Password, Auth: r.Auth}
}

// progress finds the pull of an image; the runtime may know it by a longer name.
func (s *server) progress(image string) *client.PullProgress {
	if s.images == nil {
		return nil
	}
	for _, p := range s.images.Pulls() {
		if p.Ref == image || strings.HasSuffix(strings.TrimSuffix(p.Ref, ":latest"), "/"+image) || strings.HasSuffix(p.Ref, "/"+image) {
			return &p
		}
	}
	return nil
}

func (s *server) home() (Images, error) {
	if s.images == nil {
		return nil, apierrors.NewMethodNotSupported(imageResource(), "archives: the container runtime is not the one built in; use its own tools")
	}
	return s.images, nil
}

func (s *server) loadImages(w http.ResponseWriter, r *http.Request) error {
	images, err := s.home()
	if err != nil {
		return err
	}
	names, err := images.Load(r.Context(), r.Body)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return reply(w, client.LoadResult{Images: names})
}

func (s *server) saveImages(w http.ResponseWriter, r *http.Request) error {
	images, err := s.home()
	if err != nil {
		return err
	}
	names := r.URL.Query()["name"]
	for _, name := range names {
		resp, err := s.runtime.ImageStatus(r.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil {
			return err
		}
		if resp.Image == nil {
			return apierrors.NewNotFound(imageResource(), name)
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := images.Save(r.Context(), w, names); err != nil {
		// The archive has begun: cutting the connection is what tells.
		s.log.Warn("save images", "image", names, "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *server) removeImage(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("name")
	if name == "" {
		return apierrors.NewBadRequest("the request names no image")
	}
	if r.URL.Query().Get("force") != "true" {
		if err := s.spare(r.Context(), name); err != nil {
			return err
		}
	}
	_, err := s.runtime.RemoveImage(r.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		return err
	}
	return reply(w, struct{}{})
}

// spare refuses to remove an image that is not there, or without which a pod's
// next container would not start.
func (s *server) spare(ctx context.Context, name string) error {
	resp, err := s.runtime.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		return err
	}
	if resp.Image == nil {
		return apierrors.NewNotFound(imageResource(), name)
	}
	users := s.usedBy()
	for _, n := range slices.Concat([]string{resp.Image.Id}, resp.Image.RepoTags, resp.Image.RepoDigests) {
		if pods := users[n]; len(pods) > 0 {
			return apierrors.NewConflict(imageResource(), name,
				fmt.Errorf("it is used by the pod %s; --force removes it all the same", strings.Join(slices.Compact(slices.Sorted(slices.Values(pods))), ", ")))
		}
	}
	return nil
}

func imageResource() schema.GroupResource { return schema.GroupResource{Resource: "images"} }
