package conformance

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
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
	{"pull with credentials", "PullImageRequest.auth AuthConfig.{username,password,auth,server_address}", pullWithCredentials},
	{"user and details", "Image.{uid,spec} ImageStatusRequest.verbose ImageStatusResponse.info", func(t *testing.T, s *suite) {
		r, err := s.Runtime.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: s.Image}, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		if image := r.GetImage(); image.GetUid() == nil || image.GetUid().GetValue() != 0 || image.GetUsername() != "" || image.GetSpec().GetImage() == "" {
			t.Errorf("image of root's has uid %v, user %q, spec %v", image.GetUid(), image.GetUsername(), image.GetSpec())
		}
		wantJSON(t, r.GetInfo(), "imageSpec")
	}},
	{"pull and remove", "PullImage RemoveImage PullImageRequest.image PullImageResponse.image_ref " +
		"RemoveImageRequest.image Image.{repo_tags,repo_digests} ImageSpec.annotations PullImageRequest.sandbox_config", func(t *testing.T, s *suite) {
		if s.PullImage == "" {
			t.Skip("the target has no image to pull")
		}
		spec := &runtimeapi.ImageSpec{Image: s.PullImage, Annotations: map[string]string{"podstead.test/note": "changes nothing"}}
		for range 2 {
			r, err := s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec, SandboxConfig: s.podConfig(t)})
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
	{"pull that fails has the kubelet's words", "PullImage", func(t *testing.T, s *suite) {
		_, err := s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "127.0.0.1:1/no/such:image"}})
		if text := status.Convert(err).Message(); cri.Code(err) != codes.Unknown || !strings.HasPrefix(text, "RegistryUnavailable: ") {
			t.Errorf("error is %v (%v), want Unknown with RegistryUnavailable at the beginning", err, cri.Code(err))
		}
	}},
	{"pull of nothing", "PullImage", func(t *testing.T, s *suite) {
		_, err := s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "127.0.0.1:1/no/such:image"}})
		wantError(t, "pull from where nobody listens", err)
		_, err = s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "Not A Name!"}})
		wantError(t, "pull of what is no name", err)
	}},
}

func pullWithCredentials(t *testing.T, s *suite) {
	private := s.Private
	if private.Image == "" {
		t.Skip("the target has no image that needs credentials")
	}
	pull := func(auth *runtimeapi.AuthConfig) error {
		r, err := s.Runtime.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: private.Image}, Auth: auth})
		if err == nil {
			if image := s.image(t, private.Image); image.GetId() != r.GetImageRef() {
				t.Errorf("pulled %q, and the status is %v", r.GetImageRef(), image)
			}
			_, err := s.Runtime.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: private.Image}})
			if err != nil {
				t.Errorf("remove: %v", err)
			}
		}
		return err
	}
	both := base64.StdEncoding.EncodeToString([]byte(private.Username + ":" + private.Password))
	host, _, _ := strings.Cut(private.Image, "/")
	for name, auth := range map[string]*runtimeapi.AuthConfig{
		"user and password":        {Username: private.Username, Password: private.Password},
		"both in one":              {Auth: both},
		"for the image's registry": {Username: private.Username, Password: private.Password, ServerAddress: "http://" + host},
	} {
		if err := pull(auth); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, auth := range map[string]*runtimeapi.AuthConfig{
		"without credentials":  nil,
		"with others":          {Username: private.Username, Password: "not-the-password"},
		"for another registry": {Username: private.Username, Password: private.Password, ServerAddress: "registry.example"},
		"that are garbage":     {Auth: "not base64"},
	} {
		err := pull(auth)
		wantError(t, name, err)
		if err != nil && (strings.Contains(err.Error(), private.Password) || strings.Contains(err.Error(), "not-the-password")) {
			t.Errorf("%s: the error tells the password: %v", name, err)
		}
	}
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
