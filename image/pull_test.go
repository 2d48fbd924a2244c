package image_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"podstead/image"
	"podstead/image/imagetest"
)

// counting counts requests by path, and lets a test answer instead.
type counting struct {
	next http.Handler
	// before may answer a request itself: it then returns true.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu    sync.Mutex
	paths map[string]int
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	if c.paths == nil {
		c.paths = map[string]int{}
	}
	c.paths[r.URL.Path]++
	c.mu.Unlock()
	if c.before != nil && c.before(w, r) {
		return
	}
	c.next.ServeHTTP(w, r)
}

func (c *counting) count(part string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for p, k := range c.paths {
		if strings.Contains(p, part) {
			n += k
		}
	}
	return n
}

func serve(t testing.TB, h http.Handler) (addr string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// smallImage has one layer with the file "name" and, below it, those given.
func smallImage(t testing.TB, name string, below ...imagetest.Layer) imagetest.Image {
	t.Helper()
	return imagetest.New(t, imagetest.Config{}, append(below, imagetest.Layer{
		Tar: imagetest.Tar(t, imagetest.File{Name: name, Data: []byte(name)}), Compression: imagetest.Gzip})...)
}

func wantReason(t testing.TB, err error, reason string) {
	t.Helper()
	var p *image.PullError
	if !errors.As(err, &p) || p.Reason != reason {
		t.Errorf("error is %v, want reason %s", err, reason)
	}
}

func TestPull(t *testing.T) {
	s := newStore(t)
	ctx := testContext(t)
	img := imagetest.Busybox(t)
	zst := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "z"}), Compression: imagetest.Zstd},
		imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "p"}), Compression: imagetest.Plain})
	addr := imagetest.Registry(t, map[string]imagetest.Image{
		"library/busybox:1": img, "team/docker:latest": imagetest.Docker(t, zst), "team/oci:latest": zst,
	})
	for _, c := range []struct {
		ref      string
		id       string
		tags     []string
		manifest string
	}{
		{addr + "/library/busybox:1", img.ID(), []string{addr + "/library/busybox:1"}, img.Manifest.Digest()},
		{addr + "/library/busybox@" + img.Manifest.Digest(), img.ID(), []string{addr + "/library/busybox:1"}, img.Manifest.Digest()},
		{addr + "/team/oci", zst.ID(), []string{addr + "/team/oci:latest"}, zst.Manifest.Digest()},
		{addr + "/team/docker", zst.ID(), []string{addr + "/team/docker:latest", addr + "/team/oci:latest"}, imagetest.Docker(t, zst).Manifest.Digest()},
	} {
		got, err := s.Pull(ctx, c.ref, image.Auth{})
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != c.id || !slices.Equal(got.RepoTags, c.tags) || got.Pinned {
			t.Errorf("pull %s: %+v", c.ref, got)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(c.ref, addr), ":")
		name, _, _ = strings.Cut(name, "@")
		if !slices.Contains(got.RepoDigests, addr+name+"@"+c.manifest) {
			t.Errorf("pull %s: digests %v", c.ref, got.RepoDigests)
		}
	}
	if p := s.Pulls(); len(p) != 0 {
		t.Errorf("pulls under way: %v", p)
	}
	wantReason(t, second(s.Pull(ctx, addr+"/team/none", image.Auth{})), image.ReasonNotFound)
	wantReason(t, second(s.Pull(ctx, "UPPER:case:", image.Auth{})), image.ReasonInvalidName)
}

func second(_ image.Image, err error) error { return err }

func TestPullMovesTag(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	ctx := testContext(t)
	base := imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "base"}), Compression: imagetest.Gzip}
	old, new := smallImage(t, "old", base), smallImage(t, "new", base)
	h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": old}, nil)}
	addr := serve(t, h)
	if _, err := s.Pull(ctx, addr+"/app:1", image.Auth{}); err != nil {
		t.Fatal(err)
	}
	for _, b := range append([]imagetest.Blob{new.Config}, new.Layers...) {
		imagetest.Push(t, h.next, "app", b)
	}
	imagetest.PushManifest(t, h.next, "app", "1", new.Manifest)
	for range 2 { // the second finds all of it there
		if _, err := s.Pull(ctx, addr+"/app:1", image.Auth{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range append(new.Layers, old.Layers...) {
		if n := h.count(l.Digest()); n != 1 {
			t.Errorf("layer %s was asked for %d times", l.Digest(), n)
		}
	}
	for range 2 { // the second time from disk
		got, err := s.Get(addr + "/app:1")
		if err != nil || got.ID != new.ID() {
			t.Errorf("tag is of %s, %v", got.ID, err)
		}
		was, err := s.Get(old.ID())
		if err != nil || len(was.RepoTags) != 0 || !slices.Equal(was.RepoDigests, []string{addr + "/app@" + old.Manifest.Digest()}) {
			t.Errorf("old image: %+v, %v", was, err)
		}
		s.Close()
		s = openStore(t, image.Config{Dir: dir})
	}
}

// The failure of one layer is told at once, however long another takes.
func TestOneLayerFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	img := smallImage(t, "top", imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "base"})})
	h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"a:1": img}, nil)}
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r, img.Layers[0]) {
			<-r.Context().Done() // for ever
			return true
		}
		if isBlob(r, img.Layers[1]) {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	wantReason(t, second(s.Pull(testContext(t), serve(t, h)+"/a:1", image.Auth{})), image.ReasonNotFound)
	assertEmpty(t, s, dir)
}

func TestPullChoosesPlatform(t *testing.T) {
	s := newStore(t)
	ctx := testContext(t)
	mine := smallImage(t, "mine")
	foreign := imagetest.New(t, imagetest.Config{Architecture: "s390x"}, imagetest.Layer{Tar: imagetest.Tar(t)})
	index := imagetest.Index(t, imagetest.Platform{OS: "linux", Architecture: "s390x", Image: foreign},
		imagetest.Platform{OS: "linux", Architecture: goarch, Image: mine})
	none := imagetest.Index(t, imagetest.Platform{OS: "linux", Architecture: "s390x", Image: foreign})
	addr := serve(t, imagetest.Handler(t, map[string]imagetest.Image{"a:mine": mine, "a:foreign": foreign},
		map[string]imagetest.Blob{"a:index": index, "a:none": none}))
	got, err := s.Pull(ctx, addr+"/a:index", image.Auth{})
	if err != nil || got.ID != mine.ID() {
		t.Fatal(got.ID, err)
	}
	// What a manifest of the field pins is the index.
	if g, err := s.Get(addr + "/a@" + index.Digest()); err != nil || g.ID != mine.ID() {
		t.Errorf("by the index's digest: %v", err)
	}
	for _, tag := range []string{"none", "foreign"} {
		err := second(s.Pull(ctx, addr+"/a:"+tag, image.Auth{}))
		wantReason(t, err, image.ReasonInvalidImage)
		if !strings.Contains(fmt.Sprint(err), "s390x") {
			t.Errorf("error does not name the platform: %v", err)
		}
	}
}

func TestPullsShareLayers(t *testing.T) {
	s := newStore(t)
	ctx := testContext(t)
	base := imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "base", Data: make([]byte, 1<<20)}), Compression: imagetest.Gzip}
	images := map[string]imagetest.Image{}
	for i := range 6 {
		images[fmt.Sprintf("app%d:1", i)] = smallImage(t, fmt.Sprint(i), base)
	}
	baseDigest := images["app0:1"].Layers[0].Digest()
	gate := make(chan struct{})
	h := &counting{next: imagetest.Handler(t, images, nil)}
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, baseDigest) {
			<-gate
		}
		return false
	}
	addr := serve(t, h)
	var wg sync.WaitGroup
	for range 3 {
		for name := range images {
			wg.Go(func() {
				if _, err := s.Pull(ctx, addr+"/"+name, image.Auth{}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	// Wait until each of the six has come as far as its layers.
	waitFor(t, func() bool {
		n := 0
		for _, p := range s.Pulls() {
			if len(p.Layers) == 2 {
				n++
			}
		}
		return n == len(images)
	})
	close(gate)
	wg.Wait()
	if n := h.count(baseDigest); n != 1 {
		t.Errorf("shared layer was asked for %d times", n)
	}
	if n := h.count("/manifests/"); n != len(images) {
		t.Errorf("%d manifest requests for %d images pulled three times each at once", n, len(images))
	}
	if n := len(s.List()); n != len(images) {
		t.Errorf("%d images", n)
	}
}

// waitFor polls, for lack of an event, until cond holds.
func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(5 * time.Minute); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("condition did not come")
		}
	}
}

func TestPullCancelled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	img := smallImage(t, "a", imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "big", Data: make([]byte, 1<<20)})})
	ctx, cancel := context.WithCancel(testContext(t))
	h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"a:1": img}, nil)}
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, img.Layers[0].Digest()) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(img.Layers[0].Data)))
		w.Write(img.Layers[0].Data[:1<<19])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
		return true
	}
	addr := serve(t, h)
	err := second(s.Pull(ctx, addr+"/a:1", image.Auth{}))
	wantReason(t, err, image.ReasonCancelled)
	assertEmpty(t, s, dir)
	es, err := os.ReadDir(dir + "/staging")
	if err != nil || len(es) != 0 {
		t.Errorf("staging has %v", es)
	}
}
