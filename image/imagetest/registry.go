package imagetest

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Registry serves images on loopback over plain http until the test ends, and
// returns its "127.0.0.1:PORT". Keys are "repository:tag" ("library/busybox:1").
func Registry(t testing.TB, images map[string]Image) string {
	t.Helper()
	s := httptest.NewServer(Handler(t, images, nil))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// PrivateRegistry is a Registry for one user.
func PrivateRegistry(t testing.TB, images map[string]Image, username, password string) string {
	t.Helper()
	h := Handler(t, images, nil)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != username || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// Handler is a registry that holds the images, and under "repository:tag"
// also the indexes, for servers that behave otherwise.
func Handler(t testing.TB, images map[string]Image, indexes map[string]Blob) http.Handler {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	for ref, img := range images {
		repo, tag, ok := strings.Cut(ref, ":")
		if !ok {
			t.Fatalf("%q is not repository:tag", ref)
		}
		for _, b := range append([]Blob{img.Config}, img.Layers...) {
			Push(t, h, repo, b)
		}
		PushManifest(t, h, repo, img.Manifest.Digest(), img.Manifest)
		PushManifest(t, h, repo, tag, img.Manifest)
	}
	for ref, b := range indexes {
		repo, tag, _ := strings.Cut(ref, ":")
		PushManifest(t, h, repo, b.Digest(), b)
		PushManifest(t, h, repo, tag, b)
	}
	return h
}

// Push uploads a blob.
func Push(t testing.TB, h http.Handler, repo string, b Blob) {
	t.Helper()
	do(t, h, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+b.Digest(), b)
}

// PushManifest uploads a manifest or index under a tag or digest.
func PushManifest(t testing.TB, h http.Handler, repo, ref string, b Blob) {
	t.Helper()
	do(t, h, http.MethodPut, "/v2/"+repo+"/manifests/"+ref, b)
}

func do(t testing.TB, h http.Handler, method, path string, b Blob) {
	t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(b.Data))
	r.Header.Set("Content-Type", b.MediaType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code >= 300 {
		t.Fatal(fmt.Errorf("%s %s: %d %s", method, path, w.Code, w.Body))
	}
}
