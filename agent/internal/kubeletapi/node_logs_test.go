package kubeletapi

import (
	"compress/gzip"
	"io"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// TestNodeLogQuery asks for logs as kubectl and an attacker do.
func TestNodeLogQuery(t *testing.T) {
	s := server(t, Settings{Debugging: true, SystemLogs: true, SystemLogQuery: true})
	bin := t.TempDir()
	// The journal knows of one service, and shows how it was asked.
	script := "#!/bin/sh\nif [ \"$1\" = --field=_SYSTEMD_UNIT ]; then echo kubelet.service; exit; fi\nfor a; do echo \"[$a]\"; done\n"
	if err := os.WriteFile(filepath.Join(bin, "journalctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	for name, text := range map[string]string{"plain": "a plain one", "etcd.log": "etcd's", "chrony/chrony.log": "chrony's", "other.service.log": "other's", secret: "hidden"} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(s.LogDir, name)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"planted": secret, "planted.log": secret, "up": "../../../../../../../../etc/passwd", "dir": filepath.Dir(secret),
		"within": filepath.Join(s.LogDir, "plain"), "relative": "chrony/chrony.log"} {
		if err := os.Symlink(to, filepath.Join(s.LogDir, from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(s.LogDir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	h := s.handler()
	const unit = "[--utc]\n[--no-pager]\n[--output=short-precise]\n[--unit=kubelet]\n"
	for _, c := range []struct {
		request string
		code    int
		body    string // all of it, or with a * at its end its beginning
	}{
		{"/logs/?query=kubelet", 200, unit},
		{"/logs/?query=kubelet.service", 200, strings.Replace(unit, "kubelet", "kubelet.service", 1)},
		{"/logs/?query=kubelet&tailLines=3&boot=-1&pattern=a+b&sinceTime=2026-01-02T03:04:05%2B01:00&untilTime=2026-01-03T00:00:00Z", 200,
			"[--utc]\n[--no-pager]\n[--output=short-precise]\n[--since=2026-01-02 02:04:05 UTC]\n[--until=2026-01-03 00:00:00 UTC]\n[--lines=3]\n[--unit=kubelet]\n[--grep=a b]\n[--boot=-1]\n"},
		{"/logs/?query=kubelet&query=etcd", 200, unit + "etcd's"},
		{"/logs/?query=etcd", 200, "etcd's"},
		{"/logs/?query=chrony", 200, "chrony's"},
		{"/logs/?query=plain", 200, "a plain one"},
		{"/logs/?query=kubelets", 200, "\nlog of kubelets: log not found\n"},
		{"/logs/?query=etcd&tailLines=3", 200, "\noptions present and query resolved to log files for [etcd]\n*"},
		{"/logs/?query=/plain", 200, "a plain one"},
		{"/logs/?query=chrony/chrony.log", 200, "chrony's"},
		{"/logs/?query=chrony\\chrony.log", 200, "chrony's"},
		{"/logs/within", 200, "a plain one"},
		{"/logs/relative", 200, "chrony's"},
		{"/logs/", 200, "<!doctype html>*"},
		// Nothing else than logs can be had.
		{"/logs/?query=/../../../../etc/passwd", 404, "*"},
		{"/logs/?query=/planted", 403, "*"},
		{"/logs/?query=planted", 200, "\nlog of planted: permission denied\n"},
		{"/logs/planted.log", 403, "*"},
		{"/logs/up", 403, "*"},
		{"/logs/dir/secret", 403, "*"},
		{"/logs/fifo", 403, "*"},
		{"/logs/?query=fifo", 200, "\nlog of fifo: permission denied\n"},
		{"/logs/?query=..", 406, "*"},
		{"/logs/?query=--root%3Dx", 406, "*"},
		{"/logs/?query=-u", 406, "*"},
		{"/logs/?query=a*", 406, "*"},
		{"/logs/?query=a%20b", 406, "*"},
		{"/logs/?query=" + strings.Repeat("a", 257), 406, "*"},
		{"/logs/?query=kubelet&pattern=--root%3Dx", 200, unit + "[--grep=--root=x]\n"},
		{"/logs/?query=kubelet&pattern=a%00b", 406, "*"},
		{"/logs/?query=kubelet&pattern=(", 406, "*"},
		{"/logs/?query=kubelet&boot=1", 406, "*"},
		{"/logs/?query=kubelet&boot=-1%20--root%3Dx", 400, "*"},
		{"/logs/?query=kubelet&tailLines=100001", 406, "*"},
		{"/logs/?query=kubelet&tailLines=-1", 406, "*"},
		{"/logs/?query=kubelet&tailLines=all", 400, "*"},
		{"/logs/?query=kubelet&sinceTime=yesterday", 400, "*"},
		{"/logs/?query=kubelet&sinceTime=2026-01-03T00:00:00Z&untilTime=2026-01-02T00:00:00Z", 406, "*"},
		{"/logs/?query=a&query=b&query=c&query=d&query=e", 406, "*"},
		{"/logs/?query=kubelet&query=/plain", 406, "*"},
		{"/logs/?query=/etcd.log&query=/plain", 406, "*"},
		{"/logs/?query=/plain&tailLines=1", 406, "*"},
		{"/logs/?query=%20", 400, "*"},
		{"/logs/?tailLines=1", 406, "*"},
		{"/logs/plain?query=kubelet", 406, "*"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", c.request, nil))
		begins, part := strings.CutSuffix(c.body, "*")
		body := w.Body.String()
		if w.Code != c.code || !part && body != c.body || !strings.HasPrefix(body, begins) || strings.Contains(body, "hidden") || strings.Contains(body, "root:") {
			t.Errorf("%s: %d %q, want %d %q", c.request, w.Code, body, c.code, c.body)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/logs/?query=etcd", nil)
	r.Header.Set("Accept-Encoding", "deflate, gzip;q=1.0")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	gz, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(gz); string(text) != "etcd's" || err != nil || w.Header().Get("Content-Encoding") != "gzip" {
		t.Errorf("%q, %v, %v", text, err, w.Header())
	}
}

// FuzzLogQuery: what passes gives journalctl as many arguments as it is to have,
// and none that it was not to have.
func FuzzLogQuery(f *testing.F) {
	f.Add("kubelet", "a", "-1", "5", "2026-01-02T03:04:05Z")
	f.Add("-x", "--root=/", "+1", "0x5", "now")
	f.Fuzz(func(t *testing.T, service, pattern, boot, lines, since string) {
		q, err := parseLogQuery(url.Values{"query": {service}, "pattern": {pattern}, "boot": {boot}, "tailLines": {lines}, "sinceTime": {since}})
		if err != nil || q == nil || q.check() != nil || q.file != "" {
			return
		}
		known := []string{"--utc", "--no-pager", "--output=short-precise"}
		for _, a := range q.arguments(q.services) {
			name, _, _ := strings.Cut(a, "=")
			if !slices.Contains(known, a) && !slices.Contains([]string{"--since", "--lines", "--unit", "--grep", "--boot"}, name) {
				t.Errorf("%q", a)
			}
			if strings.ContainsRune(a, 0) || !utf8.ValidString(service) {
				t.Errorf("%q", a)
			}
		}
		for _, s := range q.services {
			if !filepath.IsLocal(s) || strings.Contains(s, "/") {
				t.Errorf("%q leads out", s)
			}
		}
	})
}

func TestVerbosity(t *testing.T) {
	var set []int
	s := server(t, Settings{Debugging: true, DebugFlags: true, SetVerbosity: func(n int) { set = append(set, n) }})
	for _, c := range []struct {
		method, body string
		code         int
	}{{"PUT", "5", 200}, {"PUT", " 0\n", 200}, {"PUT", "-1", 400}, {"PUT", "", 400}, {"PUT", "lots", 400}, {"PUT", "99999999999999999999", 400}, {"POST", "5", 405}} {
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, "/debug/flags/v", strings.NewReader(c.body)))
		if w.Code != c.code || c.code == 200 && w.Body.String() != "successfully set klog.logging.verbosity to "+strings.TrimSpace(c.body)+"\n" {
			t.Errorf("%s %q: %d %s", c.method, c.body, w.Code, w.Body)
		}
	}
	if !slices.Equal(set, []int{5, 0}) {
		t.Errorf("set: %v", set)
	}
	w := httptest.NewRecorder()
	server(t, Settings{Debugging: true, SetVerbosity: func(int) {}}).handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "PUT", "/debug/flags/v", strings.NewReader("5")))
	if w.Code != 404 {
		t.Errorf("without enableDebugFlagsHandler: %d", w.Code)
	}
}

// TestNodeLogQuerySystemd reads a real journal, of the journal's own service.
func TestNodeLogQuerySystemd(t *testing.T) {
	const unit = "systemd-journald"
	s := server(t, Settings{Debugging: true, SystemLogs: true, SystemLogQuery: true})
	if !slices.Contains(s.journalUnits(t.Context()), unit+".service") {
		t.Skip("needs a machine with systemd: make test-vm-systemd")
	}
	ask := func(more string) string {
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/logs/?query="+unit+more, nil))
		if w.Code != 200 {
			t.Errorf("%s: %d %s", more, w.Code, w.Body)
		}
		return w.Body.String()
	}
	for more, want := range map[string]string{"": "Journal started", "&boot=0": "Journal started", "&pattern=Journal%20start(ed|s)": "Journal started",
		"&sinceTime=2001-01-01T00:00:00Z&untilTime=2002-01-01T00:00:00Z": "-- No entries --", "&pattern=never%20said": "-- No entries --"} {
		if got := ask(more); !strings.Contains(got, want) {
			t.Errorf("%q: no %q in\n%s", more, want, got)
		}
	}
	lines := strings.Split(strings.TrimSpace(ask("&tailLines=1")), "\n")
	if len(lines) > 2 { // older ones say where the journal begins
		t.Errorf("one line: %q", lines)
	}
}
