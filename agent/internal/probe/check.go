package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podstead/agent/internal/env"
)

// Target is where probes and hooks of a container go.
type Target struct {
	Spec  *corev1.Container
	PodIP string // the node's for a pod in its network
	// Exec runs a command in the container; a deadline that passes is an error
	// of code DeadlineExceeded.
	Exec func(ctx context.Context, command []string, timeout time.Duration) (output []byte, exitCode int32, err error)
}

const (
	probeAgent = "kube-probe/1.37"
	hookAgent  = "kube-lifecycle/1.37"
	maxBody    = 10 << 10
)

// check makes one probe. err means that it could not be made and says nothing.
func (t Target) check(ctx context.Context, p *corev1.Probe) (ok bool, output string, err error) {
	timeout := time.Duration(p.TimeoutSeconds) * time.Second
	switch {
	case p.Exec != nil:
		return t.exec(ctx, env.Static(p.Exec.Command, t.Spec.Env), timeout)
	case p.HTTPGet != nil:
		return t.httpGet(ctx, p.HTTPGet, timeout)
	case p.TCPSocket != nil:
		return t.tcp(ctx, p.TCPSocket, timeout)
	case p.GRPC != nil:
		return t.grpc(ctx, p.GRPC, timeout)
	}
	return false, "", errors.New("no action")
}

func (t Target) exec(ctx context.Context, command []string, timeout time.Duration) (bool, string, error) {
	out, code, err := t.Exec(ctx, command, timeout)
	if status.Code(err) == codes.DeadlineExceeded {
		return false, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(command, " "), timeout), nil
	}
	if err != nil {
		return false, "", err
	}
	return code == 0, string(out[:min(len(out), maxBody)]), nil
}

// port resolves a port by number or by name.
func (t Target) port(p intstr.IntOrString) (string, error) {
	if p.Type == intstr.Int {
		return strconv.Itoa(p.IntValue()), nil
	}
	for _, have := range t.Spec.Ports {
		if have.Name == p.StrVal {
			return strconv.Itoa(int(have.ContainerPort)), nil
		}
	}
	return "", fmt.Errorf("the container has no port %q", p.StrVal)
}

func (t Target) host(explicit string) string {
	if explicit != "" {
		return explicit
	}
	return t.PodIP
}

// httpGet makes a request; any answer from 200 to 399 is a success.
func (t Target) httpGet(ctx context.Context, a *corev1.HTTPGetAction, timeout time.Duration) (bool, string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := t.request(ctx, a, probeAgent)
	if err != nil {
		return false, "", err
	}
	resp, err := httpClient(req.URL.Hostname()).Do(req)
	if err != nil {
		return false, err.Error(), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return false, err.Error(), nil
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
	}
	return true, string(body), nil
}

// Hook makes the request of a lifecycle hook. As with a kubelet any answer will
// do, whatever its status, and who speaks HTTP where HTTPS was asked for is asked
// again, in plain text.
func (t Target) Hook(ctx context.Context, a *corev1.HTTPGetAction) (plain bool, err error) {
	req, err := t.request(ctx, a, hookAgent)
	if err != nil {
		return false, err
	}
	err = knock(req)
	if errors.Is(err, http.ErrSchemeMismatch) {
		req.URL.Scheme = "http"
		req.Header.Del("Authorization")
		return true, knock(req)
	}
	return false, err
}

// knock makes a request and does away with the answer.
func knock(req *http.Request) error {
	resp, err := httpClient(req.URL.Hostname()).Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// request makes the request of a probe or hook.
func (t Target) request(ctx context.Context, a *corev1.HTTPGetAction, agent string) (*http.Request, error) {
	port, err := t.port(a.Port)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme = strings.ToLower(string(a.Scheme))
	u.Host = net.JoinHostPort(t.host(a.Host), port)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	setHeaders(req, a.HTTPHeaders, agent)
	return req, nil
}

func setHeaders(req *http.Request, list []corev1.HTTPHeader, agent string) {
	for _, h := range list {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", agent)
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if req.Header.Get("Accept") == "" {
		req.Header.Del("Accept") // it was to be none
	}
}

// httpClient makes a client that keeps no connection, trusts any certificate
// (the probe asks for health, not identity) and follows redirects within the
// host only: one that leads elsewhere counts as an answer.
func httpClient(host string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
			DialContext:        dialer().DialContext,
			DisableKeepAlives:  true,
			DisableCompression: true,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Hostname() != host {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
}

// dialer makes connections that are forgotten a second after their end: probes
// would fill the kernel's tables with those that it remembers for a minute.
func dialer() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) {
			set = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 1})
		})
		return errors.Join(err, set)
	}}
}

func (t Target) tcp(ctx context.Context, a *corev1.TCPSocketAction, timeout time.Duration) (bool, string, error) {
	port, err := t.port(a.Port)
	if err != nil {
		return false, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := dialer().DialContext(ctx, "tcp", net.JoinHostPort(t.host(a.Host), port))
	if err != nil {
		return false, err.Error(), nil
	}
	conn.Close()
	return true, "", nil
}

func (t Target) grpc(ctx context.Context, a *corev1.GRPCAction, timeout time.Duration) (bool, string, error) {
	address := net.JoinHostPort(t.PodIP, strconv.Itoa(int(a.Port)))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithUserAgent(probeAgent),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer().DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return false, "", err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	switch status.Code(err) {
	case codes.OK:
	case codes.Unimplemented:
		return false, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + status.Convert(err).Message(), nil
	case codes.Unavailable:
		return false, fmt.Sprintf("error: failed to connect service at %q: %v", address, err), nil
	case codes.DeadlineExceeded:
		return false, fmt.Sprintf("timeout: health rpc did not complete within %s", timeout), nil
	default:
		return false, "error: health rpc probe failed: " + err.Error(), nil
	}
	if resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return false, "service unhealthy (responded with \"" + resp.GetStatus().String() + "\")", nil
	}
	return true, "service healthy", nil
}
