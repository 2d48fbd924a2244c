package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

func secret(json string) *corev1.Secret {
	return &corev1.Secret{Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(json)}}
}

func TestCredentials(t *testing.T) {
	basic := base64.StdEncoding.EncodeToString([]byte("u:p:w"))
	s := []*corev1.Secret{
		secret(`{"auths": {"https://index.docker.io/v1/": {"username": "hub", "password": "x"}, "quay.io": {"auth": "` + basic + `"},
			"quay.io/team": {"username": "team"}, "*.example.com": {"username": "star"}, "host:5000": {"username": "port"}}}`),
		secret(`not json`),
		{Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"old.io": {"username": "old"}}`)}},
	}
	for image, want := range map[string]string{
		"busybox":             "hub",
		"docker.io/a/b:1":     "hub",
		"quay.io/other/x":     "u",
		"quay.io/team/x":      "team u", // the more specific first
		"quay.io/teamx/x":     "u",
		"a.example.com/x":     "star",
		"a.b.example.com/x":   "",
		"example.com/x":       "",
		"host:5000/x":         "port",
		"host/x":              "hub", // no host at all
		"old.io/x:1":          "old",
		"elsewhere.io/x":      "",
		"evil-quay.io/team/x": "",
	} {
		var users []string
		for _, k := range fromSecrets(named(t, image), s) {
			users = append(users, k.Auth.Username)
		}
		if got := strings.Join(users, " "); got != want {
			t.Errorf("%s: %q, want %q", image, got, want)
		}
	}
	if k := fromSecrets(named(t, "quay.io/x/y"), s)[0]; k.Auth.Password != "p:w" {
		t.Errorf("password %q", k.Auth.Password)
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, image string
		want           bool
	}{
		{"app*.k8s.io", "app1.k8s.io/x", true},
		{"app*.k8s.io", "web.k8s.io/x", false},
		{"*.io", "a.k8s.io/x", false},
		{"*.k8s.io:80", "a.k8s.io:80/x", true},
		{"*.k8s.io", "a.k8s.io:80/x", false}, // a * is no port
		{"k8s.*:80", "k8s.io:8080/x", false},
		{"k8s.io/a", "k8s.io/a/b", true},
		{"k8s.io/a/b", "k8s.io/a", false},
		{"[", "k8s.io/a", false},
		{"", "k8s.io/a", false},
	} {
		if got := matches(c.pattern, named(t, c.image)); got != c.want {
			t.Errorf("%q, %s: %v", c.pattern, c.image, got)
		}
	}
}

func named(t *testing.T, image string) reference.Named {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// images is an image service that takes a minute for a pull.
type images struct {
	cri.Images
	mu     sync.Mutex
	have   map[string]bool
	pulls  int
	failed error
	auths  []string
	ended  int
}

func (i *images) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.have[r.Image.Image] {
		return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: r.Image.Image, Size: 5}}, nil
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (i *images) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	i.mu.Lock()
	i.pulls++
	i.auths = append(i.auths, r.Auth.GetUsername())
	i.mu.Unlock()
	select {
	case <-ctx.Done():
		i.mu.Lock()
		i.ended++
		i.mu.Unlock()
		return nil, ctx.Err()
	case <-time.After(time.Minute):
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failed != nil {
		return nil, i.failed
	}
	i.have[r.Image.Image] = true
	return &runtimeapi.PullImageResponse{ImageRef: r.Image.Image}, nil
}

func (i *images) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	resp := &runtimeapi.ListImagesResponse{}
	for id := range i.have {
		resp.Images = append(resp.Images, &runtimeapi.Image{Id: id})
	}
	return resp, nil
}

func request(image string, policy corev1.PullPolicy) Request {
	return Request{Image: image, Policy: policy, Pulling: func() {}, Pulled: func(Pulled) {}}
}

func TestEnsure(t *testing.T) {
	for _, c := range []struct {
		image  string
		policy corev1.PullPolicy
		failed error
		pulls  int
		reason string
	}{
		{"here:1", corev1.PullIfNotPresent, nil, 0, ""},
		{"here:1", corev1.PullNever, nil, 0, ""},
		{"here:1", corev1.PullAlways, nil, 1, ""},
		{"there:1", corev1.PullIfNotPresent, nil, 1, ""},
		{"there:1", corev1.PullNever, nil, 0, ErrImageNeverPull},
		{"there:1", corev1.PullAlways, errors.New("rpc error: code = Unknown desc = RegistryUnavailable: down"), 1, "RegistryUnavailable"},
		{"there:1", corev1.PullAlways, errors.New("not found"), 1, ErrImagePull},
	} {
		synctest.Test(t, func(t *testing.T) {
			svc := &images{have: map[string]bool{"here:1": true}, failed: c.failed}
			img, err := New(Config{Images: svc}).Ensure(t.Context(), request(c.image, c.policy))
			reason := ""
			var e *Error
			if errors.As(err, &e) {
				reason = e.Reason
			}
			if reason != c.reason || svc.pulls != c.pulls || (err == nil) != (img != nil) {
				t.Errorf("%s %s: %v, %d pulls; want %q, %d", c.image, c.policy, err, svc.pulls, c.reason, c.pulls)
			}
		})
	}
}

func TestPullsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := &images{have: map[string]bool{}}
		p := New(Config{Images: svc})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := p.Ensure(t.Context(), request("a:1", corev1.PullAlways)); err != nil {
					t.Error(err)
				}
			})
		}
		// One that goes away does not end the pull of the others.
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := p.Ensure(ctx, request("a:1", corev1.PullAlways)); err == nil {
				t.Error("no error after it was cancelled")
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		if svc.pulls != 1 {
			t.Errorf("%d pulls", svc.pulls)
		}
	})
}

func TestPullsKeepTheirPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := &images{have: map[string]bool{}}
		p := New(Config{Images: svc, PerSecond: 2, Burst: 3})
		began := time.Now()
		for i := range 7 {
			if _, err := p.Ensure(t.Context(), request(fmt.Sprintf("a:%d", i), corev1.PullAlways)); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took < 2*time.Second {
			t.Errorf("four beyond the burst of three begin within %v, want 2 s", took)
		}
	})
}

func TestPullEndsWithItsLastUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := &images{have: map[string]bool{}}
		p := New(Config{Images: svc})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := p.Ensure(ctx, request("a:1", corev1.PullAlways))
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; err == nil {
			t.Error("no error")
		}
		synctest.Wait()
		if svc.ended != 1 {
			t.Error("the pull goes on")
		}
		if _, err := p.Ensure(t.Context(), request("a:1", corev1.PullAlways)); err != nil {
			t.Errorf("who comes later: %v", err)
		}
	})
}

func TestEveryCredentialIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := &images{have: map[string]bool{}, failed: errors.New("denied")}
		r := request("quay.io/team/x:1", corev1.PullAlways)
		r.Secrets = []*corev1.Secret{secret(`{"auths": {"quay.io": {"username": "a"}, "quay.io/team": {"username": "b"}}}`)}
		if _, err := New(Config{Images: svc}).Ensure(t.Context(), r); err == nil {
			t.Error("no error")
		}
		if got := fmt.Sprint(svc.auths); got != "[b a]" {
			t.Errorf("tried %s", got)
		}
	})
}
