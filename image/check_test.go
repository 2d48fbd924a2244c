package image_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podstead/image"
	"podstead/image/imagetest"
)

func TestCheckFindsAndRepairs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	ctx := testContext(t)
	base := imagetest.Layer{Compression: imagetest.Gzip, Tar: imagetest.Tar(t,
		imagetest.File{Name: "d/", Mode: 0o711}, imagetest.File{Name: "d/f", Data: []byte("content")},
		imagetest.File{Name: "l", Link: "d"}, imagetest.File{Name: "p", Data: []byte("p"), Xattrs: map[string]string{"user.x": "y"}})}
	top := imagetest.Layer{Compression: imagetest.Zstd, Tar: imagetest.Tar(t, imagetest.File{Name: "l/up"}, imagetest.File{Name: ".wh.p"})}
	img := imagetest.New(t, imagetest.Config{}, base, top)
	addr := imagetest.Registry(t, map[string]imagetest.Image{"app:1": img})
	if _, err := s.Pull(ctx, addr+"/app:1", image.Auth{}); err != nil {
		t.Fatal(err)
	}
	load(t, s, imagetest.ArchiveBytes(t, smallImage(t, "other", base), "other"))
	lower, err := s.Hold(ctx, img.ID(), "look")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Release(ctx, "look"); err != nil {
		t.Fatal(err)
	}
	bottom := lower[1]
	check := func(repair bool) []image.Problem {
		t.Helper()
		found, err := s.Check(ctx, repair)
		if err != nil {
			t.Fatal(err)
		}
		if es, err := os.ReadDir(dir + "/staging"); err != nil || len(es) > 0 {
			t.Errorf("staging has %v, %v", es, err)
		}
		return found
	}
	if found := check(true); len(found) != 0 {
		t.Fatalf("found %v in a good store", found)
	}
	for want, damage := range map[string]func() error{
		`"./d/f": 0 bytes`:    func() error { return os.Truncate(bottom+"/d/f", 0) },
		`"./d/f": missing`:    func() error { return os.Remove(bottom + "/d/f") },
		`2 names, not 1`:      func() error { return os.WriteFile(bottom+"/d/g", nil, 0o644) },
		`mode`:                func() error { return os.Chmod(bottom+"/d", 0o700) },
		`owner 1:0`:           func() error { return os.Chown(bottom+"/p", 1, 0) },
		`bytes, not`:          func() error { return relink(bottom+"/l", "elsewhere") },
		`other content`:       func() error { return scribble(bottom + "/d/f") },
		`layer sha256:`:       func() error { return os.RemoveAll(filepath.Dir(bottom)) },
		`modification time`:   func() error { return os.WriteFile(bottom+"/p", []byte("q"), 0o644) },
		`extended attributes`: func() error { return removeXattr(bottom + "/p") },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		for _, repair := range []bool{false, true} {
			found := check(repair)
			if len(found) != 1 || !strings.Contains(found[0].What, want) || found[0].Repaired != repair {
				t.Errorf("found %+v, want %s", found, want)
			}
		}
		if found := check(false); len(found) != 0 {
			t.Errorf("found %v after the repair", found)
		}
	}
	// A layer in use is not taken away.
	if _, err := s.Hold(ctx, img.ID(), "container"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(bottom+"/d/f", 0); err != nil {
		t.Fatal(err)
	}
	if found := check(true); len(found) != 1 || found[0].Repaired {
		t.Errorf("found %+v", found)
	}
	if err := s.Release(ctx, "container"); err != nil {
		t.Fatal(err)
	}
	check(true)
	// A damaged blob is fetched again with the next pull.
	blob := filepath.Join(dir, "blobs", strings.Replace(img.Layers[1].Digest(), ":", "/", 1))
	if err := scribble(blob); err != nil {
		t.Fatal(err)
	}
	if found := check(true); len(found) != 1 || !strings.Contains(found[0].What, "digest is wrong") {
		t.Errorf("found %+v", found)
	}
	if _, err := s.Pull(ctx, addr+"/app:1", image.Auth{}); err != nil {
		t.Fatal(err)
	}
	if found := check(true); len(found) != 0 {
		t.Errorf("found %+v after the pull", found)
	}
}

func TestPin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	load(t, s, imagetest.ArchiveBytes(t, smallImage(t, "a"), "a"))
	if err := s.Pin("a", false); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openStore(t, image.Config{Dir: dir})
	if got, err := s.Get("a"); err != nil || got.Pinned {
		t.Errorf("got %+v, %v", got, err)
	}
}

func relink(path, target string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// scribble changes a byte and leaves size and time as they were.
func scribble(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	return os.Chtimes(path, info.ModTime(), info.ModTime())
}

func removeXattr(path string) error { return unix.Removexattr(path, "user.x") }
