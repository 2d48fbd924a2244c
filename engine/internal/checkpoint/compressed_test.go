package checkpoint

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func compressed(t testing.TB, how string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&out)
	if how == "zstd" {
		z, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestExtractCompressed(t *testing.T) {
	for _, how := range []string{"gzip", "zstd"} {
		b := compressed(t, how, archive(t, whole...))
		d, err := extract(t, b)
		if err != nil {
			t.Errorf("%s: %v", how, err)
		} else if c, err := d.Config(); err != nil || c.Name != "c" {
			t.Errorf("%s: config %+v, %v", how, c, err)
		}
		broken := slices.Clone(b)
		broken[len(broken)/2] ^= 0xff
		for what, bad := range map[string][]byte{"cut off": b[:len(b)/2], "a header alone": b[:5], "damaged": broken} {
			if _, err := extract(t, bad); !errors.Is(err, ErrFormat) {
				t.Errorf("%s, %s: %v", how, what, err)
			}
		}
		// Zeroes compress a thousandfold.
		bomb := archive(t, append(slices.Clone(whole), entry{name: "notes", content: string(make([]byte, 100<<20))})...)
		small := compressed(t, how, bomb)
		if len(small) > 1<<20 {
			t.Fatalf("%d bytes", len(small))
		}
		if _, err := extract(t, small); !errors.Is(err, ErrFormat) {
			t.Errorf("%s, a bomb: %v", how, err)
		}
	}
}

// TestCopyHostile takes a checkpoint over from a directory that somebody else
// has made.
func TestCopyHostile(t *testing.T) {
	for what, spoil := range map[string]func(from Dir) error{
		"the images are a link":   func(d Dir) error { return os.Rename(d.Images(), d.path("x")) },
		"a link among the images": func(d Dir) error { return os.Symlink("/etc/shadow", d.path("checkpoint/pages-1.img")) },
		"metadata is a link": func(d Dir) error {
			return errors.Join(os.Remove(d.path(ConfigFile)), os.Symlink("/etc/passwd", d.path(ConfigFile)))
		},
		"a directory among the images": func(d Dir) error { return os.Mkdir(d.path("checkpoint/sub"), 0o755) },
		"a strange name":               func(d Dir) error { return os.WriteFile(d.path("checkpoint/a b"), nil, 0o644) },
	} {
		from, err := extract(t, archive(t, whole...))
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(from); err != nil {
			t.Fatal(err)
		}
		if what == "the images are a link" {
			if err := os.Symlink("x", from.Images()); err != nil {
				t.Fatal(err)
			}
		}
		to := Dir(t.TempDir())
		if err := Copy(t.Context(), from, to); err == nil {
			left, _ := filepath.Glob(to.path("*"))
			t.Errorf("%s: it was copied: %v", what, left)
		}
	}
}
