package stream

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// The versions of the protocol, over SPDY. The fourth has exit codes, the third
// sizes of terminals.
func commandProtocols() []string {
	return []string{"v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"}
}

// What streams say of themselves in their headers.
const (
	typeHeader      = "streamType"
	portHeader      = "port"
	requestIDHeader = "requestID"
)

func (s *Server) openSPDY(w http.ResponseWriter, r *http.Request, o options) (*channel, error) {
	protocol, err := httpstream.Handshake(r, w, commandProtocols())
	if err != nil {
		return nil, err
	}
	c := r.Context().Value(connKey{}).(*conn)
	m := newMuster(c, kinds(o, protocol))
	h := spdy.NewResponseUpgrader().UpgradeResponse(w, r, m.take)
	if h == nil {
		return nil, errors.New("no upgrade to SPDY")
	}
	h.SetIdleTimeout(s.timeouts.Load().Idle)
	if err := m.wait(h, s.timeouts.Load().Creation); err != nil {
		h.Close()
		return nil, err
	}
	ch := &channel{status: m.streams["error"].Stream, json: protocol == commandProtocols()[0], close: func() { h.Close() }}
	if st, ok := m.streams["stdin"]; ok {
		ch.In = st
	}
	if st, ok := m.streams["stdout"]; ok {
		ch.Out = st
	}
	if st, ok := m.streams["stderr"]; ok {
		ch.Err = st
	}
	if st, ok := m.streams["resize"]; ok {
		ch.sizes = st
	}
	return ch, nil
}

// kinds lists the streams that a client must make.
func kinds(o options, protocol string) []string {
	all := []string{"error"}
	for _, k := range []struct {
		wanted bool
		name   string
	}{
		{o.in, "stdin"}, {o.out, "stdout"}, {o.err, "stderr"},
		{o.tty && (protocol == "v4.channel.k8s.io" || protocol == "v3.channel.k8s.io"), "resize"},
	} {
		if k.wanted {
			all = append(all, k.name)
		}
	}
	return all
}

// replied is a stream, and a channel that is closed when its client was told that
// it is accepted, or could not be.
type replied struct {
	httpstream.Stream
	told <-chan struct{}
}

// muster waits for the streams of a connection.
type muster struct {
	conn     *conn
	complete chan struct{}

	mu      sync.Mutex
	missing map[string]bool
	streams map[string]replied // not changed once complete
}

func newMuster(c *conn, kinds []string) *muster {
	m := &muster{conn: c, complete: make(chan struct{}), missing: map[string]bool{}, streams: map[string]replied{}}
	for _, k := range kinds {
		m.missing[k] = true
	}
	return m
}

// take accepts a stream that is wanted. Who makes another one loses the
// connection.
func (m *muster) take(st httpstream.Stream, told <-chan struct{}) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	kind := st.Headers().Get(typeHeader)
	if !m.missing[kind] {
		m.conn.abort()
		return fmt.Errorf("nobody wants a stream of type %q", kind)
	}
	delete(m.missing, kind)
	m.streams[kind] = replied{st, told}
	if len(m.missing) == 0 {
		close(m.complete)
	}
	return nil
}

func (m *muster) wait(h httpstream.Connection, timeout time.Duration) error {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-m.complete:
	case <-h.CloseChan():
		return errGone
	case <-t.C:
		return fmt.Errorf("the client has not made its streams within %v", timeout)
	}
	for _, st := range m.streams {
		if err := m.conn.usable(h, st.told); err != nil {
			return err
		}
	}
	return nil
}

var errGone = errors.New("the client has gone")

// usable waits until a stream's client was told of it. Who writes to a stream
// whose client could not be told would wait for ever.
func (c *conn) usable(h httpstream.Connection, told <-chan struct{}) error {
	select {
	case <-told:
	case <-h.CloseChan():
		return errGone
	}
	select {
	case <-h.CloseChan():
		return errGone
	default:
	}
	if c.broken.Load() {
		return errGone
	}
	return nil
}
