package kubeletapi

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestZPages: /statusz and /flagz are text, or the object that a client asks for.
func TestZPages(t *testing.T) {
	s := server(t, Settings{Debugging: true, Profiling: true, Flags: map[string]string{"state": "/var/lib/podstead", "config": "/k.yaml"}})
	s.Version, s.Began = "v1.2", time.Now().Add(-time.Hour)
	const object = "application/json;g=config.k8s.io;as="
	for _, c := range []struct {
		path, accept string
		code         int
		body         []string // parts of it
	}{
		{"/statusz", "", 200, []string{"\nkubelet statusz\n", "\nUp: 1 hr 00 min 0", "\nBinary version: v1.2\n", "\nPaths: /allocatedPods /attach ", " /debug ", " /stats\n"}},
		{"/statusz", "*/*", 200, []string{"kubelet statusz"}},
		{"/statusz", "text/html, text/plain;q=0.9", 200, []string{"kubelet statusz"}},
		{"/statusz", object + "Statusz;v=v1beta1", 200, []string{`"kind":"Statusz","apiVersion":"config.k8s.io/v1beta1"`, `"binaryVersion":"v1.2","paths":["/allocatedPods","/attach"`}},
		{"/statusz", "application/yaml, " + object + "Statusz;v=v1alpha1", 200, []string{`config.k8s.io/v1alpha1`}},
		{"/statusz", object + "Statusz;v=v1", 406, []string{"as=Statusz"}},
		{"/statusz", object + "Flagz;v=v1beta1", 406, nil},
		{"/statusz", "application/json", 406, nil},
		{"/statusz", ";;;", 406, nil},
		{"/flagz", "", 200, []string{"\nkubelet flagz\n", "config=/k.yaml\nstate=/var/lib/podstead\n"}},
		{"/flagz", object + "Flagz;v=v1beta1", 200, []string{`"flags":{"config":"/k.yaml","state":"/var/lib/podstead"}`}},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", c.path, nil)
		r.Header.Set("Accept", c.accept)
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, r)
		if w.Code != c.code {
			t.Errorf("%s as %q: %d, want %d", c.path, c.accept, w.Code, c.code)
		}
		for _, part := range c.body {
			if !strings.Contains(w.Body.String(), part) {
				t.Errorf("%s as %q has no %q:\n%s", c.path, c.accept, part, w.Body)
			}
		}
		if deprecated := strings.Contains(c.accept, "v1alpha1"); deprecated != (w.Header().Get("Warning") != "") {
			t.Errorf("%s as %q: warning %q", c.path, c.accept, w.Header().Get("Warning"))
		}
	}
}

// TestSLIs: what /healthz found is counted.
func TestSLIs(t *testing.T) {
	s := server(t, Settings{})
	h := s.readOnly()
	get := func(method, path string) string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return w.Body.String()
	}
	get("GET", "/healthz")
	get("GET", "/healthz")
	got := get("GET", "/metrics/slis")
	for _, want := range []string{`kubernetes_healthcheck{name="syncloop",type="healthz"} 1`, `kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 2`, "process_start_time_seconds "} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %s in\n%s", want, got)
		}
	}
	if got := get("DELETE", "/metrics/slis"); got != "metrics reset\n" {
		t.Errorf("reset: %q", got)
	}
	if got := get("GET", "/metrics/slis"); strings.Contains(got, "kubernetes_healthcheck") {
		t.Errorf("after the reset:\n%s", got)
	}
}
