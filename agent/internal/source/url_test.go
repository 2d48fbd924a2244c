package source

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestURL has a server say one thing after another.
func TestURL(t *testing.T) {
	pod := func(name string) string {
		return `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "` + name + `"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}`
	}
	var answer atomic.Value // of func(http.ResponseWriter)
	say := func(text string) { answer.Store(func(w http.ResponseWriter) { fmt.Fprint(w, text) }) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Who") != "me" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		answer.Load().(func(http.ResponseWriter))(w)
	}))
	defer server.Close()
	decoder, err := NewDecoder("node1")
	if err != nil {
		t.Fatal(err)
	}
	keep := filepath.Join(t.TempDir(), "kept")
	start := func(header http.Header) (next func() string, stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		out := make(chan []File)
		done := make(chan error, 1)
		u := &URL{Address: server.URL, Header: header, Period: time.Millisecond, KeepFile: keep, Decoder: decoder, Log: slog.New(slog.DiscardHandler)}
		go func() { done <- u.Run(ctx, out) }()
		next = func() string {
			t.Helper()
			select {
			case files := <-out:
				var text []string
				for _, o := range files[0].Objects {
					text = append(text, o.Key())
				}
				if files[0].Err != nil {
					text = append(text, "error: "+files[0].Err.Error())
				}
				return strings.Join(text, " ")
			case <-time.After(5 * time.Minute):
				t.Fatal("no news")
			}
			return ""
		}
		return next, func() { cancel(); <-done }
	}
	me := http.Header{"X-Who": {"me"}}
	expect := func(got, want string) {
		t.Helper()
		if !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%q, want %q", got, want)
		}
	}
	say(pod("a"))
	next, stop := start(nil)
	expect(next(), "error: the server answers 403")
	stop()
	next, stop = start(me)
	expect(next(), "Pod default/a")
	say(`{"apiVersion": "v1", "kind": "PodList", "items": [` + pod("b") + "," + pod("c") + "]}")
	expect(next(), "Pod default/b Pod default/c")
	for _, bad := range []string{"", "{", `{"kind": "Job"}`, strings.Repeat(" ", maxManifest+1)} {
		say(bad)
		expect(next(), "Pod default/b Pod default/c error: ")
	}
	stop()
	next, stop = start(me)
	expect(next(), "Pod default/b Pod default/c error: more than")
	say(pod("d"))
	expect(next(), "Pod default/d")
	stop()
}
