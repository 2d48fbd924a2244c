package e2etest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// webSockets has the kubelet's API exec, attach and forward ports as API servers
// of today and kubectl do: over WebSockets.
func (n *node) webSockets() {
	n.Helper()
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	at := func(path string, q url.Values) *url.URL {
		u, err := url.Parse(kubeletURL + path + "?" + q.Encode())
		if err != nil {
			n.Fatal(err)
		}
		return u
	}
	stream := func(path string, q url.Values, in string, tty bool, sizes remotecommand.TerminalSizeQueue) (string, error) {
		o := remotecommand.StreamOptions{Tty: tty, TerminalSizeQueue: sizes}
		var out, errOut bytes.Buffer
		o.Stdout = &out
		q.Set("output", "1")
		if in != "" {
			o.Stdin = strings.NewReader(in)
			q.Set("input", "1")
		}
		if tty {
			q.Set("tty", "1")
		} else {
			o.Stderr = &errOut
			q.Set("error", "1")
		}
		e, err := remotecommand.NewWebSocketExecutorForProtocols(config, "GET", at(path, q).String(), "v5.channel.k8s.io")
		if err != nil {
			n.Fatal(err)
		}
		err = e.StreamWithContext(n.Context(), o)
		return out.String() + errOut.String(), err
	}
	const path = "/exec/default/web/c"
	// cat ends when its input does.
	if out, err := stream(path, url.Values{"command": {"cat"}}, "in and out", false, nil); err != nil || out != "in and out" {
		n.Errorf("cat: %q, %v", out, err)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	if out, err := stream(path, url.Values{"command": {"cat"}}, big, false, nil); err != nil || out != big {
		n.Errorf("cat of %d bytes: %d, %v", len(big), len(out), err)
	}
	out, err := stream(path, url.Values{"command": {"sh", "-c", "echo no >&2; exit 7"}}, "", false, nil)
	var code exec.CodeExitError
	if !errors.As(err, &code) || code.Code != 7 || out != "no\n" {
		n.Errorf("exit 7: %q, %v", out, err)
	}
	if out, err := stream(path, url.Values{"command": {"/no/such/program"}}, "", false, nil); err == nil {
		n.Errorf("a program that is not there: %q", out)
	}
	size := make(terminal, 1)
	size <- remotecommand.TerminalSize{Width: 123, Height: 45}
	out, err = stream(path, url.Values{"command": {"sh", "-c", "until stty size 2>&1 | grep -q 123; do sleep 0.05; done; stty size"}}, "", true, size)
	close(size)
	if err != nil || out != "45 123\r\n" {
		n.Errorf("terminal: %q, %v", out, err)
	}
	if _, err := stream("/exec/default/web/other", url.Values{"command": {"true"}}, "", false, nil); err == nil {
		n.Error("a container that is not there runs commands")
	}
	dialer, err := portforward.NewSPDYOverWebsocketDialer(at("/portForward/default/web", nil), config)
	if err != nil {
		n.Fatal(err)
	}
	n.forwarded(dialer)
}

type terminal chan remotecommand.TerminalSize

func (t terminal) Next() *remotecommand.TerminalSize {
	if size, ok := <-t; ok {
		return &size
	}
	return nil
}

// forwarded fetches a file through a forwarded port, twice.
func (n *node) forwarded(dialer httpstream.Dialer) {
	n.Helper()
	stop, ready := make(chan struct{}), make(chan struct{})
	var out bytes.Buffer
	f, err := portforward.New(dialer, []string{"0:8080"}, stop, ready, &out, &out)
	if err != nil {
		n.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		n.Fatalf("port forwarding: %v", err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		n.Fatal(err)
	}
	for range 2 {
		resp, err := (&http.Client{Timeout: patience}).Get("http://127.0.0.1:" + strconv.Itoa(int(ports[0].Local)) + "/file")
		if err != nil {
			n.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != "served\n" || err != nil {
			n.Errorf("through the port: %s %q %v", resp.Status, body, err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		n.Error(err)
	}
}
