package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podstead/image"
	"podstead/image/imagetest"
)

// The test binary is also the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("PODSTEAD_TEST_PULL_DIR"); dir != "" {
		s, err := image.Open(image.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if _, err := s.Pull(context.Background(), os.Getenv("PODSTEAD_TEST_PULL_REF"), image.Auth{}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// At whatever moment the process is killed, the image is there afterwards,
// whole, or not at all.
func TestKilledWhilePulling(t *testing.T) {
	needRoot(t)
	ctx := testContext(t)
	var layers []imagetest.Layer
	for i := range 4 {
		var files []imagetest.File
		for j := range 300 {
			files = append(files, imagetest.File{Name: fmt.Sprintf("dir%d/file%d", i, j), Data: bytes.Repeat([]byte{byte(j)}, 2000)})
		}
		layers = append(layers, imagetest.Layer{Tar: imagetest.Tar(t, files...), Compression: imagetest.Gzip})
	}
	img := imagetest.New(t, imagetest.Config{}, layers...)
	h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"app:1": img}, nil)}
	addr := serve(t, h)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func(dir string) *exec.Cmd {
		c := exec.Command(self)
		c.Env = append(os.Environ(), "PODSTEAD_TEST_PULL_DIR="+dir, "PODSTEAD_TEST_PULL_REF="+addr+"/app:1")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	// How long it takes says over which time the kills are to be spread.
	began := time.Now()
	if err := start(filepath.Join(t.TempDir(), "s")).Wait(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	whole := 0
	const kills = 16
	for i := range kills {
		dir := filepath.Join(t.TempDir(), "s")
		c := start(dir)
		kill := time.AfterFunc(took*time.Duration(i)/(kills-4), func() { c.Process.Kill() })
		c.Wait()
		kill.Stop()
		s := openStore(t, image.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
		if es, err := os.ReadDir(dir + "/staging"); err != nil || len(es) > 0 {
			t.Errorf("staging has %v, %v", es, err)
		}
		got, err := s.Get(addr + "/app:1")
		switch {
		case errors.Is(err, image.ErrNotFound):
			assertEmpty(t, s, dir)
		case err != nil:
			t.Error(err)
		default:
			whole++
			lower, err := s.Hold(ctx, got.ID, "h")
			if err != nil {
				t.Fatal(err)
			}
			assertWhole(t, lower)
		}
		s.Close()
	}
	t.Logf("%d of %d were whole", whole, kills)
}

func assertWhole(t testing.TB, lower []string) {
	t.Helper()
	for i, l := range lower {
		for j := range 300 {
			b, err := os.ReadFile(fmt.Sprintf("%s/dir%d/file%d", l, len(lower)-1-i, j))
			if err != nil || !bytes.Equal(b, bytes.Repeat([]byte{byte(j)}, 2000)) {
				t.Fatalf("layer %d file %d: %v", i, j, err)
			}
		}
	}
}

func TestBadRecordsAreSetAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	ctx := testContext(t)
	var ids []string
	for _, n := range []string{"good", "cut", "flipped", "empty", "misnamed", "future", "layerless", "lost"} {
		img := smallImage(t, n)
		load(t, s, imagetest.ArchiveBytes(t, img, n))
		ids = append(ids, strings.TrimPrefix(img.ID(), "sha256:"))
	}
	if _, err := s.Hold(ctx, "good", "h1"); err != nil {
		t.Fatal(err)
	}
	layerless, err := s.Hold(ctx, "layerless", "h2")
	if err != nil {
		t.Fatal(err)
	}
	lost, err := s.Hold(ctx, "lost", "h3")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	change := func(i int, f func([]byte) []byte) {
		p := filepath.Join(dir, "images", ids[i]+".json")
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, f(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change(1, func(b []byte) []byte { return b[:len(b)/2] })
	change(2, func(b []byte) []byte { return bytes.Replace(b, []byte("flipped"), []byte("slipped"), 1) })
	change(3, func([]byte) []byte { return nil })
	os.Rename(filepath.Join(dir, "images", ids[4]+".json"), filepath.Join(dir, "images", strings.Repeat("a", 64)+".json"))
	change(5, func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":1`), []byte(`"version":9`), 1) })
	os.RemoveAll(filepath.Dir(layerless[0]))
	os.RemoveAll(filepath.Dir(lost[0])) // and its blobs, too:
	for _, l := range smallImage(t, "lost").Layers {
		os.Remove(filepath.Join(dir, "blobs", strings.Replace(l.Digest(), ":", "/", 1)))
	}
	os.WriteFile(holdFile(dir, "h1"), []byte("{"), 0o600)
	os.WriteFile(dir+"/images/.tmp-x-1", nil, 0o600)

	s = openStore(t, image.Config{Dir: dir})
	for name, want := range map[string]bool{"good": true, "layerless": true, "cut": false, "flipped": false, "lost": false} {
		if _, err := s.Get(name); (err == nil) != want {
			t.Errorf("get %s: %v", name, err)
		}
	}
	if n := len(s.List()); n != 2 {
		t.Errorf("%d images", n)
	}
	if bad, _ := os.ReadDir(dir + "/quarantine"); len(bad) != 7 {
		t.Errorf("quarantine has %v", bad)
	}
	if h := s.Holders(); len(h) != 2 {
		t.Errorf("holders are %v", h)
	}
	// The missing layer was unpacked again from its blob.
	if b, err := os.ReadFile(layerless[0] + "/layerless"); err != nil || string(b) != "layerless" {
		t.Errorf("repaired layer: %q %v", b, err)
	}
	// Another comes back with the image, for its holder, too.
	load(t, s, imagetest.ArchiveBytes(t, smallImage(t, "lost"), "lost"))
	if _, err := os.Stat(lost[0] + "/lost"); err != nil {
		t.Error(err)
	}
}

func holdFile(dir, holder string) string {
	return dir + "/holds/" + strings.TrimPrefix(imagetest.Digest([]byte(holder)), "sha256:") + ".json"
}

func TestNoSpace(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	s, err := image.Open(image.Config{Dir: dir + "/images"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := testContext(t)
	big, compressible := randomImage(t, 4<<20), imagetest.New(t, imagetest.Config{},
		imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "zero", Data: bytes.Repeat([]byte("0"), 8<<20)}), Compression: imagetest.Zstd})
	small := smallImage(t, "small")
	addr := imagetest.Registry(t, map[string]imagetest.Image{"big:1": big, "comp:1": compressible, "small:1": small})
	for _, ref := range []string{"/big:1", "/comp:1"} {
		wantReason(t, second(s.Pull(ctx, addr+ref, image.Auth{})), image.ReasonNoSpace)
		assertEmpty(t, s, dir+"/images")
	}
	if _, err := s.Load(ctx, bytes.NewReader(imagetest.ArchiveBytes(t, big, "big"))); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("load: %v", err)
	}
	assertEmpty(t, s, dir+"/images")
	if _, err := s.Pull(ctx, addr+"/small:1", image.Auth{}); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsPulls(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	img := smallImage(t, "a")
	asked := make(chan struct{})
	h := &counting{next: imagetest.Handler(t, map[string]imagetest.Image{"a:1": img}, nil)}
	h.before = func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r, img.Layers[0]) {
			close(asked)
			<-r.Context().Done()
			return true
		}
		return false
	}
	addr := serve(t, h)
	result := make(chan error)
	go func() { result <- second(s.Pull(context.Background(), addr+"/a:1", image.Auth{})) }()
	<-asked
	if p := s.Pulls(); len(p) != 1 || len(p[0].Layers) != 1 || p[0].Layers[0].Stage != "fetching" ||
		p[0].Layers[0].Total != int64(len(img.Layers[0].Data)) {
		t.Errorf("progress is %+v", p)
	}
	s.Close()
	wantReason(t, <-result, image.ReasonCancelled)
	wantReason(t, second(s.Pull(testContext(t), addr+"/a:1", image.Auth{})), image.ReasonCancelled)
	if es, err := os.ReadDir(dir + "/staging"); err != nil || len(es) > 0 {
		t.Errorf("staging has %v, %v", es, err)
	}
}

func TestDirectoriesAreClosedToOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "images")
	s := openStore(t, image.Config{Dir: dir})
	load(t, s, imagetest.ArchiveBytes(t, smallImage(t, "x"), "x"))
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if filepath.Base(p) == "fs" {
			if info.Mode().Perm() != 0o755 {
				t.Errorf("layer root %s is %v", p, info.Mode())
			}
			return fs.SkipDir
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %v", p, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
