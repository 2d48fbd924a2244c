package engine

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// connect connects to an exec or attach URL.
func connect(t *testing.T, address string, options remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	x, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return x.StreamWithContext(ctx, options)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestStreamsLeaveNothing opens and leaves streams in every way: afterwards
// there are no more goroutines than before.
func TestStreamsLeaveNothing(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	ticks := `trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; echo tick; done`
	c := n.ready(n.begin(n.run(n.pod()), n.script(ticks, func(c *runtimeapi.ContainerConfig) { c.Stdin = true })))
	exec := func(script string, tty bool, in io.Reader) (string, error) {
		resp, err := n.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: c, Cmd: []string{"/bin/sh", "-c", script}, Tty: tty, Stdin: in != nil, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = connect(t, resp.Url, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: tty})
		return out.String(), err
	}
	round := func() {
		if out, err := exec("cat", false, strings.NewReader("hello")); err != nil || out != "hello" {
			t.Errorf("exec: %q, %v", out, err)
		}
		// Input that never ends, and a command that does not wait for it.
		r, w := io.Pipe()
		if out, err := exec("echo done", true, r); err != nil || out != "done\r\n" {
			t.Errorf("exec with an open input: %q, %v", out, err)
		}
		w.Close()
		// A background process keeps the output open.
		if out, err := exec("sleep 1000 & echo started", false, nil); err != nil || out != "started\n" {
			t.Errorf("exec with a child: %q, %v", out, err)
		}
		attach, err := n.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: c, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		left, cancel := context.WithCancel(ctx)
		u, _ := url.Parse(attach.Url)
		x, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
		if err != nil {
			t.Fatal(err)
		}
		// A client of this library that left before its streams are there would
		// leave its own connection open, in this process.
		x.StreamWithContext(left, remotecommand.StreamOptions{Stdout: writerFunc(func(b []byte) (int, error) {
			cancel()
			return len(b), nil
		})})
	}
	round()
	var before int
	eventually(t, "goroutines of the first round end", func() bool {
		before = runtime.NumGoroutine()
		return before < 100
	})
	for range 5 {
		round()
	}
	eventually(t, "goroutines of the streams end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

// TestClientLeavesExec has commands that would run, or wait for their client, for
// ever.
func TestClientLeavesExec(t *testing.T) {
	n := newNode(t)
	c := n.ready(n.begin(n.run(n.pod()), n.script(`trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done`)))
	for script, tty := range map[string]bool{"yes": false, "echo shell; read x; sleep 4444": true} {
		resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: c, Cmd: []string{"/bin/sh", "-c", script}, Tty: tty, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		u, _ := url.Parse(resp.Url)
		x, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
		if err != nil {
			t.Fatal(err)
		}
		left, cancel := context.WithCancel(t.Context())
		in, feed := io.Pipe()
		x.StreamWithContext(left, remotecommand.StreamOptions{Stdin: in, Tty: tty, Stdout: writerFunc(func(b []byte) (int, error) {
			cancel()
			return len(b), nil
		})})
		feed.Close()
		eventually(t, script+" has ended", func() bool {
			r, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"/bin/sh", "-c", "ps | grep -c '[ ]yes$\\|[r]ead x' || true"}})
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(r.Stdout)) == "0"
		})
	}
}
