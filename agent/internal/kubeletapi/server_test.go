package kubeletapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/fsusage"
	"podstead/agent/internal/metric"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/stats"
	"podstead/agent/internal/volume"
	"podstead/cri"
)

// fake is a runtime with one container.
type fake struct{ cri.Runtime }

func (fake) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	u := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
	cpu := &runtimeapi.CpuUsage{Timestamp: 1e9, UsageCoreNanoSeconds: u(2.5e9)}
	memory := &runtimeapi.MemoryUsage{Timestamp: 1e9, WorkingSetBytes: u(4096)}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: "s", Labels: map[string]string{observe.LabelPodUID: "u1"}},
		Linux: &runtimeapi.LinuxPodSandboxStats{Cpu: cpu, Memory: memory, Process: &runtimeapi.ProcessUsage{ProcessCount: u(3)},
			Containers: []*runtimeapi.ContainerStats{{
				Attributes: &runtimeapi.ContainerAttributes{Id: "c1", Metadata: &runtimeapi.ContainerMetadata{Name: "app"}},
				Cpu:        cpu, Memory: memory, Swap: &runtimeapi.SwapUsage{SwapUsageBytes: u(1), SwapAvailableBytes: u(9)},
			}}},
	}}}, nil
}

func (fake) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: "c1", CreatedAt: 7e9,
		Metadata: &runtimeapi.ContainerMetadata{Name: "app"}, Image: &runtimeapi.ImageSpec{Image: "img"}, Labels: map[string]string{observe.LabelPodUID: "u1"}}}}, nil
}

func (fake) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}

func (fake) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: []*runtimeapi.MetricDescriptor{
		{Name: "container_last_seen", Help: "h", LabelKeys: []string{"id"}}}}, nil
}

func (fake) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	one := &runtimeapi.Metric{Name: "container_last_seen", LabelValues: []string{"c1"}, Value: &runtimeapi.UInt64Value{Value: 5}}
	odd := &runtimeapi.Metric{Name: "container_last_seen", LabelValues: []string{"c1", "too many"}}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: []*runtimeapi.PodSandboxMetrics{{ContainerMetrics: []*runtimeapi.ContainerMetrics{{
		Metrics: []*runtimeapi.Metric{one, odd, {Name: "unannounced"}}}}}}}, nil
}

func (fake) ExecSync(_ context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	resp := &runtimeapi.ExecSyncResponse{Stdout: []byte(fmt.Sprint(r.ContainerId, r.Cmd))}
	if r.Cmd[0] == "false" {
		resp.ExitCode = 3
	}
	return resp, nil
}

// server has one pod; what the agent's API is asked for is answered with the
// request.
func server(t *testing.T, s Settings) *Server {
	pods := func() []*corev1.Pod {
		return []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u1", Annotations: map[string]string{"kubernetes.io/config.source": "file"}},
			Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "data"}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{
				{Name: "app", ContainerID: "x://c1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}}}}
	}
	out, err := New(Config{
		Settings: s, NodeName: "n1", Dir: t.TempDir(), LogDir: t.TempDir(), Checkpoints: t.TempDir(), Pods: pods, Runtime: fake{},
		API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s?%s", r.Method, r.URL.Path, r.URL.RawQuery)
		}),
		Healthy: func(context.Context) error { return nil },
		Stats: &stats.Source{Runtime: fake{}, Node: "n1", Pods: pods, NodeFs: t.TempDir(),
			Logs: func(*corev1.Pod, string) string { return t.TempDir() },
			Volumes: func(context.Context, []*corev1.Pod) map[string]map[string]volume.Place {
				return map[string]map[string]volume.Place{"u1": {"data": {Path: "/data", Claim: "disk"}}}
			},
			Ask: func(context.Context, volume.Place) (fsusage.Usage, error) {
				return fsusage.Usage{Capacity: 100, Available: 60, Used: 30, Inodes: 10, InodesFree: 7, InodesUsed: 3}, nil
			}},
		Metrics: metric.New("n1", "v1", 2, pods), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPaths(t *testing.T) {
	s := server(t, Settings{Debugging: true, SystemLogs: true, Profiling: true, Configuration: map[string]string{"kind": "x"}})
	if err := os.WriteFile(filepath.Join(s.LogDir, "syslog"), []byte("a line"), 0o644); err != nil {
		t.Fatal(err)
	}
	full, readOnly, health := s.handler(), s.readOnly(), s.healthMux()
	off := server(t, Settings{}).handler()
	for _, c := range []struct {
		h       http.Handler
		request string
		code    int
		body    string // part of it
	}{
		{full, "GET /healthz", 200, "ok"},
		{full, "GET /pods", 200, `"uid":"u1"`},
		{full, "POST /pods", 405, ""},
		{full, "GET /runningpods/", 200, `"containers":[{"name":"app","image":"img"`},
		{full, "GET /stats/summary", 200, `"process_stats":{"process_count":3}`},
		{full, "GET /stats/summary?only_cpu_and_memory=true", 200, `"usageCoreNanoSeconds":2500000000`},
		{full, "GET /metrics", 200, "kubelet_running_pods 1\n"},
		{full, "GET /metrics", 200, `kubelet_desired_pods{static="true"} 1` + "\n"},
		{full, "GET /metrics", 200, `kubelet_volume_stats_capacity_bytes{namespace="ns",persistentvolumeclaim="disk"} 100` + "\n"},
		{full, "GET /metrics", 200, `kubelet_volume_stats_available_bytes{namespace="ns",persistentvolumeclaim="disk"} 60` + "\n"},
		{full, "GET /metrics", 200, `kubelet_volume_stats_used_bytes{namespace="ns",persistentvolumeclaim="disk"} 30` + "\n"},
		{full, "GET /metrics", 200, `kubelet_volume_stats_inodes{namespace="ns",persistentvolumeclaim="disk"} 10` + "\n"},
		{full, "GET /metrics", 200, `kubelet_volume_stats_inodes_free{namespace="ns",persistentvolumeclaim="disk"} 7` + "\n"},
		{full, "GET /metrics", 200, `kubelet_volume_stats_inodes_used{namespace="ns",persistentvolumeclaim="disk"} 3` + "\n"},
		{full, "GET /stats/summary", 200, `"name":"data","pvcRef":{"name":"disk","namespace":"ns"}`},
		{full, "GET /metrics/resource", 200, `container_cpu_usage_seconds_total{container="app",namespace="ns",pod="p"} 2.5 1000` + "\n"},
		{full, "GET /metrics/resource", 200, `container_start_time_seconds{container="app",namespace="ns",pod="p"} 7` + "\n"},
		{full, "GET /metrics/resource", 200, `container_swap_limit_bytes{container="app",namespace="ns",pod="p"} 10` + "\n"},
		{full, "GET /metrics/resource", 200, "resource_scrape_error 0\n"},
		{full, "GET /metrics/resource", 200, "node_memory_working_set_bytes "},
		{full, "GET /metrics/cadvisor", 200, `container_last_seen{id="c1"} 5` + "\n"},
		{full, "GET /metrics/probes", 200, ""},
		{full, "GET /containerLogs/ns/p/app?tailLines=5&follow=true", 200, "GET /api/v1/namespaces/ns/pods/p/log?container=app&follow=true&tailLines=5"},
		{full, "POST /exec/ns/p/app?command=a&command=b&input=1&output=1&tty=0", 200, "POST /api/v1/namespaces/ns/pods/p/exec?command=a&command=b&container=app&stdin=true&stdout=true"},
		{full, "GET /exec/ns/p/u1/app?command=a&error=1", 200, "/exec?command=a&container=app&stderr=true"},
		{full, "GET /exec/ns/p/other/app?command=a", 404, "pod does not exist"},
		{full, "GET /exec/ns/none/app?command=a", 404, "pod does not exist"},
		{full, "POST /attach/ns/p/app?output=1&tty=1", 200, "/attach?container=app&stdout=true&tty=true"},
		{full, "POST /portForward/ns/p?port=80", 200, "/portforward?ports=80"},
		{full, "POST /portForward/ns/p/u1", 200, "/portforward?"},
		{full, "POST /run/ns/p/app?cmd=echo+hi", 200, "c1[echo hi]"},
		{full, "POST /run/ns/p/app?cmd=false", 500, "exit code 3"},
		{full, "POST /run/ns/p/none?cmd=false", 404, "container not found"},
		{full, "GET /run/ns/p/app?cmd=echo", 405, ""},
		{full, "POST /checkpoint/ns/p/app", 501, "makes no checkpoints"},
		{full, "GET /configz", 200, `{"kubeletconfig":{"kind":"x"}}`},
		{full, "GET /logs/syslog", 200, "a line"},
		{full, "GET /logs/..%2fetc%2fpasswd", 404, ""},
		{full, "GET /debug/pprof/cmdline", 200, ""},
		{full, "POST /pods", 405, ""},
		{full, "DELETE /metrics", 405, ""},
		{full, "GET /metrics/slis", 200, ""},
		{readOnly, "GET /metrics/slis", 200, ""},
		{full, "GET /debug/flags/v", 404, ""},
		{full, "GET /statusz", 200, "kubelet statusz"},
		{full, "GET /flagz", 200, "kubelet flagz"},
		{readOnly, "GET /statusz", 404, ""},
		{readOnly, "GET /flagz", 404, ""},
		{off, "GET /statusz", 404, ""},
		{full, "GET /allocatedPods", 200, `"uid":"u1"`},
		{full, "POST /allocatedPods", 405, ""},
		{readOnly, "GET /allocatedPods", 404, ""},
		{full, "GET /logs/?query=syslog", 200, "syslog"}, // a directory: queries are off
		{off, "GET /containerLogs/ns/p/app", 405, "disabled"},
		{off, "POST /exec/ns/p/app?command=a", 405, "disabled"},
		{off, "GET /pods", 200, ""},
		{readOnly, "GET /pods", 200, ""},
		{readOnly, "GET /metrics/resource", 200, ""},
		{readOnly, "POST /exec/ns/p/app?command=a", 404, ""},
		{readOnly, "GET /containerLogs/ns/p/app", 404, ""},
		{readOnly, "POST /checkpoint/ns/p/app", 404, ""},
		{readOnly, "GET /configz", 404, ""},
		{health, "GET /healthz/syncloop", 200, "ok"},
		{health, "GET /pods", 404, ""},
	} {
		method, url, _ := strings.Cut(c.request, " ")
		w := httptest.NewRecorder()
		c.h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, url, nil))
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s: %d %s, want %d %s", c.request, w.Code, w.Body, c.code, c.body)
		}
	}
	s.Healthy = func(context.Context) error { return errors.New("stuck") }
	w := httptest.NewRecorder()
	health.ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 500 || !strings.Contains(w.Body.String(), "stuck") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// authority makes certificates of clients.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a authority) client(t *testing.T, name string, usage x509.ExtKeyUsage, groups ...string) []tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
}

func TestWhoMayAsk(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, ours.pem, 0o644); err != nil {
		t.Fatal(err)
	}
	client := x509.ExtKeyUsageClientAuth
	admin, user := ours.client(t, "admin", client, "system:masters"), ours.client(t, "prometheus", client, "monitoring")
	for _, c := range []struct {
		name     string
		settings Settings
		with     []tls.Certificate
		code     int
	}{
		{"nobody", Settings{ClientCAFile: ca, AlwaysAllow: true}, nil, 401},
		{"admin", Settings{ClientCAFile: ca}, admin, 200},
		{"user", Settings{ClientCAFile: ca}, user, 403},
		{"user, all are allowed", Settings{ClientCAFile: ca, AlwaysAllow: true}, user, 200},
		{"of another authority", Settings{ClientCAFile: ca, AlwaysAllow: true, Anonymous: true}, theirs.client(t, "admin", client, "system:masters"), 401},
		{"a server's certificate", Settings{ClientCAFile: ca, AlwaysAllow: true}, ours.client(t, "admin", x509.ExtKeyUsageServerAuth, "system:masters"), 401},
		{"no name", Settings{ClientCAFile: ca, AlwaysAllow: true}, ours.client(t, "", client, "system:masters"), 401},
		{"no authority is known", Settings{AlwaysAllow: true}, admin, 401},
		{"anonymous", Settings{Anonymous: true}, nil, 403},
		{"anonymous, all are allowed", Settings{Anonymous: true, AlwaysAllow: true}, nil, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.settings.Debugging = true
			s := server(t, c.settings)
			srv := httptest.NewUnstartedServer(s.authenticated(s.handler()))
			srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
			srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
			srv.StartTLS()
			defer srv.Close()
			h := srv.Client()
			h.Transport.(*http.Transport).TLSClientConfig.Certificates = c.with
			resp, err := h.Get(srv.URL + "/pods")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != c.code {
				body, _ := io.ReadAll(resp.Body)
				t.Errorf("%d %s, want %d", resp.StatusCode, body, c.code)
			}
		})
	}
}

// TestAuthorityIsReadAgain: a new file counts at the next request.
func TestAuthorityIsReadAgain(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, first.pem, 0o644); err != nil {
		t.Fatal(err)
	}
	c := &clientCA{file: file}
	before, err := c.roots()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", append(first.pem, second.pem...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	after, err := c.roots()
	if err != nil || after.Equal(before) {
		t.Errorf("the file is not read again: %v", err)
	}
}

func TestCertificateOfOurOwn(t *testing.T) {
	dir := t.TempDir()
	first, err := selfSigned(dir, "n1", []string{"10.1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := first.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n1", "localhost", "127.0.0.1", "10.1.2.3"} {
		if err := pair.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	again, err := selfSigned(dir, "n1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if same, _ := again.get(nil); string(same.Leaf.Raw) != string(pair.Leaf.Raw) {
		t.Error("a certificate that holds was made anew")
	}
	if renamed, err := selfSigned(dir, "n2", nil); err != nil {
		t.Error(err)
	} else if other, _ := renamed.get(nil); other.Leaf.VerifyHostname("n2") != nil {
		t.Error("the certificate is for the old name")
	}
	if st, _ := os.Stat(filepath.Join(dir, "kubelet.key")); st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v", st.Mode())
	}
}

// TestRequestsAreCounted by what they ask for, and strangers' paths make no labels.
func TestRequestsAreCounted(t *testing.T) {
	s := server(t, Settings{Debugging: true})
	h := s.counted("readwrite", s.handler())
	for range 2 {
		for _, request := range []string{"GET /metrics/resource", "GET /containerLogs/ns/p/app", "POST /exec/ns/p/app?command=a", "GET /x/y", "GET /z", "BREW /pods"} {
			method, url, _ := strings.Cut(request, " ")
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), method, url, nil))
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	var got []string
	for line := range strings.Lines(w.Body.String()) {
		if rest, ok := strings.CutPrefix(line, "kubelet_http_requests_total"); ok {
			got = append(got, strings.TrimSpace(rest))
		}
	}
	want := []string{
		`{long_running="false",method="GET",path="containerLogs",server_type="readwrite"} 2`,
		`{long_running="false",method="GET",path="metrics",server_type="readwrite"} 1`,
		`{long_running="false",method="GET",path="metrics/resource",server_type="readwrite"} 2`,
		`{long_running="false",method="GET",path="other",server_type="readwrite"} 4`,
		`{long_running="false",method="other",path="pods",server_type="readwrite"} 2`,
		`{long_running="true",method="POST",path="exec",server_type="readwrite"} 2`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("counted:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if body := w.Body.String(); !strings.Contains(body, `kubelet_http_inflight_requests{long_running="true",method="POST",path="exec",server_type="readwrite"} 0`) {
		t.Error("a request that is over is still answered")
	}
}
