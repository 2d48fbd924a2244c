package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	remotecommandconsts "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// What clients want over WebSockets that runtimes' streaming servers do not speak
// is translated here, as a kubelet does it: exec and attach of version 5, in
// which standard input can be closed, and port forwarding, which is SPDY inside of
// binary messages. To the runtime it is SPDY in both cases.
const (
	v5Protocol    = remotecommandconsts.StreamProtocolV5Name
	tunnelPrefix  = "SPDY/3.1+"
	spdyProtocol  = "SPDY/3.1"
	streamVersion = "X-Stream-Protocol-Version"
)

// session says which streams an exec or attach has.
type session struct{ in, out, err, tty bool }

// join joins the client with a command of the runtime at its streaming URL.
func (s *server) join(w http.ResponseWriter, r *http.Request, to string, have session) error {
	if !wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		return s.proxy(w, r, to)
	}
	target, err := url.Parse(to)
	if err != nil {
		return fmt.Errorf("streaming URL of the runtime: %w", err)
	}
	if _, ok := w.(http.Hijacker); !ok {
		return errors.New("a WebSocket needs a connection of its own")
	}
	runtime, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, target)
	if err != nil {
		return err
	}
	kind := func(wanted bool, t wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return t
		}
		return wsstream.IgnoreChannel
	}
	ws := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{v5Protocol: {Binary: true, Channels: []wsstream.ChannelType{
		kind(have.in, wsstream.ReadChannel), kind(have.out, wsstream.WriteChannel), kind(have.err, wsstream.WriteChannel),
		wsstream.WriteChannel, wsstream.ReadChannel,
	}}})
	quiet := klog.NewContext(r.Context(), klog.Logger{}) // it calls each end an error
	_, streams, err := ws.Open(w, r.WithContext(quiet))
	if err != nil {
		s.log.Warn("a WebSocket was not opened", "error", err)
		return nil // the client has been told
	}
	defer ws.Close()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	sizes := sizes{ctx, make(chan remotecommand.TerminalSize, 1)}
	go sizes.read(streams[4], cancel)
	o := remotecommand.StreamOptions{Tty: have.tty}
	if have.in {
		o.Stdin = streams[0]
	}
	if have.out {
		o.Stdout = streams[1]
	}
	if have.err {
		o.Stderr = streams[2]
	}
	if have.tty {
		o.TerminalSizeQueue = sizes
	}
	if err := json.NewEncoder(streams[3]).Encode(outcome(runtime.StreamWithContext(ctx, o))); err != nil && ctx.Err() == nil {
		s.log.Warn("the outcome of a command was not sent", "error", err)
	}
	return nil
}

// outcome is what a client is told of a command's end.
func outcome(err error) metav1.Status {
	var code exec.CodeExitError
	switch {
	case err == nil:
		return metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &code):
		return metav1.Status{Status: metav1.StatusFailure, Reason: remotecommandconsts.NonZeroExitCodeReason, Message: err.Error(),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remotecommandconsts.ExitCodeCauseType, Message: strconv.Itoa(code.Code)}}}}
	}
	return metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError, Message: err.Error()}
}

// sizes are those of the client's terminal; the list has the last that nobody has
// asked for.
type sizes struct {
	ctx  context.Context
	list chan remotecommand.TerminalSize
}

// read takes sizes until the client has gone, which is heard of in no other way.
func (s sizes) read(from io.Reader, gone func()) {
	defer gone()
	for d := json.NewDecoder(from); ; {
		var size remotecommand.TerminalSize
		if err := d.Decode(&size); err != nil {
			_, _ = io.Copy(io.Discard, from)
			return
		}
		select {
		case <-s.list:
		default:
		}
		s.list <- size
	}
}

// Next is called by the executor.
func (s sizes) Next() *remotecommand.TerminalSize {
	select {
	case size := <-s.list:
		return &size
	case <-s.ctx.Done():
		return nil
	}
}

// tunnel joins the client's messages, which are a SPDY connection in pieces, with
// the runtime's port forwarding.
func (s *server) tunnel(w http.ResponseWriter, r *http.Request, to string) error {
	if !wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		return s.proxy(w, r, to)
	}
	if _, ok := w.(http.Hijacker); !ok {
		return errors.New("a WebSocket needs a connection of its own")
	}
	protocol := ""
	for p := range strings.SplitSeq(r.Header.Get(wsstream.WebSocketProtocolHeader), ",") {
		if p = strings.TrimSpace(p); protocol == "" && strings.HasPrefix(p, tunnelPrefix) {
			protocol = p
		}
	}
	stream, err := upgrade(r.Context(), to, strings.TrimPrefix(protocol, tunnelPrefix))
	if err != nil {
		return fmt.Errorf("streaming server of the runtime: %w", err)
	}
	defer stream.Close()
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			c.Protocol = []string{protocol}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			var both sync.WaitGroup
			pass := func(to io.Writer, from io.Reader) {
				_, _ = io.Copy(to, from)
				ws.Close()
				stream.Close()
			}
			both.Go(func() { pass(stream, ws) })
			both.Go(func() { pass(ws, stream) })
			both.Wait()
		},
	}.ServeHTTP(w, r)
	return nil
}

// upgrade turns a request to the runtime's streaming server into a connection.
func upgrade(ctx context.Context, to, version string) (io.ReadWriteCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", spdyProtocol)
	req.Header.Set(streamVersion, version)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return nil, err
	}
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		resp.Body.Close()
		return nil, fmt.Errorf("it does not forward ports: %s", resp.Status)
	}
	return stream, nil
}
