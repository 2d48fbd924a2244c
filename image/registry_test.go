package image_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podstead/image"
	"podstead/image/imagetest"
)

// randomImage has one layer that does not compress.
func randomImage(t testing.TB, size int) imagetest.Image {
	t.Helper()
	data := make([]byte, size)
	rand.Read(data)
	return imagetest.New(t, imagetest.Config{},
		imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "random", Data: data}), Compression: imagetest.Gzip})
}

func isBlob(r *http.Request, b imagetest.Blob) bool {
	return strings.HasSuffix(r.URL.Path, "/blobs/"+b.Digest())
}

// hostsFile writes certs.d/HOST/hosts.toml and returns certs.d.
func hostsFile(t testing.TB, host, content string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, host), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func withCerts(t testing.TB, certs string) *image.Store {
	return openStore(t, image.Config{Dir: filepath.Join(t.TempDir(), "images"), CertsDir: certs})
}

func TestAuth(t *testing.T) {
	ctx := testContext(t)
	img := smallImage(t, "a")
	next := imagetest.Handler(t, map[string]imagetest.Image{"team/app:1": img}, nil)
	var tokens atomic.Int64
	tokenServer := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		user, pass, _ := r.BasicAuth()
		ok := user == "me" && pass == "secret" || r.Form.Get("username") == "me" && r.Form.Get("password") == "secret" ||
			r.Form.Get("refresh_token") == "identity"
		if !ok || r.Form.Get("scope") != "repository:team/app:pull" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		tokens.Add(1)
		json.NewEncoder(w).Encode(map[string]any{"token": "t0ken", "access_token": "t0ken", "expires_in": 300})
	}))
	guard := func(want, challenge string) string {
		return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != want {
				w.Header().Set("WWW-Authenticate", challenge)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		}))
	}
	basic := guard("Basic bWU6c2VjcmV0", `Basic realm="x"`)
	bearer := guard("Bearer t0ken", fmt.Sprintf(`Bearer realm="http://%s/token",service="s"`, tokenServer))
	me := image.Auth{Username: "me", Password: "secret"}
	for _, c := range []struct {
		name, host string
		auth       image.Auth
		reason     string
	}{
		{"basic", basic, me, ""},
		{"basic, wrong", basic, image.Auth{Username: "me", Password: "wrong"}, image.ReasonUnauthorized},
		{"basic, none", basic, image.Auth{}, image.ReasonUnauthorized},
		{"bearer", bearer, me, ""},
		{"bearer, wrong", bearer, image.Auth{Username: "me", Password: "wrong"}, image.ReasonUnauthorized},
		{"bearer, none", bearer, image.Auth{}, image.ReasonUnauthorized},
		{"identity token", bearer, image.Auth{IdentityToken: "identity"}, ""},
		{"registry token", bearer, image.Auth{RegistryToken: "t0ken"}, ""},
		{"for this server", basic, image.Auth{Username: "me", Password: "secret", ServerAddress: "http://" + basic + "/v2/"}, ""},
		{"for another server", basic, image.Auth{Username: "me", Password: "secret", ServerAddress: "quay.io"}, image.ReasonUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := newStore(t).Pull(ctx, c.host+"/team/app:1", c.auth)
			if c.reason == "" && err != nil {
				t.Fatal(err)
			}
			if c.reason != "" {
				wantReason(t, err, c.reason)
			}
			if strings.Contains(fmt.Sprint(err), "secret") || strings.Contains(fmt.Sprint(err), "wrong") {
				t.Errorf("error tells the password: %v", err)
			}
		})
	}
}

// A blob may lie on another host. That one learns no credential and no header
// that was configured for the registry.
func TestRedirectToAnotherHost(t *testing.T) {
	ctx := testContext(t)
	img := randomImage(t, 1<<16)
	var leaked []string
	other := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range []string{"Authorization", "X-Configured", "Cookie", "Referer"} {
			if v := r.Header.Get(h); v != "" {
				leaked = append(leaked, h+": "+v)
			}
		}
		w.Write(img.Layers[0].Data)
	}))
	h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil)}
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" || r.Header.Get("X-Configured") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if isBlob(r, img.Layers[0]) {
			http.Redirect(w, r, "http://"+other+"/storage?signature=x", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	addr := serve(t, h)
	host, port, _ := strings.Cut(addr, ":")
	s := withCerts(t, hostsFile(t, host+"_"+port+"_", fmt.Sprintf("server = \"http://%s\"\n[header]\nx-configured = \"1\"\n", addr)))
	if _, err := s.Pull(ctx, addr+"/app:1", image.Auth{Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	if len(leaked) > 0 {
		t.Errorf("the other host got %q", leaked)
	}
}

// TestSignatureIsNoNews: the query of a storage's URL is a credential, and
// errors end in logs and events.
func TestSignatureIsNoNews(t *testing.T) {
	img := randomImage(t, 1<<16)
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil)}
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r, img.Layers[0]) {
			http.Redirect(w, r, down.URL+"/storage?signature=secret", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	_, err := newStore(t).Pull(testContext(t), serve(t, h)+"/app:1", image.Auth{})
	if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), down.Listener.Addr().String()) {
		t.Errorf("error %v", err)
	}
}

func TestMirrors(t *testing.T) {
	ctx := testContext(t)
	img := randomImage(t, 1<<16)
	good := imagetest.Handler(t, map[string]imagetest.Image{"team/app:1": img}, nil)
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	corrupt := func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r, img.Layers[0]) {
			return false
		}
		bad := bytes.Clone(img.Layers[0].Data)
		bad[len(bad)/2] ^= 1
		w.Write(bad)
		return true
	}
	breaks := func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r, img.Layers[0]) {
			return false
		}
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(img.Layers[0].Data)))
		w.Write(img.Layers[0].Data[:1000])
		return true
	}
	for _, c := range []struct {
		name   string
		mirror http.Handler // nil: nobody answers
		origin bool         // the origin is asked for the layer
	}{
		{"serves", good, false},
		{"does not answer", nil, true},
		{"has nothing", http.NotFoundHandler(), true},
		{"wants a password", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}), true},
		{"corrupts", &counting{next: good, before: corrupt}, true},
		{"breaks off", &counting{next: good, before: breaks}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			origin := &counting{next: good}
			originAddr := serve(t, origin)
			mirrorAddr := strings.TrimPrefix(down.URL, "http://")
			if c.mirror != nil {
				mirrorAddr = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get("Authorization") != "" {
						t.Error("the mirror got a credential")
					}
					if r.URL.Query().Get("ns") != "registry.example" {
						t.Errorf("the mirror was not told whose mirror it is: %s", r.URL)
					}
					c.mirror.ServeHTTP(w, r)
				}))
			}
			s := withCerts(t, hostsFile(t, "registry.example", fmt.Sprintf(
				"server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", originAddr, mirrorAddr)))
			got, err := s.Pull(ctx, "registry.example/team/app:1", image.Auth{Username: "u", Password: "p"})
			if err != nil {
				t.Fatal(err)
			}
			if got.ID != img.ID() || got.RepoTags[0] != "registry.example/team/app:1" {
				t.Errorf("got %+v", got)
			}
			if n := origin.count(img.Layers[0].Digest()); (n > 0) != c.origin {
				t.Errorf("origin was asked %d times for the layer", n)
			}
		})
	}
}

// TestFetchingChanges gives a store another directory while it is open.
func TestFetchingChanges(t *testing.T) {
	img := smallImage(t, "a")
	addr := serve(t, imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil))
	s := withCerts(t, t.TempDir())
	s.SetFetching(image.Fetching{CertsDir: hostsFile(t, "any.example", fmt.Sprintf("server = \"http://%s\"\n", addr)), ParallelLayers: 1})
	if got, err := s.Pull(testContext(t), "any.example/app:1", image.Auth{}); err != nil || got.ID != img.ID() {
		t.Error(got.ID, err)
	}
}

func TestMirrorThatMayNotResolve(t *testing.T) {
	img := smallImage(t, "a")
	stale := smallImage(t, "stale")
	mirror := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": stale, "app:2": img}, nil)}
	origin := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil)}
	s := withCerts(t, hostsFile(t, "_default", fmt.Sprintf(
		"server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\"]\n", serve(t, origin), serve(t, mirror))))
	got, err := s.Pull(testContext(t), "any.example/app:1", image.Auth{})
	if err != nil || got.ID != img.ID() {
		t.Fatal(got.ID, err)
	}
	if origin.count(img.Layers[0].Digest()) != 0 {
		t.Error("the layer did not come from the mirror")
	}
}

// A blob that breaks off is fetched on from there.
func TestResume(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		name   string
		ranges bool
		stall  time.Duration // 0: it breaks off and does not stall
	}{{"with ranges", true, 0}, {"without ranges", false, 0}, {"stalled", true, 200 * time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			img := randomImage(t, size)
			data := img.Layers[0].Data
			var sent, requests atomic.Int64
			h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil)}
			h.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r, img.Layers[0]) {
					return false
				}
				n := requests.Add(1)
				var from int
				if rg := r.Header.Get("Range"); rg != "" && c.ranges {
					from, _ = strconv.Atoi(rangeStart(rg))
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
				if from > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				end := min(len(data)*int(n)/3, len(data))
				w.Write(data[from:max(end, from)])
				sent.Add(int64(max(end-from, 0)))
				if c.stall > 0 && end < len(data) {
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				}
				return true
			}
			dir := filepath.Join(t.TempDir(), "images")
			s := openStore(t, image.Config{Dir: dir, StallTimeout: c.stall})
			if _, err := s.Pull(testContext(t), serve(t, h)+"/app:1", image.Auth{}); err != nil {
				t.Fatal(err)
			}
			// A slow machine may call what has been sent stalled, too, before it comes.
			if c.ranges && c.stall == 0 && sent.Load() != int64(len(data)) {
				t.Errorf("%d bytes were sent for %d", sent.Load(), len(data))
			}
			if requests.Load() < 3 {
				t.Errorf("%d requests", requests.Load())
			}
		})
	}
}

func rangeStart(header string) string {
	from, _, _ := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	return from
}

func TestRegistryIsBusy(t *testing.T) {
	img := smallImage(t, "a")
	var n atomic.Int64
	h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil)}
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if n.Add(1)%2 == 1 {
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	}
	if _, err := newStore(t).Pull(testContext(t), serve(t, h)+"/app:1", image.Auth{}); err != nil {
		t.Fatal(err)
	}
}

// edit changes the JSON of a manifest.
func edit(t testing.TB, b imagetest.Blob, change func(m map[string]any)) imagetest.Blob {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(b.Data, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return imagetest.Blob{MediaType: b.MediaType, Data: data}
}

func layerField(m map[string]any, i int, key string, value any) {
	m["layers"].([]any)[i].(map[string]any)[key] = value
}

func TestHostileImages(t *testing.T) {
	ctx := testContext(t)
	img := smallImage(t, "top", imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "base"}), Compression: imagetest.Gzip})
	evil := imagetest.New(t, imagetest.Config{}, imagetest.Layer{
		Tar: imagetest.Tar(t, imagetest.File{Name: "../../../../evil", Data: []byte("x")}), Compression: imagetest.Zstd})
	liar := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "liar"})})
	liar.Config = edit(t, liar.Config, func(m map[string]any) {
		m["rootfs"].(map[string]any)["diff_ids"] = []string{imagetest.Digest([]byte("something else"))}
	})
	liar.Manifest = edit(t, liar.Manifest, func(m map[string]any) { m["config"] = imagetest.Descriptor(liar.Config) })
	asked := make(chan string, 10)
	foreign := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	manifests := map[string]struct {
		manifest imagetest.Blob
		reason   string
		want     string
	}{
		"traversal":     {evil.Manifest, image.ReasonInvalidImage, `".." in a name`},
		"wrong-diff-id": {liar.Manifest, image.ReasonDigestMismatch, "the config says"},
		"schema1": {imagetest.Blob{MediaType: "application/vnd.docker.distribution.manifest.v1+prettyjws",
			Data: []byte(`{"schemaVersion":1,"fsLayers":[],"history":[]}`)}, image.ReasonInvalidImage, "Docker schema 1"},
		"foreign": {edit(t, img.Manifest, func(m map[string]any) {
			layerField(m, 0, "mediaType", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
			layerField(m, 0, "urls", []string{"http://" + foreign + "/layer"})
		}), image.ReasonInvalidImage, "foreign layers are not fetched"},
		"encrypted": {edit(t, img.Manifest, func(m map[string]any) {
			layerField(m, 0, "mediaType", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")
		}), image.ReasonInvalidImage, "encrypted layers are not supported"},
		"artifact": {edit(t, img.Manifest, func(m map[string]any) {
			m["config"].(map[string]any)["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
		}), image.ReasonInvalidImage, "not that of an image"},
		"size-too-small": {edit(t, img.Manifest, func(m map[string]any) { layerField(m, 1, "size", 10) }), image.ReasonDigestMismatch, "the manifest says 10"},
		"size-too-large": {edit(t, img.Manifest, func(m map[string]any) { layerField(m, 1, "size", 1<<30) }), image.ReasonDigestMismatch, "the manifest says"},
		"size-negative":  {edit(t, img.Manifest, func(m map[string]any) { layerField(m, 1, "size", -1) }), image.ReasonInvalidImage, "size -1"},
		"digest-path":    {edit(t, img.Manifest, func(m map[string]any) { layerField(m, 1, "digest", "sha256:../../../../etc/passwd") }), image.ReasonInvalidImage, "malformed"},
		"digest-other":   {edit(t, img.Manifest, func(m map[string]any) { layerField(m, 1, "digest", "md5:d41d8cd98f00b204e9800998ecf8427e") }), image.ReasonInvalidImage, "not sha256"},
		"missing-layer":  {edit(t, img.Manifest, func(m map[string]any) { layerField(m, 1, "digest", imagetest.Digest(nil)) }), image.ReasonNotFound, "404"},
		"layer-count":    {edit(t, img.Manifest, func(m map[string]any) { m["layers"] = m["layers"].([]any)[:1] }), image.ReasonInvalidImage, "2 diff IDs for 1 layers"},
		"both":           {edit(t, img.Manifest, func(m map[string]any) { m["manifests"] = []any{} }), image.ReasonInvalidImage, "at once"},
		"neither":        {imagetest.Blob{MediaType: img.Manifest.MediaType, Data: []byte(`{"schemaVersion":2}`)}, image.ReasonInvalidImage, "neither"},
		"not-json":       {imagetest.Blob{MediaType: img.Manifest.MediaType, Data: []byte(`<html>`)}, image.ReasonInvalidImage, "not JSON"},
		"huge":           {imagetest.Blob{MediaType: img.Manifest.MediaType, Data: bytes.Repeat([]byte(" "), 5<<20)}, image.ReasonInvalidImage, "too large"},
	}
	h := imagetest.Handler(t, map[string]imagetest.Image{"app:good": img, "app:evil": evil}, nil)
	imagetest.Push(t, h, "app", liar.Config)
	imagetest.Push(t, h, "app", liar.Layers[0])
	c := &counting{next: h, before: func(w http.ResponseWriter, r *http.Request) bool {
		for tag, m := range manifests {
			if strings.HasSuffix(r.URL.Path, "/manifests/"+tag) {
				w.Header().Set("Content-Type", m.manifest.MediaType)
				w.Write(m.manifest.Data)
				return true
			}
		}
		return false
	}}
	addr := serve(t, c)
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	for tag, m := range manifests {
		t.Run(tag, func(t *testing.T) {
			err := second(s.Pull(ctx, addr+"/app:"+tag, image.Auth{}))
			wantReason(t, err, m.reason)
			if !strings.Contains(fmt.Sprint(err), m.want) {
				t.Errorf("error is %v, want %q in it", err, m.want)
			}
			assertEmpty(t, s, dir)
		})
	}
	select {
	case p := <-asked:
		t.Errorf("the foreign layer's host was asked for %s", p)
	default:
	}
	if _, err := s.Pull(ctx, addr+"/app:good", image.Auth{}); err != nil {
		t.Error(err)
	}
}

func TestBrokenRegistry(t *testing.T) {
	ctx := testContext(t)
	img := randomImage(t, 1<<16)
	data := img.Layers[0].Data
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter)
		reason string
	}{
		"wrong bytes":     {func(w http.ResponseWriter) { w.Write(make([]byte, len(data))) }, image.ReasonDigestMismatch},
		"too many bytes":  {func(w http.ResponseWriter) { w.(http.Flusher).Flush(); w.Write(append(data, 'x')) }, image.ReasonDigestMismatch},
		"always cut":      {func(w http.ResponseWriter) { w.(http.Flusher).Flush(); w.Write(data[:100]) }, image.ReasonUnavailable},
		"internal error":  {func(w http.ResponseWriter) { w.WriteHeader(500) }, image.ReasonUnavailable},
		"denied":          {func(w http.ResponseWriter) { w.WriteHeader(403) }, image.ReasonUnauthorized},
		"redirects round": {func(w http.ResponseWriter) { w.Header().Set("Location", "?x"); w.WriteHeader(302) }, image.ReasonUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil)}
			h.before = func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r, img.Layers[0]) {
					c.answer(w)
					return true
				}
				return false
			}
			dir := filepath.Join(t.TempDir(), "images")
			s := openStore(t, image.Config{Dir: dir})
			wantReason(t, second(s.Pull(ctx, serve(t, h)+"/app:1", image.Auth{})), c.reason)
			assertEmpty(t, s, dir)
		})
	}
	down := httptest.NewServer(nil)
	down.Close()
	wantReason(t, second(newStore(t).Pull(ctx, strings.TrimPrefix(down.URL, "http://")+"/app", image.Auth{})), image.ReasonUnavailable)
}

func TestCustomCA(t *testing.T) {
	ctx := testContext(t)
	img := smallImage(t, "a")
	server := httptest.NewUnstartedServer(imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	with := withCerts(t, hostsFile(t, "secure.example", fmt.Sprintf("server = %q\nca = %q\n", server.URL, ca)))
	if _, err := with.Pull(ctx, "secure.example/app:1", image.Auth{}); err != nil {
		t.Error(err)
	}
	without := withCerts(t, hostsFile(t, "secure.example", fmt.Sprintf("server = %q\n", server.URL)))
	err := second(without.Pull(ctx, "secure.example/app:1", image.Auth{}))
	wantReason(t, err, image.ReasonUnavailable)
	if !strings.Contains(fmt.Sprint(err), "certificate") {
		t.Errorf("error does not name the cause: %v", err)
	}
}

func TestBadHostsFile(t *testing.T) {
	for _, content := range []string{"server = ", "skip_verify = \"yes\"", "[host.\"http://x\"]\ndial_timeout = \"soon\""} {
		s := withCerts(t, hostsFile(t, "registry.example", content))
		err := second(s.Pull(testContext(t), "registry.example/app:1", image.Auth{}))
		wantReason(t, err, image.ReasonInternal)
		if !strings.Contains(fmt.Sprint(err), "hosts.toml") {
			t.Errorf("error does not name the file: %v", err)
		}
	}
}
