// Package kubeletapi serves the kubelet's HTTP API, so that what scrapes and asks
// kubelets works here, too: pods, logs, exec, statistics and metrics on an
// authenticated port, health on another, and figures alone on the read-only port,
// if it is asked for. What a request does to pods is done by the agent's own API
// (package api); this one translates.
//
// There is no API server to ask for reviews of tokens and access: clients are
// known by certificates, and authorization.mode Webhook lets in whom an API
// server would not be asked about, the group system:masters.
package kubeletapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/metric"
	"podstead/agent/internal/stats"
	"podstead/cri"
)

// Settings are those of a KubeletConfiguration. Ports of 0 are not served.
type Settings struct {
	Address               string
	Port, ReadOnlyPort    int
	HealthzAddress        string
	HealthzPort           int
	ClientCAFile          string // "": nobody is known by a certificate
	Anonymous             bool
	AlwaysAllow           bool // else system:masters alone
	CertFile, KeyFile     string
	CipherSuites          []uint16
	Curves                []tls.CurveID
	MinVersion            uint16
	Debugging             bool // logs, exec, attach, port-forward and the like
	Profiling, SystemLogs bool // if Debugging, too
	// SystemLogQuery: the logs of services can be asked for, too, if SystemLogs.
	SystemLogQuery bool
	// DebugFlags: SetVerbosity, if there is one, can be called; it takes a level of
	// klog's.
	DebugFlags   bool
	SetVerbosity func(int)
	// Contention: the profile of blocking is made, too, of the whole program.
	Contention    bool
	Configuration any               // what /configz shows
	Flags         map[string]string // what /flagz shows
	// Lenient: what is wrong with certificates is logged, and the API left out.
	Lenient bool
}

// Config of a Server.
type Config struct {
	Settings
	NodeName string
	Version  string    // of the program
	Began    time.Time // when it was started
	Addrs    []string  // of the node, for a certificate of our own
	Dir      string    // for that certificate
	LogDir   string    // that /logs shows
	// Checkpoints is the directory for them.
	Checkpoints string
	API         http.Handler
	Healthy     func(context.Context) error
	Pods        func() []*corev1.Pod
	Runtime     cri.Runtime
	Labels      map[string]string // of this agent's pods in the runtime
	Stats       *stats.Source
	Metrics     *metric.Metrics
	Log         *slog.Logger
}

// Server serves the API.
type Server struct {
	Config
	certificates *certificates
	clients      *clientCA

	mu    sync.Mutex
	addrs map[string]net.Addr
}

// New reads the certificates. Errors name the field.
func New(cfg Config) (*Server, error) {
	s := &Server{Config: cfg, addrs: map[string]net.Addr{}}
	if cfg.ClientCAFile != "" {
		s.clients = &clientCA{file: cfg.ClientCAFile}
		if _, err := s.clients.roots(); err != nil {
			return nil, fmt.Errorf("authentication.x509.clientCAFile: %w", err)
		}
	}
	if cfg.Port == 0 {
		return s, nil
	}
	s.certificates = &certificates{cert: cfg.CertFile, key: cfg.KeyFile}
	if cfg.CertFile == "" {
		var err error
		if s.certificates, err = selfSigned(cfg.Dir, cfg.NodeName, cfg.Addrs); err != nil {
			return nil, fmt.Errorf("certificate of the kubelet's API: %w", err)
		}
	}
	if _, err := s.certificates.get(nil); err != nil {
		return nil, fmt.Errorf("tlsCertFile: %w", err)
	}
	return s, nil
}

// Run serves until ctx ends. A port that cannot be had is logged and tried
// again: pods do not wait for it.
func (s *Server) Run(ctx context.Context) {
	if s.Debugging && s.Profiling && s.Contention {
		runtime.SetBlockProfileRate(1)
		defer runtime.SetBlockProfileRate(0)
	}
	var wg sync.WaitGroup
	serve := func(name, address string, port int, h http.Handler, secure bool) {
		if port != 0 {
			wg.Go(func() { s.serve(ctx, name, net.JoinHostPort(address, strconv.Itoa(max(port, 0))), h, secure) })
		}
	}
	serve("port", s.Address, s.Port, s.counted("readwrite", s.authenticated(s.handler())), true)
	serve("readOnlyPort", s.Address, s.ReadOnlyPort, s.counted("readonly", s.readOnly()), false)
	serve("healthzPort", s.HealthzAddress, s.HealthzPort, s.healthMux(), false)
	wg.Wait()
}

func (s *Server) serve(ctx context.Context, name, address string, h http.Handler, secure bool) {
	const again = 5 * time.Second
	last := ""
	for {
		err := s.serveOnce(ctx, name, address, h, secure)
		if ctx.Err() != nil {
			return
		}
		if err.Error() != last {
			s.Log.Error("the kubelet's API is not served, it is tried again every few seconds", "field", name, "address", address, "error", err)
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

func (s *Server) serveOnce(ctx context.Context, name, address string, h http.Handler, secure bool) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.addrs[name] = l.Addr()
	s.mu.Unlock()
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second, MaxHeaderBytes: 1 << 20,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug), // strangers cause these
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if !secure {
		return srv.Serve(l)
	}
	srv.TLSConfig = &tls.Config{
		MinVersion: s.MinVersion, CipherSuites: s.CipherSuites, CurvePreferences: s.Curves,
		ClientAuth: tls.RequestClientCert, GetCertificate: s.certificates.get,
		NextProtos: []string{"http/1.1"}, // SPDY and WebSocket take the connection over
	}
	return srv.ServeTLS(l, "", "")
}

// Addr is where the server of a field ("port") listens, nil if it does not yet.
func (s *Server) Addr(name string) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs[name]
}

// user is who makes a request.
type user struct {
	name   string
	groups []string
}

// authenticated lets requests through that may be made.
func (s *Server) authenticated(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := s.who(r)
		if err != nil {
			s.Log.Debug("request to the kubelet's API refused", "from", r.RemoteAddr, "path", r.URL.Path, "error", err)
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		if !s.may(u) {
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, path=%s)", u.name, r.Method, r.URL.Path), http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// who finds out by the client's certificate. One that does not hold is no
// anonymous request.
func (s *Server) who(r *http.Request) (user, error) {
	if s.clients != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		roots, err := s.clients.roots()
		if err != nil {
			return user{}, err
		}
		between := x509.NewCertPool()
		for _, c := range r.TLS.PeerCertificates[1:] {
			between.AddCert(c)
		}
		leaf := r.TLS.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			return user{}, err
		}
		if leaf.Subject.CommonName == "" {
			return user{}, errors.New("the certificate has no common name")
		}
		return user{leaf.Subject.CommonName, leaf.Subject.Organization}, nil
	}
	if !s.Anonymous {
		return user{}, errors.New("no credentials that can be checked here")
	}
	return user{"system:anonymous", []string{"system:unauthenticated"}}, nil
}

func (s *Server) may(u user) bool {
	if s.AlwaysAllow {
		return true
	}
	for _, g := range u.groups {
		if g == "system:masters" {
			return true
		}
	}
	return false
}

// clientCA is the file of authorities, read again when it changes.
type clientCA struct {
	file string

	mu   sync.Mutex
	seen os.FileInfo
	pool *x509.CertPool
}

func (c *clientCA) roots() (*x509.CertPool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st, err := os.Stat(c.file)
	if err != nil {
		return nil, err
	}
	if same(c.seen, st) {
		return c.pool, nil
	}
	data, err := os.ReadFile(c.file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s: there is no certificate in it", c.file)
	}
	c.seen, c.pool = st, pool
	return pool, nil
}

func same(a, b os.FileInfo) bool {
	return a != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
