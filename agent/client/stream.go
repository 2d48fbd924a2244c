package client

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	"k8s.io/client-go/tools/remotecommand"
	transport "k8s.io/client-go/transport/spdy"
)

// ExecOptions describe a command in a container, or an attachment to it (then
// without Command).
type ExecOptions struct {
	Container string // may be empty in a pod of one container
	Command   []string
	TTY       bool
	// Streams.Tty is taken from TTY. Stderr must be nil with a TTY.
	Streams remotecommand.StreamOptions
}

// Exec runs a command and returns when it ended; its exit status, if not zero,
// is an error that implements k8s.io/client-go/util/exec.CodeExitError.
func (c *Client) Exec(ctx context.Context, namespace, name string, o ExecOptions) error {
	return c.remote(ctx, podPath(namespace, name, "exec"), o)
}

// Attach connects to a container's running process.
func (c *Client) Attach(ctx context.Context, namespace, name string, o ExecOptions) error {
	o.Command = nil
	return c.remote(ctx, podPath(namespace, name, "attach"), o)
}

func (c *Client) remote(ctx context.Context, path string, o ExecOptions) error {
	q := url.Values{"command": o.Command}
	if o.Container != "" {
		q.Set("container", o.Container)
	}
	q.Set("stdin", strconv.FormatBool(o.Streams.Stdin != nil))
	q.Set("stdout", strconv.FormatBool(o.Streams.Stdout != nil))
	q.Set("stderr", strconv.FormatBool(o.Streams.Stderr != nil))
	q.Set("tty", strconv.FormatBool(o.TTY))
	rt, err := c.upgrader()
	if err != nil {
		return err
	}
	exec, err := remotecommand.NewSPDYExecutorForTransports(rt, rt, http.MethodPost, c.url(path, q))
	if err != nil {
		return err
	}
	o.Streams.Tty = o.TTY
	return exec.StreamWithContext(ctx, o.Streams)
}

// PortForwardDialer is what client-go's portforward.New wants to reach a pod.
func (c *Client) PortForwardDialer(namespace, name string) (httpstream.Dialer, error) {
	rt, err := c.upgrader()
	if err != nil {
		return nil, err
	}
	u := c.url(podPath(namespace, name, "portforward"), nil)
	return transport.NewDialer(rt, &http.Client{Transport: rt}, http.MethodPost, u), nil
}

// upgrader returns a transport that turns one request into SPDY streams.
func (c *Client) upgrader() (*spdy.SpdyRoundTripper, error) {
	return spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{
		PingPeriod: 5 * time.Second,
		UpgradeTransport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return Dial(ctx, c.socket) },
		},
	})
}

func (c *Client) url(path string, q url.Values) *url.URL {
	return &url.URL{Scheme: "http", Host: "podstead", Path: path, RawQuery: q.Encode()}
}
