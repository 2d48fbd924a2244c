package image_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podstead/image"
	"podstead/image/imagetest"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners and devices")
	}
}

// openStore opens a store in dir and closes it with the test.
func openStore(t testing.TB, cfg image.Config) *image.Store {
	t.Helper()
	needRoot(t)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	s, err := image.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

func newStore(t testing.TB) *image.Store {
	return openStore(t, image.Config{Dir: filepath.Join(t.TempDir(), "images")})
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func load(t testing.TB, s *image.Store, archive []byte) []image.Image {
	t.Helper()
	images, err := s.Load(testContext(t), bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	return images
}

// mountImage shows an image as a container would see it, at the path returned.
func mountImage(t testing.TB, lower []string) string {
	t.Helper()
	dir := t.TempDir()
	merged, upper, work := dir+"/merged", dir+"/upper", dir+"/work"
	for _, d := range []string{merged, upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	opts := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		t.Fatalf("mount overlay: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return merged
}

func TestLoadAndRun(t *testing.T) {
	s := newStore(t)
	img := imagetest.Busybox(t)
	for _, c := range []struct {
		name    string
		archive []byte
	}{
		{"plain", imagetest.ArchiveBytes(t, img, "busybox", "localhost:5000/other:v1")},
		{"gzip", imagetest.Compress(t, imagetest.ArchiveBytes(t, img, "busybox"), imagetest.Gzip)},
		{"zstd", imagetest.Compress(t, imagetest.ArchiveBytes(t, img, "busybox"), imagetest.Zstd)},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := load(t, s, c.archive)
			if len(got) != 1 || got[0].ID != img.ID() {
				t.Fatalf("got %+v, want image %s", got, img.ID())
			}
		})
	}
	got, err := s.Get("busybox")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"docker.io/library/busybox:latest", "localhost:5000/other:v1"}; !slices.Equal(got.RepoTags, want) {
		t.Errorf("tags are %v, want %v", got.RepoTags, want)
	}
	if want := "docker.io/library/busybox@" + img.Manifest.Digest(); !slices.Contains(got.RepoDigests, want) {
		t.Errorf("digests are %v, want %s", got.RepoDigests, want)
	}
	if !got.Pinned || got.Size == 0 || got.Config.Config.Cmd[0] != "/bin/sh" {
		t.Errorf("got %+v", got)
	}
	lower, err := s.Hold(testContext(t), got.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	root := mountImage(t, lower)
	out, err := exec.Command("chroot", root, "/bin/sh", "-c", "ls -ld /tmp /root; id -u").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "drwxrwxrwt") || !strings.Contains(string(out), "drwx------") {
		t.Errorf("chroot: %v\n%s", err, out)
	}
}

func TestGetByEveryName(t *testing.T) {
	s := newStore(t)
	img := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "a"})})
	load(t, s, imagetest.ArchiveBytes(t, img, "example.org/team/app:1.2"))
	hex := strings.TrimPrefix(img.ID(), "sha256:")
	for _, name := range []string{
		"example.org/team/app:1.2", "example.org/team/app@" + img.Manifest.Digest(),
		img.ID(), hex, hex[:12], "sha256:" + hex[:12],
	} {
		if got, err := s.Get(name); err != nil || got.ID != img.ID() {
			t.Errorf("get %s: %v %v", name, got.ID, err)
		}
	}
	for _, name := range []string{"example.org/team/app", "example.org/team/app:2", "", "UPPER CASE", "..", strings.Repeat("0", 64)} {
		if _, err := s.Get(name); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("get %q: %v, want not found", name, err)
		}
	}
}

func TestRemoveKeepsHeldLayers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	ctx := testContext(t)
	img := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "a", Data: []byte("x")})})
	load(t, s, imagetest.ArchiveBytes(t, img, "app:1", "app:2"))
	lower, err := s.Hold(ctx, "app:1", "pod/1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Remove(ctx, "app:2"); err != nil {
			t.Fatal(err)
		}
	}
	if l := s.List(); len(l) != 0 {
		t.Errorf("listed after remove: %v", l)
	}
	s.Close()
	s = openStore(t, image.Config{Dir: dir})
	if b, err := os.ReadFile(lower[0] + "/a"); err != nil || string(b) != "x" {
		t.Errorf("held layer: %q %v", b, err)
	}
	if h := s.Holders(); !slices.Equal(h, []string{"pod/1"}) {
		t.Errorf("holders are %v", h)
	}
	if again, err := s.Hold(ctx, img.ID(), "pod/1"); err != nil || !slices.Equal(again, lower) {
		t.Errorf("hold again: %v %v", again, err)
	}
	for range 2 {
		if err := s.Release(ctx, "pod/1"); err != nil {
			t.Fatal(err)
		}
	}
	assertEmpty(t, s, dir)
}

// assertEmpty checks that nothing is left in a store without images.
func assertEmpty(t testing.TB, s *image.Store, dir string) {
	t.Helper()
	for _, d := range []string{"images", "layers", "blobs/sha256", "holds", "staging"} {
		es, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil || len(es) > 0 {
			t.Errorf("%s has %v, %v", d, es, err)
		}
	}
	if b, i := s.Usage(); b != 0 || i != 0 {
		t.Errorf("usage is %d bytes, %d inodes", b, i)
	}
}

func TestUntag(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	ctx := testContext(t)
	img := smallImage(t, "a")
	load(t, s, imagetest.ArchiveBytes(t, img, "a:1", "a:2", "example.org/b:1"))
	for _, step := range []struct {
		name string
		left int // names
	}{{"none:1", 5}, {"a:1", 4}, {"a:1", 4}, {"a:2", 2}, {"example.org/b:1", 0}} {
		if err := s.Untag(ctx, step.name); err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(img.ID())
		if n := len(got.RepoTags) + len(got.RepoDigests); n != step.left || (err == nil) != (step.left > 0) {
			t.Errorf("after %s: %v %v %v", step.name, got.RepoTags, got.RepoDigests, err)
		}
	}
	assertEmpty(t, s, dir)
}

func TestSaveAndLoadAgain(t *testing.T) {
	s := newStore(t)
	ctx := testContext(t)
	base := imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "base", Data: []byte("base")}), Compression: imagetest.Gzip}
	top := imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "top"}), Compression: imagetest.Zstd}
	one, two := imagetest.New(t, imagetest.Config{}, base), imagetest.New(t, imagetest.Config{}, base, top, top)
	load(t, s, imagetest.ArchiveBytes(t, one, "one:1", "one:2"))
	load(t, s, imagetest.ArchiveBytes(t, two, "two"))
	var first, second bytes.Buffer
	for _, w := range []io.Writer{&first, &second} {
		if err := s.Save(ctx, w, "one:1", "two", "one:2", two.ID()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two saves differ")
	}
	other := newStore(t)
	got := load(t, other, first.Bytes())
	if len(got) != 2 || got[0].ID != one.ID() || got[1].ID != two.ID() {
		t.Fatalf("loaded %+v", got)
	}
	if want := []string{"docker.io/library/one:1", "docker.io/library/one:2"}; !slices.Equal(got[0].RepoTags, want) {
		t.Errorf("tags are %v", got[0].RepoTags)
	}
	if err := s.Save(ctx, io.Discard, "three"); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("save of a missing image: %v", err)
	}
}

func TestLoadDockerArchive(t *testing.T) {
	s := newStore(t)
	a := imagetest.Tar(t, imagetest.File{Name: "etc/"}, imagetest.File{Name: "etc/a", Data: []byte("old")}, imagetest.File{Name: "etc/b"})
	b := imagetest.Tar(t, imagetest.File{Name: "etc/a", Data: []byte("new")}, imagetest.File{Name: "etc/.wh.b"})
	load(t, s, imagetest.DockerArchiveBytes(t, imagetest.Config{Cmd: []string{"x"}}, [][]byte{a, b, a}, "app:1"))
	img, err := s.Get("app:1")
	if err != nil {
		t.Fatal(err)
	}
	lower, err := s.Hold(testContext(t), img.ID, "h")
	if err != nil || len(lower) != 3 {
		t.Fatal(lower, err)
	}
	root := mountImage(t, lower[1:])
	if got, _ := os.ReadFile(root + "/etc/a"); string(got) != "new" {
		t.Errorf("etc/a is %q", got)
	}
	if _, err := os.Stat(root + "/etc/b"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("etc/b: %v", err)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	openStore(t, image.Config{Dir: dir})
	if s, err := image.Open(image.Config{Dir: dir}); err == nil {
		s.Close()
		t.Error("opened twice")
	} else if !strings.Contains(err.Error(), dir) {
		t.Errorf("error does not name the directory: %v", err)
	}
}

const goarch = runtime.GOARCH
