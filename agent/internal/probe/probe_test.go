package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podstead/cri"
)

// subject is a container whose exec probes answer from a script, a letter a
// probe: + success, - failure, e error, t timeout. After its end all succeed.
type subject struct {
	mu       sync.Mutex
	script   string
	at       []time.Duration
	began    time.Time
	failures []string
}

func (s *subject) exec(context.Context, []string, time.Duration) ([]byte, int32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = append(s.at, time.Since(s.began))
	c := byte('+')
	if s.script != "" {
		c, s.script = s.script[0], s.script[1:]
	}
	switch c {
	case '-':
		return []byte("sick"), 1, nil
	case 'e':
		return nil, 0, errors.New("no exec today")
	case 't':
		return nil, 0, cri.Errorf(codes.DeadlineExceeded, "too slow")
	}
	return nil, 0, nil
}

func (s *subject) watch(t *testing.T, spec corev1.Container, carry *State) *Container {
	spec.Name = "app"
	s.began = time.Now()
	return Watch(t.Context(), Config{
		ID: "c1", Spec: &spec, StartedAt: time.Now(), Carry: carry, Changed: func() {},
		Target: Target{Spec: &spec, Exec: s.exec},
		Failure: func(m string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failures = append(s.failures, m)
		},
	})
}

func probe(delay, period, success, failure int32) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}},
		InitialDelaySeconds: delay, PeriodSeconds: period, TimeoutSeconds: 1, SuccessThreshold: success, FailureThreshold: failure}
}

func TestThresholds(t *testing.T) {
	grace := int64(7)
	for _, c := range []struct {
		what   string
		spec   corev1.Container
		script string
		after  time.Duration
		want   string // started, ready, failed
	}{
		{"no probes", corev1.Container{}, "", 0, "true true "},
		{"readiness before its first success", corev1.Container{ReadinessProbe: probe(5, 10, 1, 3)}, "", time.Second, "true false "},
		{"readiness", corev1.Container{ReadinessProbe: probe(5, 10, 1, 3)}, "", 6 * time.Second, "true true "},
		{"two successes wanted, one there", corev1.Container{ReadinessProbe: probe(0, 10, 2, 3)}, "", time.Second, "true false "},
		{"two successes", corev1.Container{ReadinessProbe: probe(0, 10, 2, 3)}, "", 11 * time.Second, "true true "},
		{"failures below the threshold", corev1.Container{ReadinessProbe: probe(0, 10, 1, 3)}, "+--", 21 * time.Second, "true true "},
		{"failures at the threshold", corev1.Container{ReadinessProbe: probe(0, 10, 1, 3)}, "+---", 31 * time.Second, "true false "},
		{"not in a row", corev1.Container{ReadinessProbe: probe(0, 10, 1, 3)}, "+--+--+", time.Minute, "true true "},
		{"errors say nothing", corev1.Container{ReadinessProbe: probe(0, 10, 1, 1)}, "+eeeeeeeee", 31 * time.Second, "true true "},
		{"a timeout is a failure", corev1.Container{ReadinessProbe: probe(0, 10, 1, 1)}, "+t", 11 * time.Second, "true false "},
		{"liveness", corev1.Container{LivenessProbe: probe(0, 10, 1, 2)}, "+--", 31 * time.Second, "true false Container app failed liveness probe, will be restarted"},
		{"liveness, hardly started", corev1.Container{LivenessProbe: probe(0, 10, 1, 1)}, "-", 9 * time.Second, "true true "},
		{"liveness, after a period", corev1.Container{LivenessProbe: probe(0, 10, 1, 1)}, "-", 11 * time.Second, "true false Container app failed liveness probe, will be restarted"},
		{"liveness, after its delay", corev1.Container{LivenessProbe: probe(15, 10, 1, 1)}, "-", 14 * time.Second, "true true "},
		{"startup not yet", corev1.Container{StartupProbe: probe(0, 10, 1, 3), LivenessProbe: probe(0, 1, 1, 1)}, "--", 15 * time.Second, "false false "},
		{"startup failed", corev1.Container{StartupProbe: probe(0, 10, 1, 3)}, "---", 21 * time.Second, "false false Container app failed startup probe, will be restarted"},
		{"startup, then ready", corev1.Container{StartupProbe: probe(0, 10, 1, 3)}, "-+", 11 * time.Second, "true true "},
		{"startup, then readiness", corev1.Container{StartupProbe: probe(0, 10, 1, 3), ReadinessProbe: probe(0, 10, 1, 1)}, "-+-", 11 * time.Second, "true false "},
	} {
		synctest.Test(t, func(t *testing.T) {
			if c.spec.LivenessProbe != nil {
				c.spec.LivenessProbe.TerminationGracePeriodSeconds = &grace
			}
			s := &subject{script: c.script}
			w := s.watch(t, c.spec, nil)
			time.Sleep(c.after)
			synctest.Wait()
			got := w.State()
			w.Stop()
			if text := fmt.Sprintf("%t %t %s", got.Started, got.Ready, got.Failed); text != c.want {
				t.Errorf("%s: %q, want %q", c.what, text, c.want)
			}
			if (got.Failed != "" && c.spec.LivenessProbe != nil) != (got.Grace == &grace) {
				t.Errorf("%s: grace %v", c.what, got.Grace)
			}
		})
	}
}

func TestPaceAndMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &subject{script: "+-te"}
		w := s.watch(t, corev1.Container{ReadinessProbe: probe(3, 10, 1, 3)}, nil)
		time.Sleep(35 * time.Second)
		synctest.Wait()
		w.Stop()
		var at []int
		for _, d := range s.at {
			at = append(at, int(d/time.Second))
		}
		if want := []int{3, 13, 23, 33, 33}; !slices.Equal(at, want) {
			t.Errorf("probed at %v, want %v (an error is tried again at once)", at, want)
		}
		for i, want := range []string{"Readiness probe failed: sick", "Readiness probe failed: command timed out"} {
			if i >= len(s.failures) || !strings.HasPrefix(s.failures[i], want) {
				t.Errorf("failures %q, want %q", s.failures, want)
			}
		}
	})
}

func TestCarriedStateHoldsUntilAProbeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &subject{script: "-"}
		w := s.watch(t, corev1.Container{StartupProbe: probe(0, 10, 1, 3), ReadinessProbe: probe(0, 10, 1, 1)}, &State{Started: true, Ready: true})
		if got := w.State(); !got.Ready || !got.Started {
			t.Errorf("%+v", got)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if w.State().Ready {
			t.Error("still ready after a failed probe")
		}
		w.Stop()
	})
}

func port(t *testing.T, address string) intstr.IntOrString {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return intstr.FromInt32(int32(n))
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, r.Header.Get("User-Agent"), r.Header.Get("X-A"))
	})
	mux.HandleFunc("/bad", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", 302) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://other.invalid/", 302) })
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 1<<20)) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	for _, c := range []struct {
		server       *httptest.Server
		scheme, path string
		ok           bool
		output       string
	}{
		{plain, "HTTP", "/ok", true, "virtualkube-probe/1.37b"},
		{secure, "HTTPS", "/ok", true, "virtual"},
		{plain, "HTTPS", "/ok", false, "HTTP"},
		{plain, "HTTP", "/ok?a=b", true, ""},
		{plain, "HTTP", "/bad", false, "HTTP probe failed with statuscode: 500"},
		{plain, "HTTP", "/moved", false, "statuscode: 500"},
		{plain, "HTTP", "/away", true, ""},
		{plain, "HTTP", "/big", true, ""},
		{plain, "HTTP", "/slow", false, "deadline exceeded"},
	} {
		u, _ := url.Parse(c.server.URL)
		timeout := 5 * time.Minute
		if c.path == "/slow" {
			timeout = 50 * time.Millisecond
		}
		ok, output, err := Target{PodIP: u.Hostname()}.httpGet(t.Context(), &corev1.HTTPGetAction{Path: c.path, Port: port(t, u.Host),
			Scheme: corev1.URIScheme(c.scheme), HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "virtual"}, {Name: "X-A", Value: "b"}}}, timeout)
		if err != nil || ok != c.ok || !strings.Contains(output, c.output) || len(output) > maxBody {
			t.Errorf("%s %s: %t %.100q %v, want %t %q", c.scheme, c.path, ok, output, err, c.ok, c.output)
		}
	}
}

func TestTCPAndGRPC(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, state := grpc.NewServer(), health.NewServer()
	state.SetServingStatus("sick", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(server, state)
	go server.Serve(listener)
	defer server.Stop()
	at := port(t, listener.Addr().String())
	nobody := intstr.FromInt32(1) // a port that was free may be another's by now
	sick := "sick"
	for _, c := range []struct {
		what   string
		probe  corev1.ProbeHandler
		ok     bool
		output string
	}{
		{"tcp", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: at}}, true, ""},
		{"tcp, nobody there", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: nobody}}, false, "connection refused"},
		{"grpc", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: at.IntVal}}, true, ""},
		{"grpc, sick", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: at.IntVal, Service: &sick}}, false, "NOT_SERVING"},
		{"grpc, nobody there", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: nobody.IntVal}}, false, ""},
		{"port by name", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("web")}}, true, ""},
	} {
		target := Target{PodIP: "127.0.0.1", Spec: &corev1.Container{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: at.IntVal}}}}
		ok, output, err := target.check(t.Context(), &corev1.Probe{ProbeHandler: c.probe, TimeoutSeconds: 60})
		if err != nil || ok != c.ok || !strings.Contains(output, c.output) {
			t.Errorf("%s: %t %q %v", c.what, ok, output, err)
		}
	}
}

// TestHook makes the requests of lifecycle hooks, of which only the way counts,
// not the answer.
func TestHook(t *testing.T) {
	agents := make(chan string, 1)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		agents <- r.Header.Get("User-Agent") + r.Header.Get("Authorization")
		w.WriteHeader(500)
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	for _, c := range []struct {
		server     *httptest.Server
		scheme     corev1.URIScheme
		plain      bool
		authorized string
	}{
		{plain, corev1.URISchemeHTTP, false, "me"},
		{secure, corev1.URISchemeHTTPS, false, "me"},
		{plain, corev1.URISchemeHTTPS, true, ""},
	} {
		u, _ := url.Parse(c.server.URL)
		plain, err := Target{PodIP: u.Hostname()}.Hook(t.Context(), &corev1.HTTPGetAction{Port: port(t, u.Host), Scheme: c.scheme,
			HTTPHeaders: []corev1.HTTPHeader{{Name: "Authorization", Value: "me"}}})
		if err != nil || plain != c.plain {
			t.Errorf("%s to %s: %t %v", c.scheme, c.server.URL, plain, err)
			continue
		}
		if got := <-agents; got != "kube-lifecycle/1.37"+c.authorized {
			t.Errorf("%s to %s: asked as %q", c.scheme, c.server.URL, got)
		}
	}
	secure.Close()
	u, _ := url.Parse(secure.URL)
	if _, err := (Target{PodIP: u.Hostname()}).Hook(t.Context(), &corev1.HTTPGetAction{Port: port(t, u.Host), Scheme: corev1.URISchemeHTTP}); err == nil {
		t.Error("nobody was there, and it is no error")
	}
}

// TestVariablesOfProbes: a command sees what its container's definition has itself.
func TestVariablesOfProbes(t *testing.T) {
	var got []string
	target := Target{
		Spec: &corev1.Container{Env: []corev1.EnvVar{{Name: "PORT", Value: "80"}, {Name: "POD", ValueFrom: &corev1.EnvVarSource{}}}},
		Exec: func(_ context.Context, command []string, _ time.Duration) ([]byte, int32, error) {
			got = command
			return nil, 0, nil
		},
	}
	p := probe(0, 1, 1, 1)
	p.Exec.Command = []string{"get", "$(PORT)", "$(POD)", "$(NONE)", "$$(PORT)"}
	if _, _, err := target.check(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if want := []string{"get", "80", "", "$(NONE)", "$(PORT)"}; !slices.Equal(got, want) {
		t.Errorf("ran %q, want %q", got, want)
	}
}

// TestEndingContainers are asked whether they are ready, and nothing else.
func TestEndingContainers(t *testing.T) {
	for _, c := range []struct {
		what string
		spec corev1.Container
		want int
	}{
		{"liveness", corev1.Container{LivenessProbe: probe(0, 10, 1, 1)}, 1},
		{"startup", corev1.Container{StartupProbe: probe(10, 10, 1, 1)}, 1},
		{"readiness", corev1.Container{ReadinessProbe: probe(10, 10, 1, 1)}, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &subject{script: "-"}
			if c.spec.LivenessProbe != nil {
				s.script = "+-"
			}
			w := s.watch(t, c.spec, nil)
			if c.spec.LivenessProbe == nil {
				c.want--
			} else {
				time.Sleep(15 * time.Second)
			}
			w.Ending()
			time.Sleep(time.Minute)
			synctest.Wait()
			w.Stop()
			if got := w.State().Failed; got != "" || (c.spec.ReadinessProbe == nil) != (len(s.at) == c.want) {
				t.Errorf("%s: probed %d times, failed: %q", c.what, len(s.at), got)
			}
		})
	}
}
