package stream

import (
	"net/http"

	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// webSocketProtocols are those that any connection may have: without a name, and
// the fourth version in bytes or base64.
func webSocketProtocols(channels []wsstream.ChannelType) map[string]wsstream.ChannelProtocolConfig {
	return map[string]wsstream.ChannelProtocolConfig{
		"":                         {Binary: true, Channels: channels},
		"v4.channel.k8s.io":        {Binary: true, Channels: channels},
		"v4.base64.channel.k8s.io": {Binary: false, Channels: channels},
	}
}

// openWebSocket has channels 0 to 4 for standard input, output, error, the
// status, and sizes of the terminal.
func (s *Server) openWebSocket(w http.ResponseWriter, r *http.Request, o options) (*channel, error) {
	direction := func(wanted bool, d wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return d
		}
		return wsstream.IgnoreChannel
	}
	channels := []wsstream.ChannelType{
		direction(o.in, wsstream.ReadChannel), direction(o.out, wsstream.WriteChannel), direction(o.err, wsstream.WriteChannel),
		wsstream.WriteChannel, direction(o.tty, wsstream.ReadChannel),
	}
	protocols := webSocketProtocols(channels)
	protocols["channel.k8s.io"] = protocols[""]
	protocols["base64.channel.k8s.io"] = protocols["v4.base64.channel.k8s.io"]
	protocols["v5.channel.k8s.io"] = protocols[""] // can close standard input
	ws := wsstream.NewConn(protocols)
	ws.SetIdleTimeout(s.timeouts.Load().Idle)
	protocol, streams, err := ws.Open(w, r)
	if err != nil {
		return nil, err
	}
	c := &channel{status: streams[3], close: func() { ws.Close() }}
	switch protocol {
	case "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "v5.channel.k8s.io":
		c.json = true
	}
	first := c.status
	if o.err {
		c.Err, first = streams[2], streams[2]
	}
	if o.out {
		c.Out, first = streams[1], streams[1]
	}
	if o.in {
		c.In = streams[0]
	}
	if o.tty {
		c.sizes = streams[4]
	}
	first.Write(nil) // tells the client that all is set up
	return c, nil
}
