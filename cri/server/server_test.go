package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/cri/remote"
	"podstead/cri/server"
)

// fake is a runtime of which a test sets what it needs; other calls panic.
type fake struct {
	cri.Runtime
	status func(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error)
	exec   func() *runtimeapi.ExecSyncResponse
	list   []*runtimeapi.Container
	events func(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error
}

func (f *fake) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return f.status(ctx, r)
}

func (f *fake) ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return f.exec(), nil
}

func (f *fake) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: f.list}, nil
}

func (f *fake) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return nil, errors.New("RegistryUnavailable: no route")
}

func (f *fake) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	return f.events(ctx, ready, yield)
}

// logBuffer is a log that a test reads while the server may still write it.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serve serves f on a socket and returns what a test wants of it.
func serve(t *testing.T, f cri.Runtime) (s *server.Server, client *remote.Runtime, socket string, log *logBuffer) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	log = &logBuffer{}
	s = server.New(server.Config{Runtime: f, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	client, err = remote.New("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, client, socket, log
}

func raw(t *testing.T, socket string) runtimeapi.RuntimeServiceClient {
	t.Helper()
	return runtimeapi.NewRuntimeServiceClient(connect(t, socket))
}

func connect(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestErrorsKeepOrGetTheirCode(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want codes.Code
	}{
		"with a code":         {cri.Errorf(codes.NotFound, "container x"), codes.NotFound},
		"wrapped":             {fmt.Errorf("status: %w", cri.Errorf(codes.FailedPrecondition, "not running")), codes.FailedPrecondition},
		"joined with an undo": {errors.Join(cri.Errorf(codes.AlreadyExists, "x"), errors.New("undo: y")), codes.AlreadyExists},
		"without":             {errors.New("disk on fire"), codes.Unknown},
		"deadline":            {fmt.Errorf("exec: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		"cancelled":           {fmt.Errorf("exec: %w", context.Canceled), codes.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			_, client, _, _ := serve(t, &fake{status: func(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
				return nil, test.err
			}})
			_, err := client.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "x"})
			if cri.Code(err) != test.want {
				t.Errorf("error is %v, want code %v", err, test.want)
			}
		})
	}
}

func TestMissingFieldIsNamedAndRuntimeNotAsked(t *testing.T) {
	_, client, _, _ := serve(t, &fake{}) // a call of it would panic: Internal
	_, err := client.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{})
	if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "container_id") {
		t.Errorf("error is %v, want InvalidArgument that names container_id", err)
	}
}

func TestPanicCostsOneCall(t *testing.T) {
	panics := true
	_, client, _, log := serve(t, &fake{status: func(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
		if panics {
			panic("a bug")
		}
		return &runtimeapi.ContainerStatusResponse{}, nil
	}})
	_, err := client.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "x"})
	if cri.Code(err) != codes.Internal || !strings.Contains(err.Error(), "a bug") {
		t.Errorf("error is %v, want Internal", err)
	}
	if !strings.Contains(log.String(), "TestPanicCostsOneCall") {
		t.Errorf("the log does not show the stack:\n%s", log)
	}
	panics = false
	if _, err := client.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "x"}); err != nil {
		t.Errorf("the call after the panic: %v", err)
	}
}

func TestLogNamesTheSubjectAndNoSecret(t *testing.T) {
	_, client, _, log := serve(t, &fake{})
	_, err := client.PullImage(t.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "example.org/app:1"},
		Auth:  &runtimeapi.AuthConfig{Username: "hunter1", Password: "hunter2", Auth: "hunter3", IdentityToken: "hunter4", RegistryToken: "hunter5"},
	})
	if cri.Code(err) != codes.Unknown {
		t.Errorf("error is %v, want Unknown, which the kubelet expects here", err)
	}
	got := log.String()
	for _, want := range []string{"PullImage", "image=example.org/app:1", "took=", "RegistryUnavailable"} {
		if !strings.Contains(got, want) {
			t.Errorf("the log does not tell %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "hunter") {
		t.Errorf("the log shows a credential:\n%s", got)
	}
}

func TestUnimplementedByName(t *testing.T) {
	_, _, socket, _ := serve(t, &fake{})
	client := raw(t, socket)
	_, err := client.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "x", Location: "/x"})
	if cri.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "CheckpointContainer") {
		t.Errorf("error is %v, want Unimplemented that names the call", err)
	}
	_, err = client.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: "x", OutputPath: "/x", ContainerIds: []string{"c"}})
	if cri.Code(err) != codes.Unimplemented {
		t.Errorf("error is %v, want Unimplemented", err)
	}
}

func TestStreamedListIsTheListInParts(t *testing.T) {
	for name, test := range map[string]struct{ items, bytes, most int }{
		"empty":      {0, 0, 0},
		"one":        {1, 10, 1},
		"many small": {2500, 10, 1000},
		"few large":  {7, 600 << 10, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{}
			for i := range test.items {
				f.list = append(f.list, &runtimeapi.Container{Id: fmt.Sprint(i), ImageRef: strings.Repeat("x", test.bytes)})
			}
			_, _, socket, _ := serve(t, f)
			stream, err := raw(t, socket).StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
			if err != nil {
				t.Fatal(err)
			}
			next := 0
			for {
				part, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if n := len(part.GetContainers()); n == 0 || n > test.most {
					t.Errorf("a message has %d items, want 1 to %d", n, test.most)
				}
				for _, c := range part.GetContainers() {
					if c.GetId() != fmt.Sprint(next) {
						t.Fatalf("item %s comes where %d should", c.GetId(), next)
					}
					next++
				}
			}
			if next != test.items {
				t.Errorf("%d items came, want %d", next, test.items)
			}
		})
	}
}

func TestExecOutputFitsTheMessage(t *testing.T) {
	full := bytes.Repeat([]byte("x"), 16<<20)
	_, client, _, _ := serve(t, &fake{exec: func() *runtimeapi.ExecSyncResponse {
		return &runtimeapi.ExecSyncResponse{Stdout: full, Stderr: full[:100], ExitCode: 3}
	}})
	r, err := client.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"y"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetStderr()) != 100 || len(r.GetStdout()) < 15<<20 || r.GetExitCode() != 3 {
		t.Errorf("got %d bytes of stdout, %d of stderr, exit code %d", len(r.GetStdout()), len(r.GetStderr()), r.GetExitCode())
	}
}

func TestEventsReadyThenInOrder(t *testing.T) {
	send := make(chan string)
	_, client, _, _ := serve(t, &fake{events: func(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
		ready()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case id := <-send:
				if err := yield(&runtimeapi.ContainerEventResponse{ContainerId: id}); err != nil {
					return err
				}
			}
		}
	}})
	enough := errors.New("enough")
	var got []string
	ready := func() {
		go func() {
			for _, id := range []string{"a", "b", "c"} {
				send <- id
			}
		}()
	}
	err := client.ContainerEvents(t.Context(), ready, func(e *runtimeapi.ContainerEventResponse) error {
		got = append(got, e.GetContainerId())
		if len(got) == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || strings.Join(got, "") != "abc" {
		t.Errorf("got events %v and error %v, want a b c and the error of yield", got, err)
	}
}

func TestEventsUnimplementedPassesThrough(t *testing.T) {
	_, client, _, _ := serve(t, &fake{events: func(context.Context, func(), func(*runtimeapi.ContainerEventResponse) error) error {
		return cri.Errorf(codes.Unimplemented, "no events here")
	}})
	ready := func() { t.Error("ready is called although nobody subscribed") }
	err := client.ContainerEvents(t.Context(), ready, nil)
	if cri.Code(err) != codes.Unimplemented {
		t.Errorf("error is %v, want Unimplemented", err)
	}
}

func TestShutdownEndsEventStreams(t *testing.T) {
	s, client, _, _ := serve(t, &fake{events: func(ctx context.Context, ready func(), _ func(*runtimeapi.ContainerEventResponse) error) error {
		ready()
		<-ctx.Done()
		return ctx.Err()
	}})
	subscribed := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- client.ContainerEvents(t.Context(), func() { close(subscribed) }, nil)
	}()
	<-subscribed
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatalf("shutdown with an open event stream: %v", err)
	}
	if err := <-ended; cri.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v, want Unavailable", err)
	}
}

func TestShutdownLetsCallsFinish(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s, client, _, _ := serve(t, &fake{status: func(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
		close(entered)
		<-leave
		return &runtimeapi.ContainerStatusResponse{}, nil
	}})
	answered := make(chan error, 1)
	go func() {
		_, err := client.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "x"})
		answered <- err
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(t.Context()) }()
	close(leave)
	if err := <-answered; err != nil {
		t.Errorf("the call under way failed: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}
