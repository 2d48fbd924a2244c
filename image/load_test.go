package image_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podstead/image"
	"podstead/image/imagetest"
)

func TestHostileArchives(t *testing.T) {
	img := smallImage(t, "a")
	good := imagetest.ArchiveBytes(t, img, "a")
	index := func(content string) imagetest.File { return imagetest.File{Name: "index.json", Data: []byte(content)} }
	docker := func(content string) imagetest.File {
		return imagetest.File{Name: "manifest.json", Data: []byte(content)}
	}
	many := make([]imagetest.File, 20_001)
	for i := range many {
		many[i] = imagetest.File{Name: fmt.Sprint(i)}
	}
	flipped := bytes.Clone(good)
	at := bytes.Index(flipped, img.Layers[0].Data) + len(img.Layers[0].Data)/2
	flipped[at] ^= 1
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"empty":             {nil, "neither index.json"},
		"garbage":           {bytes.Repeat([]byte("garbage "), 100), "not a whole tar archive"},
		"cut":               {good[:len(good)/2&^511+100], "not a whole tar archive"},
		"cut gzip":          {imagetest.Compress(t, good, imagetest.Gzip)[:300], "unexpected EOF"},
		"flipped layer":     {flipped, "archive lacks the blob"},
		"no manifest":       {imagetest.Tar(t, index(`{"manifests":[{"digest":"sha256:`+strings.Repeat("0", 64)+`"}]}`)), "archive lacks the blob"},
		"index is a link":   {imagetest.Tar(t, imagetest.File{Name: "index.json", Link: "/etc/passwd"}), "neither index.json"},
		"links in a circle": {imagetest.Tar(t, imagetest.File{Name: "index.json", Link: "a"}, imagetest.File{Name: "a", Link: "index.json"}), "neither index.json"},
		"index is no JSON":  {imagetest.Tar(t, index("<html>")), "index.json: invalid character"},
		"index of nothing":  {imagetest.Tar(t, index("{}")), "lists no image"},
		"bad name":          {imagetest.ArchiveBytes(t, img, "UPPER/../x"), "image name"},
		"docker outside":    {imagetest.Tar(t, docker(`[{"Config":"../../../etc/passwd","Layers":["/etc/shadow"]}]`)), "archive lacks the config"},
		"docker layer":      {imagetest.Tar(t, imagetest.File{Name: "c", Data: []byte("{}")}, docker(`[{"Config":"c","Layers":["/etc/shadow"]}]`)), "archive lacks the layer"},
		"docker of nothing": {imagetest.Tar(t, docker("[]")), "lists no image"},
		"hard link":         {imagetest.Tar(t, imagetest.File{Name: "manifest.json", Link: "/etc/passwd", Type: tar.TypeLink}), "neither index.json"},
		"too many files":    {imagetest.Tar(t, many...), "more than 20000 files"},
		"long name":         {imagetest.Tar(t, imagetest.File{Name: strings.Repeat("n", 600)}), "file name of 600 bytes"},
		"huge index":        {imagetest.Tar(t, index(strings.Repeat(" ", 5<<20))), "are more than"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "images")
			s := openStore(t, image.Config{Dir: dir})
			images, err := s.Load(testContext(t), bytes.NewReader(c.archive))
			if err == nil || !strings.Contains(err.Error(), c.want) || len(images) > 0 {
				t.Errorf("got %d images and %v, want %q", len(images), err, c.want)
			}
			assertEmpty(t, s, dir)
		})
	}
}

func TestLoadTooLarge(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, image.Config{Dir: dir, MaxBytes: 1 << 20, MaxEntries: 100})
	for _, img := range []imagetest.Image{
		randomImage(t, 2<<20),
		imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "zero", Data: make([]byte, 2<<20)}), Compression: imagetest.Zstd}),
	} {
		if _, err := s.Load(testContext(t), bytes.NewReader(imagetest.ArchiveBytes(t, img))); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
			t.Errorf("error is %v", err)
		}
		assertEmpty(t, s, dir)
	}
}

// An image that skopeo, buildkit or docker writes names itself in one of several ways.
func TestNamesOfArchives(t *testing.T) {
	img := smallImage(t, "a")
	for annotation, want := range map[string]string{
		`"org.opencontainers.image.ref.name":"example.org/a:1"`:                                              "example.org/a:1",
		`"org.opencontainers.image.ref.name":"latest"`:                                                       "",
		`"io.containerd.image.name":"docker.io/library/a:1","org.opencontainers.image.ref.name":"something"`: "docker.io/library/a:1",
		``: "",
	} {
		s := newStore(t)
		archive := imagetest.Tar(t, append(archiveBlobs(img), imagetest.File{Name: "./index.json", Data: fmt.Appendf(nil,
			`{"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"annotations":{%s}}]}`,
			img.Manifest.MediaType, img.Manifest.Digest(), len(img.Manifest.Data), annotation)})...)
		got := load(t, s, archive)
		if have := strings.Join(got[0].RepoTags, " "); have != want {
			t.Errorf("%s: names are %q, want %q", annotation, have, want)
		}
		if _, err := s.Get(img.ID()); err != nil {
			t.Error(err)
		}
	}
}

func archiveBlobs(img imagetest.Image) []imagetest.File {
	var files []imagetest.File
	for _, b := range append([]imagetest.Blob{img.Manifest, img.Config}, img.Layers...) {
		files = append(files, imagetest.File{Name: "./blobs/sha256/" + strings.TrimPrefix(b.Digest(), "sha256:"), Data: b.Data})
	}
	return files
}

func FuzzLoad(f *testing.F) {
	img := smallImage(f, "a")
	f.Add(imagetest.ArchiveBytes(f, img, "a"))
	f.Add(imagetest.DockerArchiveBytes(f, imagetest.Config{}, [][]byte{imagetest.Tar(f, imagetest.File{Name: "x"})}, "b:1"))
	dir := f.TempDir()
	// Nothing to be synced there, which would be most of the time.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		f.Skipf("needs root: %v", err)
	}
	f.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := openStore(f, image.Config{Dir: dir, MaxBytes: 1 << 20, MaxEntries: 100, Log: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, archive []byte) {
		images, _ := s.Load(t.Context(), bytes.NewReader(archive))
		for _, i := range images {
			if err := s.Remove(t.Context(), i.ID); err != nil {
				t.Error(err)
			}
		}
		assertEmpty(t, s, dir)
	})
}
