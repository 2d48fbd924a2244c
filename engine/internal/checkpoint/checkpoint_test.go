package checkpoint

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podstead/image"
)

type entry struct {
	name, content, link string
	typ                 byte
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.typ == 0 {
			e.typ = tar.TypeReg
		}
		if err := w.WriteHeader(&tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Size: int64(len(e.content)), Mode: 0o777}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var whole = []entry{
	{name: "config.dump", content: `{"id":"1","name":"c"}`}, {name: "spec.dump", content: `{}`},
	{name: "checkpoint/", typ: tar.TypeDir}, {name: "checkpoint/inventory.img", content: "x"}, {name: "checkpoint/pstree.img", content: "x"},
}

func extract(t testing.TB, b []byte) (Dir, error) {
	t.Helper()
	d := Dir(filepath.Join(t.TempDir(), "to"))
	if err := os.Mkdir(string(d), 0o700); err != nil {
		t.Fatal(err)
	}
	return d, Extract(t.Context(), bytes.NewReader(b), int64(len(b)), d)
}

func TestExtract(t *testing.T) {
	d, err := extract(t, archive(t, append(slices.Clone(whole),
		entry{name: "./container.log", content: "log"}, entry{name: "volumes/../../x", typ: tar.TypeSymlink, link: "/etc"},
		entry{name: "rootfs-diff.tar", content: "diff"}, entry{name: "io.kubernetes.thing", typ: tar.TypeFifo})...))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := d.Config(); err != nil || c.Name != "c" {
		t.Errorf("config %+v, %v", c, err)
	}
	for name, there := range map[string]bool{"container.log": false, "rootfs-diff.tar": true, "volumes": false, "../x": false} {
		if _, err := os.Lstat(d.path(name)); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}
	info, err := os.Stat(d.path("checkpoint/pstree.img"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestExtractHostile(t *testing.T) {
	for name, bad := range map[string][]entry{
		"link among the images":      {{name: "checkpoint/pages-1.img", typ: tar.TypeSymlink, link: "/etc/shadow"}},
		"hard link among the images": {{name: "checkpoint/pages-1.img", typ: tar.TypeLink, link: "config.dump"}},
		"device among the images":    {{name: "checkpoint/pages-1.img", typ: tar.TypeBlock}},
		"directory below the images": {{name: "checkpoint/sub/", typ: tar.TypeDir}},
		"file below the images":      {{name: "checkpoint/sub/x.img", content: "x"}},
		"hidden name":                {{name: "checkpoint/.x", content: "x"}},
		"strange name":               {{name: "checkpoint/a\nb", content: "x"}},
		"twice":                      {{name: "checkpoint/pstree.img", content: "x"}},
		"twice by another name":      {{name: "./checkpoint//pstree.img", content: "x"}},
		"metadata twice":             {{name: "config.dump", content: "{}"}},
	} {
		if _, err := extract(t, archive(t, append(slices.Clone(whole), bad...)...)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range whole {
		if whole[i].typ == tar.TypeDir {
			continue
		}
		if _, err := extract(t, archive(t, append(slices.Clone(whole[:i]), whole[i+1:]...)...)); !errors.Is(err, ErrFormat) {
			t.Errorf("without %s: %v", whole[i].name, err)
		}
	}
	// What leads out of the archive is none of its names.
	d, err := extract(t, archive(t, append(slices.Clone(whole), entry{name: "checkpoint/../../escaped", content: "x"}, entry{name: "/escaped", content: "x"})...))
	if err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Dir(string(d)) + "/*"); len(left) != 1 {
		t.Errorf("there is %v", left)
	}
	b := archive(t, whole...)
	if _, err := extract(t, b[:1000]); !errors.Is(err, ErrFormat) {
		t.Errorf("cut off: %v", err)
	}
	// A sparse file would be larger than the archive that it is in.
	to := Dir(t.TempDir())
	if err := Extract(t.Context(), bytes.NewReader(archive(t, append(slices.Clone(whole), entry{name: "checkpoint/x.img", content: strings.Repeat("x", 5000)})...)), 4000, to); !errors.Is(err, ErrFormat) {
		t.Errorf("larger than its archive: %v", err)
	}
}

func TestReadHostile(t *testing.T) {
	dir := t.TempDir()
	d := Dir(dir)
	if err := os.Symlink("/etc/passwd", dir+"/config.dump"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Config(); err == nil {
		t.Error("a link was followed")
	}
	if err := unix.Mkfifo(dir+"/spec.dump", 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Spec(); !errors.Is(err, ErrFormat) {
		t.Errorf("a pipe: %v", err)
	}
	if err := os.WriteFile(dir+"/deleted.files", bytes.Repeat([]byte(" "), maxMetadata+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Deleted(); !errors.Is(err, ErrFormat) {
		t.Errorf("too large: %v", err)
	}
	for _, bad := range []string{`{"version":2}`, `{"version":1,"containers":["a","a"]}`, `{"version":1,"containers":[""]}`, `[]`} {
		if err := os.WriteFile(dir+"/pod.options", []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPod(dir); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(archive(f, whole...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, _ := extract(t, b)
		if left, _ := filepath.Glob(filepath.Dir(string(d)) + "/*"); len(left) != 1 {
			t.Errorf("there is %v", left)
		}
	})
}

func TestSaveIsWholeOrNot(t *testing.T) {
	from, err := extract(t, archive(t, whole...))
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	for range 2 { // the second replaces the first
		if err := from.Save(t.Context(), to+"/a.tar"); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(to + "/a.tar")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := extract(t, b); err != nil {
		t.Errorf("what was saved: %v", err)
	}
	if info, err := os.Stat(to + "/a.tar"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info, err)
	}
	if err := unix.Mkfifo(from.Images()+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := from.Save(t.Context(), to+"/b.tar"); err == nil {
		t.Error("a pipe was saved")
	}
	if left, _ := os.ReadDir(to); len(left) != 1 {
		t.Errorf("there is %v", left)
	}
}

// A root that was changed is the same after SaveDiff and UnpackDiff.
func TestDiff(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	lower, upper := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(lower+"/dir/sub", 0o755))
	must(os.WriteFile(lower+"/dir/old", nil, 0o644))
	must(os.MkdirAll(lower+"/opaque", 0o755))
	must(os.WriteFile(lower+"/opaque/hidden", nil, 0o644))
	must(os.MkdirAll(upper+"/dir", 0o750))
	must(os.WriteFile(upper+"/dir/new", []byte("new"), 0o640))
	must(os.Chown(upper+"/dir/new", 7, 8))
	must(unix.Setxattr(upper+"/dir/new", "user.note", []byte("x"), 0))
	must(os.Link(upper+"/dir/new", upper+"/hard"))
	must(os.Symlink("/dir/new", upper+"/soft"))
	must(unix.Mknod(upper+"/dir/old", unix.S_IFCHR, 0))
	must(os.MkdirAll(upper+"/opaque", 0o755))
	must(unix.Setxattr(upper+"/opaque", "trusted.overlay.opaque", []byte("y"), 0))
	d := Dir(t.TempDir())
	must(d.SaveDiff(t.Context(), upper, []string{lower}))
	deleted, err := d.Deleted()
	if want := []string{"dir/old", "opaque/hidden"}; err != nil || !slices.Equal(deleted, want) {
		t.Errorf("deleted %q, %v", deleted, err)
	}
	f, err := d.Diff()
	must(err)
	defer f.Close()
	to := t.TempDir()
	must(image.UnpackDiff(t.Context(), f, to, []string{lower}, 1<<20))
	must(ApplyDeleted(to, deleted))
	var st unix.Stat_t
	must(unix.Lstat(to+"/dir/new", &st))
	if st.Uid != 7 || st.Gid != 8 || st.Mode&0o7777 != 0o640 || st.Nlink != 2 {
		t.Errorf("new file: %+v", st)
	}
	for _, gone := range []string{"/dir/old", "/opaque/hidden"} {
		must(unix.Lstat(to+gone, &st))
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s is no whiteout", gone)
		}
	}
	if link, err := os.Readlink(to + "/soft"); err != nil || link != "/dir/new" {
		t.Errorf("link %q, %v", link, err)
	}
}

func TestApplyDeletedHostile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	base := t.TempDir()
	upper := base + "/upper"
	if err := os.Mkdir(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(base, upper+"/out"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"out/x", "/", "..", "out/../out/x"} {
		if err := ApplyDeleted(upper, []string{name}); err == nil {
			t.Errorf("%q was deleted", name)
		}
	}
	if err := ApplyDeleted(upper, []string{"../../x", "a/b/c"}); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(base); len(left) != 1 {
		t.Errorf("there is %v", left)
	}
}
