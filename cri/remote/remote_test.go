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
func start(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Config{Runtime: version{}, Log: slog.New(slog.DiscardHandler)})
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		<-done
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
		stop := start(t, socket)
		deadline := time.Now().Add(30 * time.Second)
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
