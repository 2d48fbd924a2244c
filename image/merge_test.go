package image_test

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"podstead/image"
	"podstead/image/imagetest"
)

// Layers of all kinds show, mounted, the tree that the image means. The name is
// one of Docker Hub's, served by a mirror.
func TestMergedTree(t *testing.T) {
	type file = imagetest.File
	layers := [][]file{
		{{Name: "bin", Link: "usr/bin"}, {Name: "usr/bin/"}, {Name: "usr/bin/sh", Mode: 0o755, Data: []byte("sh")},
			{Name: "tmp/", Mode: 0o1777}, {Name: "opaque/a"}, {Name: "opaque/sub/b"}, {Name: "gone/x"}, {Name: "keep/x"},
			{Name: "file", Data: []byte("old")}, {Name: "dir/inside"}, {Name: "cap", Mode: 0o755, Xattrs: map[string]string{"user.k": "v"}}},
		{{Name: "bin/tool", Mode: 0o755, Data: []byte("tool")}, {Name: "tmp/left"}, {Name: ".wh.gone"},
			{Name: "opaque/"}, {Name: "opaque/.wh..wh..opq"}, {Name: "opaque/c"}, {Name: "keep/.wh.x"}, {Name: "keep/y"},
			{Name: "file", Data: []byte("new")}, {Name: "dir", Data: []byte("a file now")}},
		{{Name: "gone/again"}, {Name: "one", Data: []byte("1")}, {Name: "two", Link: "one", Type: tar.TypeLink}, {Name: "bin/sh", Data: []byte("shell"), Mode: 0o700}},
	}
	for _, c := range []imagetest.Compression{imagetest.Gzip, imagetest.Zstd, imagetest.Plain} {
		var ls []imagetest.Layer
		for _, l := range layers {
			ls = append(ls, imagetest.Layer{Tar: imagetest.Tar(t, l...), Compression: c})
		}
		mirror := imagetest.Registry(t, map[string]imagetest.Image{"library/merged:latest": imagetest.New(t, imagetest.Config{}, ls...)})
		s := withCerts(t, hostsFile(t, "docker.io", "[host.\"http://"+mirror+"\"]\ncapabilities = [\"pull\", \"resolve\"]\n"))
		img, err := s.Pull(testContext(t), "merged", image.Auth{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(img.RepoTags, []string{"docker.io/library/merged:latest"}) {
			t.Errorf("tags are %v", img.RepoTags)
		}
		lower, err := s.Hold(testContext(t), img.ID, "h")
		if err != nil {
			t.Fatal(err)
		}
		root := mountImage(t, lower)
		want := []string{"bin", "cap", "dir", "file", "gone", "gone/again", "keep", "keep/y", "one", "opaque", "opaque/c",
			"tmp", "tmp/left", "two", "usr", "usr/bin", "usr/bin/sh", "usr/bin/tool"}
		if got := tree(t, root); !slices.Equal(got, want) {
			t.Errorf("tree is %v\nwant %v", got, want)
		}
		for name, content := range map[string]string{"file": "new", "bin/tool": "tool", "bin/sh": "shell", "two": "1", "dir": "a file now"} {
			if b, err := os.ReadFile(root + "/" + name); err != nil || string(b) != content {
				t.Errorf("%s is %q, %v", name, b, err)
			}
		}
		if i, err := os.Stat(root + "/tmp"); err != nil || i.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
			t.Errorf("tmp is %v, %v", i.Mode(), err)
		}
		var st unix.Stat_t
		if err := unix.Stat(root+"/one", &st); err != nil || st.Nlink != 2 {
			t.Errorf("one has %d links, %v", st.Nlink, err)
		}
		if found, err := s.Check(testContext(t), false); err != nil || len(found) > 0 {
			t.Errorf("check finds %v, %v", found, err)
		}
	}
}

// A layer that begins with an opaque root hides all below it.
func TestOpaqueRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir})
	layer := func(files ...imagetest.File) imagetest.Layer { return imagetest.Layer{Tar: imagetest.Tar(t, files...)} }
	img := imagetest.New(t, imagetest.Config{}, layer(imagetest.File{Name: "old"}),
		layer(imagetest.File{Name: ".wh..wh..opq"}, imagetest.File{Name: "mid"}), layer(imagetest.File{Name: "top"}))
	load(t, s, imagetest.ArchiveBytes(t, img))
	lower, err := s.Hold(testContext(t), img.ID(), "h")
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, mountImage(t, lower)); !slices.Equal(got, []string{"mid", "top"}) {
		t.Errorf("tree is %v", got)
	}
	if err := s.Remove(testContext(t), img.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(img.ID()); !errors.Is(err, image.ErrNotFound) {
		t.Error(err)
	}
}

func tree(t testing.TB, root string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(root, p); rel != "." {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
