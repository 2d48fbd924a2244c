package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podstead/image/imagetest"
	"podstead/image/internal/layer"
)

type file = imagetest.File

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners, devices and trusted xattrs")
	}
}

var small = layer.Limits{Entries: 1000, Bytes: 1 << 20, ZstdWindow: 8 << 20}

// unpack unpacks into a fresh directory inside another that must stay as it is.
func unpack(t testing.TB, stream []byte, limits layer.Limits) (string, layer.Result, error) {
	t.Helper()
	needRoot(t)
	outer := t.TempDir()
	if err := os.WriteFile(outer+"/secret", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := outer + "/fs"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fds := openFiles(t)
	res, err := layer.NewUnpacker(limits).Unpack(context.Background(), bytes.NewReader(stream), dir, nil)
	if n := openFiles(t); n != fds {
		t.Errorf("%d descriptors are open, before it were %d", n, fds)
	}
	es, _ := os.ReadDir(outer)
	b, _ := os.ReadFile(outer + "/secret")
	if len(es) != 2 || string(b) != "secret" {
		t.Fatalf("the archive reached out of its root: %v, %q", es, b)
	}
	return dir, res, err
}

func openFiles(t testing.TB) int {
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func mustUnpack(t testing.TB, files ...file) (string, layer.Result) {
	t.Helper()
	stream := imagetest.Tar(t, files...)
	dir, res, err := unpack(t, stream, small)
	if err != nil {
		t.Fatal(err)
	}
	if string(res.DiffID) != imagetest.Digest(stream) {
		t.Errorf("diff ID %s, want %s", res.DiffID, imagetest.Digest(stream))
	}
	return dir, res
}

// describe lists a tree, a line for each name: mode, owner, name, content.
func describe(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		rel, _ := filepath.Rel(dir, p)
		line := fmt.Sprintf("%v %d:%d %s", info.Mode(), st.Uid, st.Gid, rel)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			line += " -> " + target
		case info.Mode()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case info.Mode().IsRegular() && st.Size < 100:
			b, _ := os.ReadFile(p)
			line += fmt.Sprintf(" %q", b)
		case info.IsDir() && xattr(p, "trusted.overlay.opaque") == "y":
			line += " opaque"
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattr(path, name string) string {
	var b [256]byte
	n, err := unix.Lgetxattr(path, name, b[:])
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func wantTree(t testing.TB, dir string, want ...string) {
	t.Helper()
	if got := describe(t, dir); !slices.Equal(got, want) {
		t.Errorf("tree is\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestKindsOfEntries(t *testing.T) {
	long := strings.Repeat("d/", 150) + "file" // more than ustar can say
	dir, res := mustUnpack(t,
		file{Name: "./", Mode: 0o750, UID: 7},
		file{Name: "bin/", Mode: 0o1777, UID: 1 << 30, GID: 3},
		file{Name: "bin/su", Mode: 0o4755, Data: []byte("su"), UID: 5},
		file{Name: "bin/link", Link: "/etc/passwd", UID: 9},
		file{Name: "bin/hard", Link: "bin/su", Type: tar.TypeLink, Mode: 0o600, UID: 77},
		file{Name: "null", Type: tar.TypeChar, Major: 1, Minor: 3, Mode: 0o666},
		file{Name: "disk", Type: tar.TypeBlock, Major: 8, Minor: 300, Mode: 0o660, GID: 6},
		file{Name: "pipe", Type: tar.TypeFifo, Mode: 0o622},
		file{Name: "global", Type: tar.TypeXGlobalHeader, PAX: map[string]string{"comment": "x"}},
	)
	wantTree(t, dir,
		"dtrwxrwxrwx 1073741824:3 bin",
		`urwxr-xr-x 5:0 bin/hard "su"`,
		"Lrwxrwxrwx 9:0 bin/link -> /etc/passwd",
		`urwxr-xr-x 5:0 bin/su "su"`,
		"Drw-rw---- 0:6 disk 8:300",
		"Dcrw-rw-rw- 0:0 null 1:3",
		"prw--w--w- 0:0 pipe")
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Mode&0o7777 != 0o750 || st.Uid != 7 {
		t.Errorf("root is %o of %d, %v", st.Mode, st.Uid, err)
	}
	if err := unix.Stat(dir+"/bin/su", &st); err != nil || st.Nlink != 2 {
		t.Errorf("su has %d links", st.Nlink)
	}
	if res.Inodes != 7 || res.Implicit != nil {
		t.Errorf("result %+v", res)
	}
	dir, res = mustUnpack(t, file{Name: long, Data: []byte("x")})
	if _, err := os.Stat(dir + "/" + long); err != nil || len(res.Implicit) != 150 {
		t.Errorf("long name: %v, %d implicit directories", err, len(res.Implicit))
	}
}

func TestTimes(t *testing.T) {
	at := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	var files []file
	// Far more directories than are held open, children after all of them.
	for i := range 200 {
		files = append(files, file{Name: fmt.Sprintf("d%d/", i), ModTime: at.Add(time.Duration(i) * time.Hour)})
	}
	for i := range 200 {
		files = append(files, file{Name: fmt.Sprintf("d%d/f", i), ModTime: at}, file{Name: fmt.Sprintf("d%d/l", i), Link: "f", ModTime: at})
	}
	files = append(files, file{Name: "ancient", ModTime: time.Unix(-5e9, 0)}, file{Name: "far", ModTime: time.Unix(1<<50, 0)})
	dir, _ := mustUnpack(t, files...)
	for i := range 200 {
		for _, n := range []string{"", "/f", "/l"} {
			want := at
			if n == "" {
				want = at.Add(time.Duration(i) * time.Hour)
			}
			info, err := os.Lstat(fmt.Sprintf("%s/d%d%s", dir, i, n))
			if err != nil || !info.ModTime().Equal(want) {
				t.Fatalf("d%d%s is of %v, want %v (%v)", i, n, info.ModTime(), want, err)
			}
		}
	}
}

func TestWhiteouts(t *testing.T) {
	dir, res := mustUnpack(t,
		file{Name: "a/"}, file{Name: "a/.wh.gone"}, file{Name: "a/.wh..wh..opq"},
		file{Name: ".wh.both"}, file{Name: "both", Data: []byte("new")},
		file{Name: "same", Data: []byte("stays")}, file{Name: ".wh.same"},
		file{Name: ".wh.anew"}, file{Name: "anew/"},
		file{Name: "before/"}, file{Name: ".wh.before"},
		file{Name: ".wh.made"}, file{Name: "made/up"},
		file{Name: ".wh..wh.plnk/x"}, file{Name: ".wh..wh.aufs"},
	)
	wantTree(t, dir,
		"drwxr-xr-x 0:0 .wh..wh.plnk", "-rw-r--r-- 0:0 .wh..wh.plnk/x \"\"",
		"drwxr-xr-x 0:0 a opaque", "Dc--------- 0:0 a/gone 0:0",
		"drwxr-xr-x 0:0 anew opaque",
		"drwxr-xr-x 0:0 before opaque",
		`-rw-r--r-- 0:0 both "new"`,
		"drwxr-xr-x 0:0 made opaque", `-rw-r--r-- 0:0 made/up ""`,
		`-rw-r--r-- 0:0 same "stays"`)
	if res.OpaqueRoot {
		t.Error("root is not opaque")
	}
	if _, res = mustUnpack(t, file{Name: ".wh..wh..opq"}); !res.OpaqueRoot {
		t.Error("root is opaque")
	}
}

func TestReplacedEntries(t *testing.T) {
	dir, _ := mustUnpack(t,
		file{Name: "x/y/z", Data: []byte("1")},
		file{Name: "x", Data: []byte("a file now")},
		file{Name: "f", Data: []byte("2")}, file{Name: "f/", Mode: 0o700}, file{Name: "f/g"},
		file{Name: "l", Link: "f"}, file{Name: "l/h"}, file{Name: "l", Data: []byte("no link")},
		file{Name: "d/", Mode: 0o700}, file{Name: "d/k"}, file{Name: "d/", Mode: 0o711, UID: 4},
		file{Name: "r", Data: []byte("long content")}, file{Name: "r", Data: []byte("short")},
		file{Name: "s", Link: "r"}, file{Name: "s", Link: "r", Type: tar.TypeLink},
	)
	wantTree(t, dir,
		"drwx--x--x 4:0 d", `-rw-r--r-- 0:0 d/k ""`,
		"drwx------ 0:0 f", `-rw-r--r-- 0:0 f/g ""`, `-rw-r--r-- 0:0 f/h ""`,
		`-rw-r--r-- 0:0 l "no link"`, `-rw-r--r-- 0:0 r "short"`, `-rw-r--r-- 0:0 s "short"`,
		`-rw-r--r-- 0:0 x "a file now"`)
}

func TestXattrs(t *testing.T) {
	caps := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	dir, res := mustUnpack(t,
		file{Name: "ping", Mode: 0o755, UID: 3, Xattrs: map[string]string{
			"security.capability": caps, "user.note": "hello", "trusted.overlay.redirect": "/etc",
			"trusted.overlay.opaque": "y", "user.overlay.opaque": "y", "security.selinux": "x"}},
		file{Name: "d/", Xattrs: map[string]string{"trusted.overlay.opaque": "y", "user.d": "1"}},
		file{Name: "l", Link: "ping", Xattrs: map[string]string{"trusted.l": "2"}},
	)
	for _, c := range []struct{ file, name, want string }{
		{"ping", "security.capability", caps}, {"ping", "user.note", "hello"}, {"ping", "trusted.overlay.redirect", ""},
		{"d", "trusted.overlay.opaque", ""}, {"d", "user.d", "1"}, {"l", "trusted.l", "2"}, {"ping", "trusted.l", ""},
	} {
		if got := xattr(dir+"/"+c.file, c.name); got != c.want {
			t.Errorf("%s of %s is %q, want %q", c.name, c.file, got, c.want)
		}
	}
	if res.Dropped["trusted.overlay.opaque"] != 2 || res.Dropped["security.selinux"] != 1 {
		t.Errorf("dropped %v", res.Dropped)
	}
}

func TestSymlinkedParentsStayInside(t *testing.T) {
	for _, target := range []string{"/", "..", "../..", "../../../..", "/..", "/secret/..", "/proc/self/root", "/proc/self/cwd/..", "/fs", "."} {
		t.Run(strings.ReplaceAll(target, "/", "_"), func(t *testing.T) {
			needRoot(t)
			dir, _, err := unpack(t, imagetest.Tar(t,
				file{Name: "link", Link: target}, file{Name: "link/secret", Data: []byte("overwritten")},
				file{Name: "link/d/", Mode: 0o700}, file{Name: "link/d/e", Data: []byte("x")}), small)
			if err != nil {
				t.Logf("refused: %v", err)
				return
			}
			if got, err := os.Readlink(dir + "/link"); err != nil || got != target {
				t.Errorf("link is %q, %v", got, err)
			}
		})
	}
	// A link to what only a layer below may have.
	dir, res := mustUnpack(t, file{Name: "lib", Link: "usr/lib"}, file{Name: "lib/x", Data: []byte("x")})
	wantTree(t, dir, "Lrwxrwxrwx 0:0 lib -> usr/lib", "drwxr-xr-x 0:0 usr", "drwxr-xr-x 0:0 usr/lib", `-rw-r--r-- 0:0 usr/lib/x "x"`)
	if !slices.Equal(res.Implicit, []string{"usr", "usr/lib"}) {
		t.Errorf("implicit %v", res.Implicit)
	}
}

// raw makes a tar entry that archive/tar would not write.
func raw(t testing.TB, change func(block []byte), f file) []byte {
	b := imagetest.Tar(t, f)
	change(b[:512])
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestHostileLayers(t *testing.T) {
	many := make([]file, 1001)
	for i := range many {
		many[i] = file{Name: fmt.Sprint(i)}
	}
	plain := imagetest.Tar(t, file{Name: "a", Data: make([]byte, 5000)})
	gz := imagetest.Compress(t, plain, imagetest.Gzip)
	zst := imagetest.Compress(t, plain, imagetest.Zstd)
	flipped := bytes.Clone(zst)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		stream []byte
		want   string
	}{
		"dotdot":             {imagetest.Tar(t, file{Name: "../secret", Data: []byte("x")}), `".." in a name`},
		"dotdot inside":      {imagetest.Tar(t, file{Name: "a/../../secret"}), `".." in a name`},
		"hard link out":      {imagetest.Tar(t, file{Name: "l", Link: "../secret", Type: tar.TypeLink}), `".." in a name`},
		"hard link through":  {imagetest.Tar(t, file{Name: "d", Link: ".."}, file{Name: "l", Link: "d/secret", Type: tar.TypeLink}), "which this layer does not have"},
		"hard link absolute": {imagetest.Tar(t, file{Name: "l", Link: "/secret", Type: tar.TypeLink}), "which this layer does not have"},
		"hard link to itself": {imagetest.Tar(t, file{Name: "l", Data: []byte("x")},
			file{Name: "l", Link: "l", Type: tar.TypeLink}), "hard link to"},
		"hard link to directory": {imagetest.Tar(t, file{Name: "d/"}, file{Name: "l", Link: "d", Type: tar.TypeLink}), "which is no file"},
		"hard link to whiteout":  {imagetest.Tar(t, file{Name: ".wh.d"}, file{Name: "l", Link: "d", Type: tar.TypeLink}), "which is no file"},
		"whiteout of dotdot":     {imagetest.Tar(t, file{Name: "a/.wh..."}), "whiteout of nothing"},
		"whiteout of dot":        {imagetest.Tar(t, file{Name: ".wh.."}), "whiteout of nothing"},
		"whiteout of nothing":    {imagetest.Tar(t, file{Name: ".wh."}), "whiteout of nothing"},
		"link loop":              {imagetest.Tar(t, file{Name: "a", Link: "b"}, file{Name: "b", Link: "a"}, file{Name: "a/x"}), "too many levels"},
		"link grows":             {imagetest.Tar(t, file{Name: "a", Link: "a/b"}, file{Name: "a/x"}), "too many levels"},
		"magic link":             {imagetest.Tar(t, file{Name: "a", Data: []byte("x")}, file{Name: "a/b"}), "not a directory"},
		"root is a file":         {imagetest.Tar(t, file{Name: ".", Data: []byte("x")}), "root is not a directory"},
		"root is a link":         {imagetest.Tar(t, file{Name: "./", Link: "/etc", Type: tar.TypeSymlink}), "root is not a directory"},
		"long component":         {imagetest.Tar(t, file{Name: strings.Repeat("n", 256)}), "file name too long"},
		"long name":              {imagetest.Tar(t, file{Name: strings.Repeat("n/", 2100) + "x"}), "name of 4201 bytes"},
		"owner out of range":     {imagetest.Tar(t, file{Name: "a", UID: 1 << 31}), "out of range"},
		"device out of range":    {imagetest.Tar(t, file{Name: "a", Type: tar.TypeChar, Major: 5000}), "out of range"},
		"unknown type":           {raw(t, func(b []byte) { b[156] = 'Z' }, file{Name: "a"}), "type 'Z' is not known"},
		"too many entries":       {imagetest.Tar(t, many...), "more entries than allowed"},
		"too many parents":       {imagetest.Tar(t, file{Name: strings.Repeat("p/", 1200) + "x"}), "more entries than allowed"},
		"too many bytes": {imagetest.Tar(t, file{Name: "a", Data: make([]byte, 1<<19)},
			file{Name: "b", Data: make([]byte, 1<<19)}, file{Name: "c", Data: []byte("x")}), "more than 1048576 bytes"},
		"says it is huge":    {raw(t, func(b []byte) { copy(b[124:], "77777777777\x00") }, file{Name: "a"}), "more than 1048576 bytes"},
		"cut in a file":      {plain[:3000], "unexpected EOF"},
		"cut in a header":    {plain[:300], "unexpected EOF"},
		"cut gzip":           {gz[:len(gz)-9], "gzip: unexpected EOF"},
		"cut zstd":           {zst[:len(zst)-5], "zstd: unexpected EOF"},
		"flipped zstd":       {flipped, "zstd: "},
		"garbage after gzip": {append(bytes.Clone(gz), "garbage"...), "gzip: "},
		"no tar":             {bytes.Repeat([]byte("garbage "), 200), "invalid tar header"},
		"bomb after the end": {append(bytes.Clone(plain), make([]byte, 1<<24)...), "after the archive's end"},
		"gzip bomb":          {imagetest.Compress(t, append(bytes.Clone(plain), make([]byte, 1<<24)...), imagetest.Gzip), "after the archive's end"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _, err := unpack(t, c.stream, small)
			var format *layer.FormatError
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, &format) {
				t.Errorf("error is %v (%T), want one of format with %q", err, err, c.want)
			}
			if err := layer.RemoveAll(context.Background(), dir); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("still there: %v", err)
			}
		})
	}
}

// Zeros after the archive's end cost their sender nothing: they are not read
// for as long as a layer may be.
func TestLongTail(t *testing.T) {
	for _, c := range []struct {
		tail int
		ok   bool
	}{{1 << 20, true}, {65 << 20, false}} {
		stream := imagetest.Compress(t, append(imagetest.Tar(t, file{Name: "a"}), make([]byte, c.tail)...), imagetest.Gzip)
		_, _, err := unpack(t, stream, layer.Limits{})
		if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "after the archive's end") {
			t.Errorf("%d bytes after the end: %v", c.tail, err)
		}
	}
}

// An error of the source is not the layer's fault.
func TestBrokenSource(t *testing.T) {
	needRoot(t)
	for _, c := range []imagetest.Compression{imagetest.Plain, imagetest.Gzip, imagetest.Zstd} {
		stream := imagetest.Compress(t, imagetest.Tar(t, file{Name: "a", Data: bytes.Repeat([]byte("x"), 9000)}), c)
		broken := errors.New("cable was cut")
		r := io.MultiReader(bytes.NewReader(stream[:len(stream)/2]), errReader{broken})
		_, err := layer.NewUnpacker(small).Unpack(context.Background(), r, t.TempDir(), nil)
		var format *layer.FormatError
		if !errors.Is(err, broken) || errors.As(err, &format) {
			t.Errorf("%q: error is %v", c, err)
		}
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestSparseFileKeepsItsHoles(t *testing.T) {
	needRoot(t)
	// PAX 1.0 sparse format: the map is in front of the data.
	const size = 1 << 30
	m := "1\n1073737728\n4096\n"
	data := append([]byte(m+strings.Repeat("\x00", 512-len(m))), bytes.Repeat([]byte("e"), 4096)...)
	stream := sparseTar(t, data, size)
	dir, res, err := unpack(t, stream, layer.Limits{Entries: 10, Bytes: 2 << 30, ZstdWindow: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/sparse", &st); err != nil || st.Size != size || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d, %d blocks, %v", st.Size, st.Blocks, err)
	}
	f, err := os.Open(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [2]byte
	if _, err := f.ReadAt(b[:], size-4097); err != nil || b != [2]byte{0, 'e'} {
		t.Errorf("content %q %v", b, err)
	}
	if string(res.DiffID) != imagetest.Digest(stream) {
		t.Error("diff ID is wrong")
	}
	if _, _, err := unpack(t, stream, small); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a hole counts, too: %v", err)
	}
}

// sparseTar writes what archive/tar reads but does not write.
func sparseTar(t testing.TB, data []byte, size int) []byte {
	record := func(k, v string) string {
		n := len(k) + len(v) + 3
		for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
			n++
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", "sparse") + record("GNU.sparse.realsize", fmt.Sprint(size))
	head := raw(t, func(b []byte) { b[156] = 'x' }, file{Name: "PaxHeaders/s", Data: []byte(pax)})
	body := imagetest.Tar(t, file{Name: "GNUSparseFile.0/s", Data: data})
	return append(head[:1024], body...)
}

// A tree deeper than any path is long, made through links, can be removed.
func TestDeepTree(t *testing.T) {
	var files []file
	deep := strings.Repeat("d/", 400)
	for i := range 8 {
		up := ""
		if i > 0 {
			up = fmt.Sprintf("l%d/", i-1)
		}
		files = append(files, file{Name: up + deep}, file{Name: fmt.Sprintf("l%d", i), Link: up + deep})
	}
	files = append(files, file{Name: "l7/end", Data: []byte("x")})
	dir, res, err := unpack(t, imagetest.Tar(t, files...), layer.Limits{Entries: 10000, Bytes: 1 << 20, ZstdWindow: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if res.Inodes < 3200 {
		t.Errorf("%d inodes", res.Inodes)
	}
	fds := openFiles(t)
	if err := layer.RemoveAll(context.Background(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if n := openFiles(t); n != fds {
		t.Errorf("%d descriptors, were %d", n, fds)
	}
}

func TestFixImplicit(t *testing.T) {
	needRoot(t)
	base, _ := mustUnpack(t,
		file{Name: "tmp/", Mode: 0o1777, UID: 3}, file{Name: "usr/lib/", Mode: 0o711}, file{Name: "lib", Link: "usr/lib"},
		file{Name: "abs", Link: "/opt/real"}, file{Name: "gone/", Mode: 0o700}, file{Name: "f", Data: []byte("f")},
		file{Name: "chain", Link: "lib"}, file{Name: "under/", Mode: 0o700, Xattrs: map[string]string{"user.k": "v"}})
	mid, midRes := mustUnpack(t, file{Name: ".wh.gone"}, file{Name: "under/x"})
	top, topRes := mustUnpack(t,
		file{Name: "tmp/x"}, file{Name: "lib/sub/y", Data: []byte("y")}, file{Name: "usr/lib/sub/z"}, file{Name: "abs/a"},
		file{Name: "gone/b"}, file{Name: "f/g"}, file{Name: "chain/c"}, file{Name: "under/deep/u"})
	open := func(dir string) *os.File {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	fds := openFiles(t)
	if err := layer.FixImplicit(open(mid), []*os.File{open(base)}, midRes.Implicit); err != nil {
		t.Fatal(err)
	}
	if err := layer.FixImplicit(open(top), []*os.File{open(mid), open(base)}, topRes.Implicit); err != nil {
		t.Fatal(err)
	}
	if n := openFiles(t); n != fds+5 { // the five opened here
		t.Errorf("%d descriptors, were %d", n, fds)
	}
	wantTree(t, mid, "Dc--------- 0:0 gone 0:0", "drwx------ 0:0 under", `-rw-r--r-- 0:0 under/x ""`)
	if got := xattr(mid+"/under", "user.k"); got != "v" {
		t.Errorf("xattr is %q", got)
	}
	wantTree(t, top,
		"drwxr-xr-x 0:0 f", `-rw-r--r-- 0:0 f/g ""`,
		"drwxr-xr-x 0:0 gone", `-rw-r--r-- 0:0 gone/b ""`,
		"drwxr-xr-x 0:0 opt", "drwxr-xr-x 0:0 opt/real", `-rw-r--r-- 0:0 opt/real/a ""`,
		"dtrwxrwxrwx 3:0 tmp", `-rw-r--r-- 0:0 tmp/x ""`,
		"drwx------ 0:0 under", "drwxr-xr-x 0:0 under/deep", `-rw-r--r-- 0:0 under/deep/u ""`,
		"drwxr-xr-x 0:0 usr", "drwx--x--x 0:0 usr/lib", `-rw-r--r-- 0:0 usr/lib/c ""`,
		"drwxr-xr-x 0:0 usr/lib/sub", `-rw-r--r-- 0:0 usr/lib/sub/y "y"`, `-rw-r--r-- 0:0 usr/lib/sub/z ""`)
}

func TestFixImplicitLoops(t *testing.T) {
	needRoot(t)
	for _, links := range [][2]file{
		{{Name: "a", Link: "b"}, {Name: "b", Link: "a"}},
		{{Name: "a", Link: "a"}, {Name: "c", Link: "b"}},
		{{Name: "a", Link: "a/b"}, {Name: "c", Link: "b"}},
		{{Name: "a", Link: "/"}, {Name: "c", Link: "b"}},
	} {
		base, _ := mustUnpack(t, links[0], links[1])
		top, res := mustUnpack(t, file{Name: "a/x"})
		b, _ := os.Open(base)
		defer b.Close()
		r, _ := os.Open(top)
		defer r.Close()
		var format *layer.FormatError
		if err := layer.FixImplicit(r, []*os.File{b}, res.Implicit); !errors.As(err, &format) {
			t.Errorf("%v: error is %v", links, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(imagetest.Tar(f, file{Name: "a/b", Data: []byte("x")}, file{Name: "l", Link: "../.."}, file{Name: "l/x"},
		file{Name: "h", Link: "a/b", Type: tar.TypeLink}, file{Name: ".wh.a"}, file{Name: "a/.wh..wh..opq"}))
	f.Add(imagetest.Compress(f, imagetest.Tar(f, file{Name: "d/", Mode: 0o700}, file{Name: "d/c", Type: tar.TypeChar, Major: 1, Minor: 3}), imagetest.Gzip))
	f.Add(imagetest.Compress(f, imagetest.Tar(f, file{Name: "f", Xattrs: map[string]string{"user.a": "b"}}), imagetest.Zstd))
	f.Add(sparseTar(f, make([]byte, 1024), 1<<20))
	f.Fuzz(func(t *testing.T, stream []byte) {
		dir, _, _ := unpack(t, stream, layer.Limits{Entries: 50, Bytes: 1 << 16, ZstdWindow: 1 << 20})
		if err := layer.RemoveAll(context.Background(), dir); err != nil {
			t.Fatal(err)
		}
	})
}
