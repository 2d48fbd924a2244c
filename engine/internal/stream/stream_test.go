package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	frames "github.com/moby/spdystream/spdy"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

const patience = 5 * time.Minute

// fake is a Runtime of functions.
type fake struct {
	exec    func(context.Context, []string, Streams) (int, error)
	attach  func(context.Context, Streams) error
	forward func(context.Context, int32, io.ReadWriteCloser) error
}

func (f fake) Exec(ctx context.Context, _ string, cmd []string, s Streams) (int, error) {
	return f.exec(ctx, cmd, s)
}
func (f fake) Attach(ctx context.Context, _ string, s Streams) error { return f.attach(ctx, s) }
func (f fake) PortForward(ctx context.Context, _ string, port int32, conn io.ReadWriteCloser) error {
	return f.forward(ctx, port, conn)
}

// serve runs a server until the test ends, which then has left no goroutine and
// no descriptor.
func serve(t *testing.T, r fake) *Server {
	t.Helper()
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, Timeouts{Idle: time.Hour, Creation: time.Minute}, r, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
		eventually(t, "all descriptors are closed", func() bool { return descriptors(t) <= fds })
	})
	return s
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			buf := make([]byte, 1<<20)
			t.Fatalf("waited in vain: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// connections is how many clients the server has.
func (s *Server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) execURL(t *testing.T, o options, cmd ...string) *url.URL {
	t.Helper()
	r, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: cmd, Stdin: o.in, Stdout: o.out, Stderr: o.err, Tty: o.tty})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// upgrade connects to a URL by SPDY, without a library that would make streams.
func upgrade(t *testing.T, raw, protocol string) net.Conn {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n\r\n", u.Path, protocol)
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, b...) {
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatalf("%v after %q", err, head)
		}
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		t.Fatalf("the server says %q", head)
	}
	return conn
}

// frameWriter makes streams and does not wait for what the server says.
type frameWriter struct {
	conn net.Conn
	buf  bytes.Buffer
	f    *frames.Framer
	last int
}

func newFrameWriter(t *testing.T, conn net.Conn) *frameWriter {
	t.Helper()
	w := &frameWriter{conn: conn, last: -1}
	var err error
	if w.f, err = frames.NewFramer(&w.buf, nil); err != nil {
		t.Fatal(err)
	}
	return w
}

// begin makes streams of these types.
func (w *frameWriter) begin(t *testing.T, types ...string) {
	t.Helper()
	for _, kind := range types {
		header := http.Header{}
		header.Set(typeHeader, kind)
		header.Set(portHeader, "80")
		header.Set(requestIDHeader, "1")
		w.last += 2
		if err := w.f.WriteFrame(&frames.SynStreamFrame{StreamId: frames.StreamId(w.last), Headers: header}); err != nil {
			t.Fatal(err)
		}
	}
	w.conn.Write(w.buf.Bytes())
	w.buf.Reset()
}

// begin makes streams of these types on a connection.
func begin(t *testing.T, conn net.Conn, types ...string) {
	t.Helper()
	newFrameWriter(t, conn).begin(t, types...)
}

// client makes streams on a connection.
func client(t *testing.T, conn net.Conn) httpstream.Connection {
	t.Helper()
	h, err := spdy.NewClientConnection(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return h
}

func newStream(t *testing.T, h httpstream.Connection, headers map[string]string) httpstream.Stream {
	t.Helper()
	header := http.Header{}
	for k, v := range headers {
		header.Set(k, v)
	}
	st, err := h.CreateStream(header)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestExec(t *testing.T) {
	s := serve(t, fake{exec: func(_ context.Context, cmd []string, st Streams) (int, error) {
		switch cmd[0] {
		case "fail":
			return 0, errors.New("no such thing")
		case "echo":
			_, err := io.Copy(st.Out, st.In)
			return 7, err
		}
		io.WriteString(st.Out, "out")
		io.WriteString(st.Err, "err")
		return 0, nil
	}})
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	dials := map[string]func(*url.URL) (remotecommand.Executor, error){
		"SPDY": func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
		},
		"WebSocket 4": func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", u.String(), "v4.channel.k8s.io")
		},
		"WebSocket 5": func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", u.String())
		},
	}
	for name, dial := range dials {
		t.Run(name, func(t *testing.T) {
			run := func(o options, stdin io.Reader, cmd string) (out, errOut string, err error) {
				x, err := dial(s.execURL(t, o, cmd))
				if err != nil {
					t.Fatal(err)
				}
				var stdout, stderr bytes.Buffer
				opts := remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout}
				if o.err {
					opts.Stderr = &stderr
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				err = x.StreamWithContext(ctx, opts)
				return stdout.String(), stderr.String(), err
			}
			if out, errOut, err := run(options{out: true, err: true}, nil, "speak"); out != "out" || errOut != "err" || err != nil {
				t.Errorf("%q, %q, %v", out, errOut, err)
			}
			if _, _, err := run(options{out: true}, nil, "fail"); err == nil || !strings.Contains(err.Error(), "no such thing") {
				t.Errorf("the failure is %v", err)
			}
			if name == "WebSocket 4" {
				return // it cannot end its input
			}
			var exit utilexec.CodeExitError
			if out, _, err := run(options{in: true, out: true}, strings.NewReader("hello"), "echo"); out != "hello" || !errors.As(err, &exit) || exit.Code != 7 {
				t.Errorf("echo: %q, %v", out, err)
			}
		})
	}
}

func TestOldProtocolsTellFailuresAsText(t *testing.T) {
	s := serve(t, fake{exec: func(context.Context, []string, Streams) (int, error) { return 3, nil }})
	h := client(t, upgrade(t, s.execURL(t, options{out: true, tty: true}).String(), "v2.channel.k8s.io"))
	st := newStream(t, h, map[string]string{typeHeader: "error"})
	newStream(t, h, map[string]string{typeHeader: "stdout"}) // no sizes
	if b, err := io.ReadAll(st); string(b) != "command terminated with exit code 3" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestSurplusStreams makes streams that nobody asked for.
func TestSurplusStreams(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	s := serve(t, fake{exec: func(_ context.Context, _ []string, st Streams) (int, error) {
		close(begun)
		io.Copy(io.Discard, st.In)
		close(ended)
		return 0, nil
	}})
	conn := upgrade(t, s.execURL(t, options{in: true}).String(), "v4.channel.k8s.io")
	w := newFrameWriter(t, conn)
	w.begin(t, "error", "stdin")
	<-begun
	w.begin(t, slices.Repeat([]string{"stdin"}, 20)...)
	<-ended // the client was cut off
	eventually(t, "the connection ends", func() bool { return s.connections() == 0 })
}

// TestClientsThatLeave has clients that go away at each moment before their
// streams are there.
func TestClientsThatLeave(t *testing.T) {
	s := serve(t, fake{
		exec: func(_ context.Context, _ []string, st Streams) (int, error) {
			io.WriteString(st.Out, strings.Repeat("output", 1000))
			return 0, nil
		},
		forward: func(_ context.Context, _ int32, conn io.ReadWriteCloser) error {
			_, err := io.WriteString(conn, strings.Repeat("output", 1000))
			return err
		},
	})
	for i := range 150 {
		var conn net.Conn
		streams := []string{"error", "stdout"}
		if i%2 == 0 {
			conn = upgrade(t, s.execURL(t, options{out: true}).String(), "v4.channel.k8s.io")
		} else {
			r, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
			if err != nil {
				t.Fatal(err)
			}
			conn = upgrade(t, r.Url, "portforward.k8s.io")
			streams = []string{"error", "data"}
		}
		begin(t, conn, streams[:i%3]...)
		if i%5 < 3 {
			conn.(*net.TCPConn).SetLinger(0) // a reset: the server's next write fails
		}
		conn.Close()
	}
	eventually(t, "all connections end", func() bool { return s.connections() == 0 })
}

// TestClientThatMakesNoStreams is not waited for longer than streams may take to
// be made.
func TestClientThatMakesNoStreams(t *testing.T) {
	s := serve(t, fake{})
	s.SetTimeouts(Timeouts{Idle: time.Hour, Creation: time.Millisecond})
	for _, in := range []bool{false, true} {
		conn := upgrade(t, s.execURL(t, options{in: in, out: true}).String(), "v4.channel.k8s.io")
		if _, err := io.Copy(io.Discard, conn); err != nil { // ends when the server closes the connection
			t.Error(err)
		}
	}
}

// TestSilentAttach has nothing to write when its client leaves.
func TestSilentAttach(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	s := serve(t, fake{attach: func(ctx context.Context, _ Streams) error {
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil
	}})
	r, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	conn := upgrade(t, r.Url, "v4.channel.k8s.io")
	begin(t, conn, "error", "stdout")
	<-begun
	conn.Close()
	<-ended
}

// TestOutputArrivesBesideUnreadInput ends while the client sends what nobody
// reads.
func TestOutputArrivesBesideUnreadInput(t *testing.T) {
	const size = 4 << 20
	s := serve(t, fake{exec: func(_ context.Context, _ []string, st Streams) (int, error) {
		io.ReadFull(st.In, make([]byte, 1))
		n, err := io.Copy(st.Out, io.LimitReader(zeros{}, size))
		if err == nil && n != size {
			err = io.ErrShortWrite
		}
		st.Out.Close()
		return 0, err
	}})
	for range 3 {
		h := client(t, upgrade(t, s.execURL(t, options{in: true, out: true}).String(), "v4.channel.k8s.io"))
		newStream(t, h, map[string]string{typeHeader: "error"})
		in := newStream(t, h, map[string]string{typeHeader: "stdin"})
		out := newStream(t, h, map[string]string{typeHeader: "stdout"})
		go io.Copy(in, zeros{})
		if n, err := io.Copy(io.Discard, out); n != size || err != nil {
			t.Errorf("%d of %d bytes came, %v", n, size, err)
		}
		h.Close()
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestForwardsDoNotHoldUpEachOther has connections whose server has ended, while
// the client goes on sending.
func TestForwardsDoNotHoldUpEachOther(t *testing.T) {
	s := serve(t, fake{forward: func(_ context.Context, port int32, conn io.ReadWriteCloser) error {
		switch port {
		case 1: // it reads nothing
			return nil
		case 2:
			return errors.New("connection refused")
		}
		_, err := io.Copy(conn, conn)
		return err
	}})
	r, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	h := client(t, upgrade(t, r.Url, "portforward.k8s.io"))
	pair := func(port, id string) (data, failure httpstream.Stream) {
		failure = newStream(t, h, map[string]string{typeHeader: "error", portHeader: port, requestIDHeader: id})
		return newStream(t, h, map[string]string{typeHeader: "data", portHeader: port, requestIDHeader: id}), failure
	}
	for i := range 20 {
		deaf, failure := pair("1", fmt.Sprint("deaf ", i))
		if b, err := io.ReadAll(failure); len(b) > 0 || err != nil {
			t.Errorf("a connection that ended says %q, %v", b, err)
		}
		for range 100 {
			deaf.Write(make([]byte, 1000))
		}
	}
	for i := range 20 {
		data, _ := pair("3", fmt.Sprint("echo ", i))
		io.WriteString(data, "hello")
		got := make([]byte, 5)
		if _, err := io.ReadFull(data, got); string(got) != "hello" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		data.Close()
	}
	data, failure := pair("2", "")
	if b, err := io.ReadAll(failure); !strings.Contains(string(b), "connection refused") || err != nil {
		t.Errorf("a failure is told as %q, %v", b, err)
	}
	if _, err := data.Read(make([]byte, 1)); err == nil {
		t.Error("data of what failed")
	}
}

// TestCloseEndsEverything closes a server whose clients neither read nor leave.
func TestCloseEndsEverything(t *testing.T) {
	begun := make(chan struct{}, 2)
	s := serve(t, fake{
		exec: func(ctx context.Context, _ []string, st Streams) (int, error) {
			begun <- struct{}{}
			_, err := io.Copy(st.Out, zeros{})
			return 0, err
		},
		attach: func(ctx context.Context, _ Streams) error {
			begun <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		},
	})
	r, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{s.execURL(t, options{out: true}).String(), r.Url} {
		begin(t, upgrade(t, u, "v4.channel.k8s.io"), "error", "stdout")
		<-begun
	}
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all tokens
		one, err := all.give("request")
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := all.take(one); r != "request" || !ok {
			t.Errorf("%v, %v", r, ok)
		}
		if _, ok := all.take(one); ok {
			t.Error("a token is good twice")
		}
		old, _ := all.give("request")
		time.Sleep(tokenLife)
		if _, ok := all.take(old); ok {
			t.Error("a token is good after its time")
		}
		for range maxTokens {
			if _, err := all.give(""); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := all.give(""); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("more tokens than there may be: %v", err)
		}
		time.Sleep(tokenLife)
		if _, err := all.give(""); err != nil || len(all.oldest) != 1 {
			t.Errorf("after their time: %v, %d left", err, len(all.oldest))
		}
	})
}
