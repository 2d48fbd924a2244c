package conformance

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"podstead/cgroup"
	"podstead/cri"
	"podstead/cri/conformance"
	"podstead/cri/remote"
	"podstead/cri/server"
	"podstead/engine"
	"podstead/engine/config"
	"podstead/image"
	"podstead/network"
	"podstead/supervisor"
	"podstead/test/host"
	"podstead/test/leak"
)

// TestEngineServed runs the suite on our engine behind a socket, as a kubelet
// calls it. The engine's own tests run it in process.
func TestEngineServed(t *testing.T) {
	host.Require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	cdi := t.TempDir()
	conformance.Run(t, conformance.Target{
		Runtime: serve(t, newEngine(t, cdi)), Image: busyboxRef, PullImage: registry(t), Private: private(t), CgroupParent: host.Cgroup(), CDIDir: cdi, Handler: "other", Proves: true, Bulk: host.Rounds(10),
	})
}

// runcVariable names another runc than the one that is installed: a newer one
// has user namespaces with idmapped mounts.
const runcVariable = "PODSTEAD_TEST_RUNC"

// TestRunc runs it on the engine with runc in place of the built-in handler.
func TestRunc(t *testing.T) {
	host.Require(t)
	known := map[string]string{"checkpoint/pod": "its checkpoints are restored by the built-in handler alone (TestCheckpointOnRunc of the engine)"}
	runc := os.Getenv(runcVariable)
	if runc == "" {
		var err error
		if runc, err = exec.LookPath("runc"); err != nil {
			t.Skip("runc is not installed")
		}
		known["userns/with the host's network"] = "Debian's runc has no idmapped mounts, and its handler no user namespaces, and says so"
	}
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	cdi := t.TempDir()
	conformance.Run(t, conformance.Target{
		Runtime: newEngine(t, cdi, config.Handler{Name: "runc", Path: runc}),
		Image:   busyboxRef, PullImage: registry(t), CgroupParent: host.Cgroup(), CDIDir: cdi,
		Groups: part("container", "process", "security", "mount", "userns", "stop", "exec", "stream", "resources", "checkpoint"),
		Known:  known,
	})
}

// newEngine makes an engine with all its parts, for the time of the test. The
// first of handlers, if there is one, is the default.
func newEngine(t *testing.T, cdi string, handlers ...config.Handler) *engine.Engine {
	t.Helper()
	archive := archive(t)
	state := t.TempDir()
	run, err := os.MkdirTemp("/run", "podstead-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.NewTextHandler(&testLog{t: t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	client := startSupervisor(t, run)
	images, err := image.Open(image.Config{Dir: filepath.Join(state, "images"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := images.Load(t.Context(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	pods, err := network.New(network.Config{
		Name: "ptest0", StateDir: filepath.Join(state, "network"), RunDir: filepath.Join(run, "network"),
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00:88::/64")}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pods.Destroy(context.Background()); err != nil {
			t.Errorf("destroy network: %v", err)
		}
		pods.Close()
	})
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	settings := config.Default()
	settings.CDI.Dirs = []string{cdi}
	settings.Handlers = append(handlers, config.Handler{Name: "other", Type: config.Builtin})
	if len(handlers) > 0 {
		settings.DefaultHandler = handlers[0].Name
	}
	e, err := engine.New(t.Context(), engine.Config{
		StateDir: filepath.Join(state, "engine"), RunDir: filepath.Join(run, "engine"),
		Images: images, ImageDir: filepath.Join(state, "images"), Network: pods, Cgroups: groups,
		Supervisor: client, CgroupParent: host.Cgroup(), Version: "0.0.0-test", Log: log,
		Settings: settings, Program: os.Getenv(programVariable),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return e
}

// startSupervisor runs a supervisor for the time of the test.
func startSupervisor(t *testing.T, run string) *supervisor.Client {
	t.Helper()
	dir := filepath.Join(run, "supervisor")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(os.Getenv(programVariable)), "podstead-supervisor"), "daemon", "--run", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	deadline := time.Now().Add(time.Minute)
	client, err := supervisor.Connect(t.Context(), dir)
	for ; err != nil; client, err = supervisor.Connect(t.Context(), dir) {
		if time.Now().After(deadline) {
			t.Fatalf("the supervisor does not answer: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // between two attempts
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// serve puts a socket between the test and a runtime.
func serve(t *testing.T, r cri.Runtime) cri.Runtime {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Config{Runtime: r, Log: slog.New(slog.DiscardHandler)})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	client, err := remote.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		<-served
	})
	return client
}

// testLog sends a log to the test's.
type testLog struct {
	t  *testing.T
	mu sync.Mutex
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}
