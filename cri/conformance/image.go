package conformance

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var imageTests = []test{
	{"status by every name", "ImageStatus ImageStatusRequest.image ImageStatusResponse.image Image.{id,size,repo_tags}", func(t *testing.T, s *suite) {
		image := s.image(t, s.Image)
		if image == nil {
			t.Fatalf("image %s is not there", s.Image)
		}
		if image.GetId() == "" || image.GetSize() == 0 {
			t.Errorf("id is %q, size %d; the kubelet refuses empty ones", image.GetId(), image.GetSize())
		}
		for _, name := range append(append([]string{image.GetId()}, image.GetRepoTags()...), image.GetRepoDigests()...) {
			if got := s.image(t, name); got.GetId() != image.GetId() {
				t.Errorf("image %s has the id %q, want %q", name, got.GetId(), image.GetId())
			}
		}
	}},
	{"absent", "ImageStatus RemoveImage", func(t *testing.T, s *suite) {
		if image := s.image(t, "test.local/no/such:image"); image != nil {
			t.Errorf("status is %v", image)
		}
		for range 2 {
			_, err := s.Runtime.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "test.local/no/such:image"}})
			if err != nil {
				t.Errorf("remove: %v", err)
			}
		}
	}},
	{"list", "ListImages ListImagesRequest.filter ListImagesResponse.images ImageFilter.image", func(t *testing.T, s *suite) {
		id := s.image(t, s.Image).GetId()
		for name, filter := range map[string]*runtimeapi.ImageFilter{
			"all":     nil,
			"by name": {Image: &runtimeapi.ImageSpec{Image: s.Image}},
		} {
			r, err := s.Runtime.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: filter})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, image := range r.GetImages() {
				if image.GetId() == id {
					n++
				}
			}
			if n != 1 || filter != nil && len(r.GetImages()) != 1 {
				t.Errorf("%s: the image is listed %d times, among %d", name, n, len(r.GetImages()))
			}
		}
	}},
	{"ids are one", "Container.image_id ContainerStatus.image_id Image.id", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "sleep 1000")
		id, status := s.image(t, s.Image).GetId(), c.status(t)
		list := p.containers(t, &runtimeapi.ContainerFilter{Id: c.id})
		if len(list) != 1 || list[0].GetImageId() != id || status.GetImageId() != id {
			t.Errorf("image's id %q, container's %v, status's %q", id, list, status.GetImageId())
		}
	}},
	{"pull and remove", "PullImage RemoveImage PullImageRequest.image PullImageResponse.image_ref " +
		"RemoveImageRequest.image Image.{repo_tags,repo_digests}", func(t *testing.T, s *suite) {
		if s.PullImage == "" {
			t.Skip("the target has no image to pull")
		}
		spec := &runtimeapi.ImageSpec{Image: s.PullImage}
		for range 2 {
			r, err := s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec})
			if err != nil {
				t.Fatal(err)
			}
			image := s.image(t, s.PullImage)
			if image.GetId() != r.GetImageRef() || !slices.Contains(image.GetRepoTags(), s.PullImage) || len(image.GetRepoDigests()) == 0 {
				t.Errorf("pulled %q, and the status is %v", r.GetImageRef(), image)
			}
		}
		for range 2 {
			if _, err := s.Runtime.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
				t.Errorf("remove: %v", err)
			}
		}
		if image := s.image(t, s.PullImage); image != nil {
			t.Errorf("still there after remove: %v", image)
		}
	}},
	{"pull of nothing", "PullImage", func(t *testing.T, s *suite) {
		_, err := s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "127.0.0.1:1/no/such:image"}})
		wantError(t, "pull from where nobody listens", err)
		_, err = s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "Not A Name!"}})
		wantError(t, "pull of what is no name", err)
	}},
}

// image asks for an image; nil is none.
func (s *suite) image(t *testing.T, name string) *runtimeapi.Image {
	t.Helper()
	r, err := s.Runtime.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		t.Fatalf("image status: %v", err)
	}
	return r.GetImage()
}
