package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// forward connects a client to ports of a pod until it leaves.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, req *runtimeapi.PortForwardRequest) {
	ctx, cancel := whilePresent(r)
	defer cancel()
	serve := s.forwardSPDY
	if wsstream.IsWebSocketRequest(r) {
		serve = s.forwardWebSocket
	}
	if err := serve(ctx, w, r, req); err != nil {
		s.log.Debug("a port-forward's client failed", "error", err)
	}
}

// connect forwards one connection, and tells the client on an error stream how
// it failed.
func (s *Server) connect(ctx context.Context, sandbox string, port int32, data io.ReadWriteCloser, failure io.Writer) error {
	err := s.runtime.PortForward(ctx, sandbox, port, data)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("a port-forward failed", "sandbox", sandbox, "port", port, "error", err)
		fmt.Fprintf(failure, "error forwarding port %d to pod %s: %v", port, sandbox, err)
	}
	return err
}

// maxForwards is how many connections to a pod one client may have.
const maxForwards = 1000

// forwards are the connections to a pod that a client makes by pairs of streams.
type forwards struct {
	s       *Server
	ctx     context.Context
	conn    *conn
	h       httpstream.Connection
	ready   chan struct{} // closed when h is set
	sandbox string
	work    sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	open    int
	waiting map[string]*pair // that lack a stream
}

type pair struct {
	port        int32
	data, error replied
	timer       *time.Timer
}

func (s *Server) forwardSPDY(ctx context.Context, w http.ResponseWriter, r *http.Request, req *runtimeapi.PortForwardRequest) error {
	if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
		return err
	}
	f := &forwards{
		s: s, ctx: ctx, conn: r.Context().Value(connKey{}).(*conn), sandbox: req.PodSandboxId,
		ready: make(chan struct{}), waiting: map[string]*pair{},
	}
	f.h = spdy.NewResponseUpgrader().UpgradeResponse(w, r, f.take)
	if f.h == nil {
		return errors.New("no upgrade to SPDY")
	}
	close(f.ready)
	f.h.SetIdleTimeout(s.timeouts.Load().Idle)
	select {
	case <-f.h.CloseChan():
	case <-ctx.Done():
	}
	f.close()
	return nil
}

// take accepts a stream of a pair. Pairs begin when they are complete.
func (f *forwards) take(st httpstream.Stream, told <-chan struct{}) error {
	port, err := strconv.ParseUint(st.Headers().Get(portHeader), 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%q is no port", st.Headers().Get(portHeader))
	}
	kind := st.Headers().Get(typeHeader)
	if kind != "data" && kind != "error" {
		return fmt.Errorf("%q is no type of stream", kind)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errGone
	}
	id := requestID(st, kind)
	p := f.waiting[id]
	if p == nil {
		if f.open == maxForwards {
			return fmt.Errorf("there are %d connections already", maxForwards)
		}
		p = &pair{port: int32(port)}
		p.timer = time.AfterFunc(f.s.timeouts.Load().Creation, func() { f.expire(id, p) })
		f.open++
		f.waiting[id] = p
	}
	slot := &p.data
	if kind == "error" {
		slot = &p.error
	}
	if slot.Stream != nil {
		return fmt.Errorf("the request has a stream of type %q already", kind)
	}
	*slot = replied{st, told}
	if p.data.Stream != nil && p.error.Stream != nil {
		p.timer.Stop()
		delete(f.waiting, id)
		f.work.Go(func() { f.run(p) })
	}
	return nil
}

// requestID tells which streams are a pair. Old clients make the error stream
// and then, with the next ID, the data stream, and say nothing.
func requestID(st httpstream.Stream, kind string) string {
	if id := st.Headers().Get(requestIDHeader); id != "" {
		return id
	}
	id := int64(st.Identifier())
	if kind == "data" {
		id -= 2
	}
	return "stream " + strconv.FormatInt(id, 10)
}

// expire gives up a pair that is not complete.
func (f *forwards) expire(id string, p *pair) {
	f.mu.Lock()
	late := f.waiting[id] == p
	if late {
		delete(f.waiting, id)
	}
	f.mu.Unlock()
	if late {
		f.drop(p)
	}
}

// run forwards a pair's connection.
func (f *forwards) run(p *pair) {
	defer f.drop(p)
	<-f.ready
	for _, st := range []replied{p.data, p.error} {
		if f.conn.usable(f.h, st.told) != nil {
			return
		}
	}
	if f.s.connect(f.ctx, f.sandbox, p.port, p.data, p.error) != nil {
		p.data.Reset()
	}
	p.data.Close()
	p.error.Close()
}

// drop ends a pair's streams on this side, too: frames that still come for a
// stream nobody reads would hold up those of others.
func (f *forwards) drop(p *pair) {
	<-f.ready
	for _, st := range []replied{p.data, p.error} {
		if st.Stream != nil {
			st.Reset()
			f.h.RemoveStreams(st.Stream)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
}

// close ends all connections and waits for them.
func (f *forwards) close() {
	f.mu.Lock()
	f.closed = true
	for _, p := range f.waiting {
		p.timer.Stop()
	}
	f.mu.Unlock()
	f.h.Close() // ends reads of their streams
	f.work.Wait()
}

// forwardWebSocket has two channels for each port: data, and errors. Both begin
// with the port.
func (s *Server) forwardWebSocket(ctx context.Context, w http.ResponseWriter, r *http.Request, req *runtimeapi.PortForwardRequest) error {
	var channels []wsstream.ChannelType
	for range req.Port {
		channels = append(channels, wsstream.ReadWriteChannel, wsstream.WriteChannel)
	}
	ws := wsstream.NewConn(webSocketProtocols(channels))
	ws.SetIdleTimeout(s.timeouts.Load().Idle)
	_, streams, err := ws.Open(w, r)
	if err != nil {
		return err
	}
	defer ws.Close()
	var all sync.WaitGroup
	for i, port := range req.Port {
		data, failure := streams[2*i], streams[2*i+1]
		number := binary.LittleEndian.AppendUint16(nil, uint16(port))
		data.Write(number)
		failure.Write(number)
		all.Go(func() {
			defer data.Close()
			s.connect(ctx, req.PodSandboxId, port, data, failure)
		})
	}
	all.Wait()
	return nil
}
