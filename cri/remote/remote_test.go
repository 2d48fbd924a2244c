package remote_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/cri/remote"
	"podstead/cri/server"
)

// version is a runtime that can only tell its version.
type version struct{ cri.Runtime }

func (version) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "fake"}, nil
}

// start serves on socket until the returned function is called.
func start(t *testing.T, socket string, r cri.Runtime) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Config{Runtime: r, Log: slog.New(slog.DiscardHandler)})
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		<-done
	}
}

// images is an image service that hangs but for its list of images.
type images struct{ cri.Runtime }

func (images) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{Id: "i"}}}, nil
}

func (images) ImageStatus(ctx context.Context, _ *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestImagesElsewhere: images are asked for at their own socket, and a call that
// has no deadline gets the one of the settings.
func TestImagesElsewhere(t *testing.T) {
	dir := t.TempDir()
	defer start(t, filepath.Join(dir, "cri.sock"), version{})()
	defer start(t, filepath.Join(dir, "images.sock"), images{})()
	with := func(limit time.Duration) *remote.Runtime {
		r, err := remote.NewWith(filepath.Join(dir, "cri.sock"), remote.Settings{Images: "unix://" + filepath.Join(dir, "images.sock"), Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	client, hasty := with(5*time.Minute), with(10*time.Millisecond)
	if v, err := client.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil || v.RuntimeName != "fake" {
		t.Errorf("version: %v, %v", v, err)
	}
	if list, err := client.ListImages(t.Context(), &runtimeapi.ListImagesRequest{}); err != nil || len(list.Images) != 1 {
		t.Errorf("images: %v, %v", list, err)
	}
	if _, err := hasty.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "i"}}); cri.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call that hangs: %v", err)
	}
	if _, err := remote.NewWith(filepath.Join(dir, "cri.sock"), remote.Settings{Images: "images.sock"}); err == nil {
		t.Error("a relative path is taken")
	}
}

func TestRuntimeThatComesAndGoes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	client, err := remote.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ask := func() error {
		_, err := client.Version(t.Context(), &runtimeapi.VersionRequest{})
		return err
	}
	if err := ask(); cri.Code(err) != codes.Unavailable {
		t.Fatalf("without a runtime: %v, want Unavailable", err)
	}
	for range 2 {
		stop := start(t, socket, version{})
		deadline := time.Now().Add(5 * time.Minute)
		for err = ask(); cri.Code(err) == codes.Unavailable && time.Now().Before(deadline); {
			err = ask()
		}
		if err != nil {
			t.Fatalf("the runtime is there: %v", err)
		}
		stop()
		if err := ask(); cri.Code(err) != codes.Unavailable {
			t.Fatalf("the runtime is gone: %v, want Unavailable", err)
		}
		os.Remove(socket)
	}
}

func TestEndpointMustBeASocketPath(t *testing.T) {
	for _, endpoint := range []string{"", "run/x.sock", "tcp://127.0.0.1:1", "unix://x"} {
		if r, err := remote.New(endpoint); err == nil {
			r.Close()
			t.Errorf("endpoint %q is taken", endpoint)
		}
	}
}
