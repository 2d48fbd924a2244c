package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var streamTests = []test{
	{"exec: output and exit code", "Exec ExecRequest.{container_id,cmd,stdout,stderr} ExecResponse.url", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		for protocol, dial := range executors {
			var stdout, stderr bytes.Buffer
			err := c.execStream(t, dial, "echo out; echo err >&2; exit 3", remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
			var exit utilexec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 3 || stdout.String() != "out\n" || stderr.String() != "err\n" {
				t.Errorf("%s: stdout %q, stderr %q, error %v, want exit code 3", protocol, &stdout, &stderr, err)
			}
		}
	}},
	{"exec: input to its end", "ExecRequest.stdin", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		input := strings.Repeat("0123456789abcde\n", 1<<16)
		dialers := map[string]dialer{"SPDY": remotecommandSPDY}
		if s.Proves { // elsewhere the kubelet translates
			dialers["WebSocket 5"] = func(u *url.URL) (remotecommand.Executor, error) {
				return remotecommand.NewWebSocketExecutor(&rest.Config{Host: u.Host}, "GET", u.String())
			}
		}
		for protocol, dial := range dialers {
			var stdout bytes.Buffer
			err := c.execStream(t, dial, "cat", remotecommand.StreamOptions{Stdin: strings.NewReader(input), Stdout: &stdout})
			if err != nil || stdout.String() != input {
				t.Errorf("%s: %d of %d bytes came back, error %v", protocol, stdout.Len(), len(input), err)
			}
		}
	}},
	{"exec: terminal with a size", "ExecRequest.tty", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		var stdout bytes.Buffer
		size := &oneSize{remotecommand.TerminalSize{Width: 123, Height: 45}, make(chan struct{})}
		defer close(size.end)
		in, feed := io.Pipe() // an input that stays open, as a user's does
		defer feed.Close()
		err := c.execStream(t, remotecommandSPDY, "until stty size 2>/dev/null | grep -q '^45 123$'; do sleep 0.05; done; tty", remotecommand.StreamOptions{
			Stdin: in, Stdout: &stdout, Tty: true, TerminalSizeQueue: size,
		})
		if err != nil || !strings.HasPrefix(stdout.String(), "/dev/") {
			t.Errorf("output %q, error %v", &stdout, err)
		}
	}},
	{"exec: a URL is good once", "ExecResponse.url", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		u := c.execURL(t, "true", remotecommand.StreamOptions{Stdout: io.Discard})
		for _, want := range []bool{true, false} {
			e, err := remotecommandSPDY(u)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); (err == nil) != want {
				t.Errorf("error is %v, want success only for the first", err)
			}
		}
	}},
	{"exec: the client leaves", "Exec", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		ctx, cancel := context.WithCancel(t.Context())
		r, w := io.Pipe()
		e, err := remotecommandSPDY(c.execURL(t, "echo ready; cat", remotecommand.StreamOptions{Stdin: r, Stdout: w}))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		in, _ := io.Pipe()
		go func() { ended <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: w}) }()
		if _, err := io.ReadFull(r, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, r)
		cancel()
		<-ended
		in.Close()
		w.Close()
		eventually(t, "its reader of input has ended", func() bool {
			return c.exec(t, "sh", "-c", "ps | grep -v grep | grep -c ' cat$' || true") == "0"
		})
	}},
	{"exec: refused", "Exec Attach PortForward ExecRequest.{tty,stderr}", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		for what, r := range map[string]*runtimeapi.ExecRequest{
			"without streams":     {ContainerId: c.id, Cmd: []string{"true"}},
			"terminal and stderr": {ContainerId: c.id, Cmd: []string{"true"}, Tty: true, Stdout: true, Stderr: true},
		} {
			_, err := s.Runtime.Exec(t.Context(), r)
			wantCode(t, what, err, codes.InvalidArgument)
		}
		_, err := s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: "no-such-container", Cmd: []string{"true"}, Stdout: true})
		wantCode(t, "unknown container", err, codes.NotFound)
		_, err = s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: "no-such-container", Stdout: true})
		wantCode(t, "attach to unknown container", err, codes.NotFound)
		_, err = s.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "no-such-sandbox"})
		wantCode(t, "forward to unknown sandbox", err, codes.NotFound)
	}},
	{"attach: input and output", "Attach AttachRequest.{container_id,stdin,stdout} AttachResponse.url " +
		"ContainerConfig.{stdin,stdin_once}", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "while read line; do echo got $line; done; echo end; sleep 1000", func(config *runtimeapi.ContainerConfig) {
			config.Stdin, config.StdinOnce = true, true
		})
		var stdout safeBuffer
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		in, feed := io.Pipe()
		ended := c.attach(ctx, t, remotecommand.StreamOptions{Stdin: in, Stdout: &stdout})
		io.WriteString(feed, "one\n")
		eventually(t, "the answer comes", func() bool { return stdout.String() == "got one\n" })
		io.WriteString(feed, "two\n")
		eventually(t, "the next answer comes", func() bool { return stdout.String() == "got one\ngot two\n" })
		feed.Close() // with stdin_once the container's input ends, too
		eventually(t, "its input has ended", func() bool { return strings.HasSuffix(stdout.String(), "end\n") })
		c.says(t, "got one\ngot two\nend\n")
		cancel()
		<-ended
	}},
	{"attach: both outputs, and a terminal", "AttachRequest.{stderr,tty}", func(t *testing.T, s *suite) {
		p := s.pod(t)
		const ask = "while read line; do echo out $line; echo err $line >&2; done"
		open := func(config *runtimeapi.ContainerConfig) { config.Stdin = true }
		terminal := func(config *runtimeapi.ContainerConfig) { config.Stdin, config.Tty = true, true }
		for _, tty := range []bool{false, true} {
			change := open
			if tty {
				change = terminal
			}
			c := p.sh(t, ask, change)
			var stdout, stderr safeBuffer
			o := remotecommand.StreamOptions{Stdout: &stdout, Tty: tty}
			if !tty {
				o.Stderr = &stderr
			}
			in, feed := io.Pipe()
			o.Stdin = in
			ctx, cancel := context.WithCancel(t.Context())
			ended := c.attach(ctx, t, o)
			io.WriteString(feed, "x\n")
			eventually(t, "both answers come", func() bool {
				all := stdout.String() + stderr.String()
				return strings.Contains(all, "out x") && strings.Contains(all, "err x")
			})
			if got := stderr.String(); !tty && got != "err x\n" || tty && got != "" {
				t.Errorf("terminal %t: standard error is %q", tty, got)
			}
			cancel()
			<-ended
			feed.Close()
		}
	}},
	{"attach: again, when input stays open", "ContainerConfig.stdin", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "while read line; do echo got $line; done", func(config *runtimeapi.ContainerConfig) { config.Stdin = true })
		for i := range 2 {
			var stdout safeBuffer
			ctx, cancel := context.WithCancel(t.Context())
			in, feed := io.Pipe()
			ended := c.attach(ctx, t, remotecommand.StreamOptions{Stdin: in, Stdout: &stdout})
			fmt.Fprintln(feed, i)
			eventually(t, "the answer comes", func() bool { return strings.HasSuffix(stdout.String(), fmt.Sprintf("got %d\n", i)) })
			cancel()
			<-ended
			feed.Close()
		}
		if state := c.status(t).GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container is %s after the client left", state)
		}
	}},
	{"attach: ends with the container", "Attach", func(t *testing.T, s *suite) {
		// An exec that lets it end might be killed with it.
		dir := t.TempDir()
		c := s.pod(t).sh(t, "while ! test -e /m/go; do echo waits; sleep 0.05; done; echo last", mounts(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m"}))
		var stdout safeBuffer
		ended := c.attach(t.Context(), t, remotecommand.StreamOptions{Stdout: &stdout})
		eventually(t, "the attach has taken hold", func() bool { return strings.Contains(stdout.String(), "waits\n") })
		if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("attach: %v", err)
		}
	}},
	{"port-forward", "PortForward PortForwardRequest.* PortForwardResponse.url", func(t *testing.T, s *suite) {
		p := s.pod(t)
		p.sh(t, echoServer)
		wantEcho(t, p.status(t).GetNetwork().GetIp()+":7000") // it listens
		p.forward(t)
	}},
	{"port-forward to the host's network", "PortForward", func(t *testing.T, s *suite) {
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Hostname = ""
			config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		})
		p.sh(t, echoServer)
		wantEcho(t, "127.0.0.1:7000")
		p.forward(t)
	}},
}

// dialer makes a remotecommand client for a URL.
type dialer func(*url.URL) (remotecommand.Executor, error)

var executors = map[string]dialer{"SPDY": remotecommandSPDY, "WebSocket": remotecommandWebSocket}

func remotecommandSPDY(u *url.URL) (remotecommand.Executor, error) {
	return remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
}

// remotecommandWebSocket speaks version 4, which every runtime has.
func remotecommandWebSocket(u *url.URL) (remotecommand.Executor, error) {
	return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{Host: u.Host}, "GET", u.String(), "v4.channel.k8s.io")
}

// execURL asks for an exec of a script with the streams of o.
func (c *container) execURL(t *testing.T, script string, o remotecommand.StreamOptions) *url.URL {
	t.Helper()
	r, err := c.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{
		ContainerId: c.id, Cmd: []string{"sh", "-c", script},
		Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil, Tty: o.Tty,
	})
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return parse(t, r.GetUrl())
}

func (c *container) execStream(t *testing.T, dial dialer, script string, o remotecommand.StreamOptions) error {
	t.Helper()
	e, err := dial(c.execURL(t, script, o))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return e.StreamWithContext(ctx, o)
}

// attach connects to the container; the channel gets the result at the end.
func (c *container) attach(ctx context.Context, t *testing.T, o remotecommand.StreamOptions) <-chan error {
	t.Helper()
	r, err := c.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{
		ContainerId: c.id, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil, Tty: o.Tty,
	})
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	e, err := remotecommandSPDY(parse(t, r.GetUrl()))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.StreamWithContext(ctx, o) }()
	return ended
}

// forward checks that the echo server answers through a port-forward, on
// several connections.
func (p *pod) forward(t *testing.T) {
	t.Helper()
	address, end := p.forwarded(t)
	defer end()
	for range 3 {
		wantEcho(t, address)
	}
}

// forwarded opens a port-forward to the echo server, and returns where it
// begins.
func (p *pod) forwarded(t *testing.T) (address string, end func()) {
	t.Helper()
	r, err := p.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{7000}})
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var stderr safeBuffer
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", parse(t, r.GetUrl())),
		[]string{"127.0.0.1"}, []string{"0:7000"}, stop, ready, io.Discard, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("port-forward: %v", err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), func() {
		close(stop)
		if err := <-ended; err != nil {
			t.Errorf("port-forward: %v; %s", err, stderr.String())
		}
	}
}

// exitCode is the one that a stream's error carries, 0 for none, -1 for another
// error.
func exitCode(err error) int {
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	return -1
}

func parse(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// oneSize tells a terminal's size once.
type oneSize struct {
	size remotecommand.TerminalSize
	end  chan struct{}
}

func (s *oneSize) Next() *remotecommand.TerminalSize {
	if s.size.Width == 0 {
		<-s.end
		return nil
	}
	size := s.size
	s.size = remotecommand.TerminalSize{}
	return &size
}

// safeBuffer is written by a stream while the test reads it.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
