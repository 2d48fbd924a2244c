package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bulkTests are about streams that carry much, are many, or are used by clients
// that are not client-go.
var bulkTests = []test{
	{"much data each way", "Exec ExecRequest.{stdin,stdout}", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		size := s.much()
		for protocol, dial := range executors {
			sent, got := sha256.New(), sha256.New()
			in := io.TeeReader(io.LimitReader(noise(), size), sent)
			// Its end is told by the count: WebSockets have no half-closed streams here.
			err := c.execStream(t, dial, fmt.Sprintf("head -c %d", size), remotecommand.StreamOptions{Stdin: in, Stdout: got})
			if err != nil || sum(got) != sum(sent) {
				t.Errorf("%s: what came back is not what was sent (%v)", protocol, err)
			}
		}
	}},
	{"much data through a port-forward", "PortForward", func(t *testing.T, s *suite) {
		p := s.pod(t)
		p.sh(t, echoServer)
		wantEcho(t, net.JoinHostPort(p.status(t).GetNetwork().GetIp(), "7000"))
		address, end := p.forwarded(t)
		defer end()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		size := s.much()
		sent, got := sha256.New(), sha256.New()
		go func() {
			io.Copy(conn, io.TeeReader(io.LimitReader(noise(), size), sent))
			conn.(*net.TCPConn).CloseWrite()
		}()
		if n, err := io.Copy(got, conn); n != size || err != nil || sum(got) != sum(sent) {
			t.Errorf("%d of %d bytes came back, error %v", n, size, err)
		}
	}},
	{"hundreds at once", "Exec", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		n := 20 * max(1, s.Bulk)
		var gate sync.WaitGroup // all are open before one ends
		gate.Add(n)
		each(n, func(i int) {
			in, feed := io.Pipe()
			out := &firstWrite{then: func() {
				gate.Done()
				go func() {
					gate.Wait()
					feed.Close()
				}()
			}}
			err := c.execStream(t, remotecommandSPDY, fmt.Sprintf("echo %d; cat; exit %d", i, i), remotecommand.StreamOptions{Stdin: in, Stdout: out})
			out.once.Do(gate.Done) // the others must not wait for one that failed
			if code := exitCode(err); code != i%256 || out.String() != fmt.Sprintln(i) {
				t.Errorf("exec %d: output %q, error %v", i, out, err)
			}
		})
	}},
	{"attach: terminal follows the client's size", "AttachRequest.tty", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "while :; do stty size; sleep 0.05; done", func(config *runtimeapi.ContainerConfig) {
			config.Tty, config.Stdin = true, true
		})
		sizes := &sizes{next: make(chan remotecommand.TerminalSize)}
		defer close(sizes.next)
		var stdout safeBuffer
		in, feed := io.Pipe()
		defer feed.Close()
		ctx, cancel := context.WithCancel(t.Context())
		ended := c.attach(ctx, t, remotecommand.StreamOptions{Stdin: in, Stdout: &stdout, Tty: true, TerminalSizeQueue: sizes})
		for _, size := range []remotecommand.TerminalSize{{Width: 80, Height: 24}, {Width: 132, Height: 50}} {
			sizes.next <- size
			eventually(t, "it has the new size", func() bool {
				return strings.Contains(stdout.String(), fmt.Sprintf("%d %d", size.Height, size.Width))
			})
		}
		cancel()
		<-ended
	}},
	{"URLs lead to the node alone and cannot be guessed", "ExecResponse.url AttachResponse.url PortForwardResponse.url", func(t *testing.T, s *suite) {
		p := s.pod(t)
		c := p.sh(t, "sleep 1000", func(config *runtimeapi.ContainerConfig) { config.Stdin = true })
		attach, err := s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c.id, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		forward, err := s.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		o := remotecommand.StreamOptions{Stdout: io.Discard}
		for _, u := range []*url.URL{c.execURL(t, "true", o), c.execURL(t, "true", o), parse(t, attach.GetUrl()), parse(t, forward.GetUrl())} {
			if ip := net.ParseIP(u.Hostname()); !ip.IsLoopback() {
				t.Errorf("%s is not on the loopback", u)
			}
			token := u.Path[strings.LastIndex(u.Path, "/")+1:]
			if len(token) < 8 || seen[token] {
				t.Errorf("%s has a bad token", u)
			}
			seen[token] = true
		}
		u := c.execURL(t, "true", o)
		u.Path = u.Path[:strings.LastIndex(u.Path, "/")] + "/AAAAAAAA"
		r, err := http.Post(u.String(), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusNotFound {
			t.Errorf("a token that nobody got: %s", r.Status)
		}
	}},
	{"exec: WebSocket in base64", "Exec", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "sleep 1000")
		u := c.execURL(t, "read x; echo got $x; exit 7", remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard})
		conn := webSocket(t, u, "v4.base64.channel.k8s.io")
		send := func(channel byte, text string) {
			if err := conn.WriteMessage(websocket.TextMessage, append([]byte{'0' + channel}, base64.StdEncoding.EncodeToString([]byte(text))...)); err != nil {
				t.Fatal(err)
			}
		}
		send(0, "hello\n")
		got := messages(t, conn, func(b []byte) []byte {
			text, err := base64.StdEncoding.DecodeString(string(b))
			if err != nil {
				t.Errorf("%q is not base64", b)
			}
			return text
		})
		if got['1'] != "got hello\n" || !strings.Contains(got['3'], `"7"`) {
			t.Errorf("got %q", got)
		}
	}},
	{"port-forward by WebSocket", "PortForwardRequest.port", func(t *testing.T, s *suite) {
		p := s.pod(t)
		p.sh(t, echoServer)
		wantEcho(t, net.JoinHostPort(p.status(t).GetNetwork().GetIp(), "7000"))
		r, err := s.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{7000}})
		if err != nil {
			t.Fatal(err)
		}
		conn := webSocket(t, parse(t, r.GetUrl()), "v4.channel.k8s.io")
		for channel := range byte(2) { // data and error each begin with the port
			_, b, err := conn.ReadMessage()
			if err != nil || len(b) != 3 || b[0] != channel || binary.LittleEndian.Uint16(b[1:]) != 7000 {
				t.Fatalf("channel %d begins with %v, %v", channel, b, err)
			}
		}
		if err := conn.WriteMessage(websocket.BinaryMessage, []byte("\x00hello\n")); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		for got.Len() < 6 {
			_, b, err := conn.ReadMessage()
			if err != nil || b[0] != 0 {
				t.Fatalf("message %q, %v", b, err)
			}
			got.Write(b[1:])
		}
		if got.String() != "hello\n" {
			t.Errorf("got %q", &got)
		}
	}},
}

// much is how many bytes are a lot: to find out whether the suite is right, less
// will do.
func (s *suite) much() int64 { return int64(max(1, s.Bulk)) * 10 << 20 }

// noise is random and always the same.
func noise() io.Reader { return rand.NewChaCha8([32]byte{1}) }

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// firstWrite is a buffer that tells of the first write to it.
type firstWrite struct {
	safeBuffer
	then func()
	once sync.Once
}

func (f *firstWrite) Write(b []byte) (int, error) {
	f.once.Do(f.then)
	return f.safeBuffer.Write(b)
}

// sizes tells a terminal's sizes as they come.
type sizes struct {
	next chan remotecommand.TerminalSize
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s.next
	if !ok {
		return nil
	}
	return &size
}

// webSocket connects to a stream's URL until the test ends.
func webSocket(t *testing.T, u *url.URL, protocol string) *websocket.Conn {
	t.Helper()
	to := *u
	to.Scheme = "ws"
	d := websocket.Dialer{Subprotocols: []string{protocol}, HandshakeTimeout: patience}
	conn, r, err := d.DialContext(t.Context(), to.String(), nil)
	if err != nil {
		t.Fatalf("%v (%v)", err, r)
	}
	t.Cleanup(func() { conn.Close() })
	if conn.Subprotocol() != protocol {
		t.Errorf("the protocol is %q", conn.Subprotocol())
	}
	return conn
}

// messages reads to the end what comes on each channel.
func messages(t *testing.T, conn *websocket.Conn, decode func([]byte) []byte) map[byte]string {
	t.Helper()
	got := map[byte]string{}
	for {
		_, b, err := conn.ReadMessage()
		if err != nil {
			return got // the server closes without a word
		}
		if len(b) == 0 {
			t.Fatal("a message without a channel")
		}
		got[b[0]] += string(decode(b[1:]))
	}
}
