// Package imagetest makes container images for tests, in memory: from busybox,
// from static programs or from any list of files. It writes them as archives
// and serves them from a registry on loopback. Only tests import it.
package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// File is one tar entry of a layer. Zero values: a regular file, mode 0644 (a
// directory 0755), root's, of 2020.
type File struct {
	Name    string
	Data    []byte
	Link    string // target of a symbolic link, or of a hard link with Type tar.TypeLink
	Type    byte
	Mode    int64
	UID     int
	GID     int
	Xattrs  map[string]string
	Major   int64
	Minor   int64
	ModTime time.Time
	PAX     map[string]string // further records
}

// Compression of a layer.
type Compression string

// Compressions.
const (
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
	Plain Compression = ""
)

// Blob is what a registry holds: bytes and their media type.
type Blob struct {
	MediaType string
	Data      []byte
}

// Digest returns "sha256:…" of the bytes.
func (b Blob) Digest() string { return Digest(b.Data) }

// Digest returns "sha256:…" of data.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Image is a complete image.
type Image struct {
	Manifest Blob
	Config   Blob
	Layers   []Blob
	DiffIDs  []string
}

// ID is the digest of the configuration, as the store names the image.
func (i Image) ID() string { return i.Config.Digest() }

// Config is the part of an image's configuration that tests set.
type Config struct {
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
	StopSignal           string
	Labels               map[string]string
	Volumes              map[string]struct{}
	Architecture, OS     string // this machine's if empty
}

// Layer is the uncompressed tar of a layer.
type Layer struct {
	Tar         []byte
	Compression Compression
}

var epoch = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)

// Tar writes files as one tar stream.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := w.WriteHeader(f.header()); err != nil {
			t.Fatalf("tar entry %q: %v", f.Name, err)
		}
		if _, err := w.Write(f.Data); err != nil {
			t.Fatalf("tar entry %q: %v", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func (f File) header() *tar.Header {
	if f.Type == tar.TypeXGlobalHeader {
		return &tar.Header{Typeflag: f.Type, PAXRecords: f.PAX}
	}
	h := &tar.Header{
		Name: f.Name, Linkname: f.Link, Typeflag: f.Type, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
		Size: int64(len(f.Data)), ModTime: f.ModTime, Devmajor: f.Major, Devminor: f.Minor,
		Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		switch {
		case f.Link != "":
			h.Typeflag = tar.TypeSymlink
		case strings.HasSuffix(f.Name, "/"):
			h.Typeflag = tar.TypeDir
		default:
			h.Typeflag = tar.TypeReg
		}
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = epoch
	}
	if len(f.Xattrs)+len(f.PAX) > 0 {
		h.PAXRecords = map[string]string{}
		for k, v := range f.Xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		for k, v := range f.PAX {
			h.PAXRecords[k] = v
		}
	}
	return h
}

// Compress compresses data.
func Compress(t testing.TB, data []byte, c Compression) []byte {
	t.Helper()
	var buf bytes.Buffer
	switch c {
	case Gzip:
		// Most of what making a node for a test costs is this.
		w, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(data)
		w.Close()
	case Zstd:
		w, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w.Write(data)
		w.Close()
	case Plain:
		return data
	default:
		t.Fatalf("compression %q is not known", c)
	}
	return buf.Bytes()
}

// New makes an OCI image of layers, lowest first.
func New(t testing.TB, cfg Config, layers ...Layer) Image {
	t.Helper()
	var img Image
	for _, l := range layers {
		mt := "application/vnd.oci.image.layer.v1.tar"
		if l.Compression != Plain {
			mt += "+" + string(l.Compression)
		}
		img.Layers = append(img.Layers, Blob{mt, Compress(t, l.Tar, l.Compression)})
		img.DiffIDs = append(img.DiffIDs, Digest(l.Tar))
	}
	img.Config = Blob{"application/vnd.oci.image.config.v1+json", marshal(t, cfg.spec(img.DiffIDs))}
	img.Manifest = Blob{"application/vnd.oci.image.manifest.v1+json", marshal(t, manifest(img))}
	return img
}

// Docker returns the image with Docker's media types (schema 2).
func Docker(t testing.TB, img Image) Image {
	t.Helper()
	img.Config.MediaType = "application/vnd.docker.container.image.v1+json"
	img.Manifest.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
	layers := img.Layers
	img.Layers = nil
	for _, l := range layers {
		l.MediaType = strings.ReplaceAll(l.MediaType, "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar")
		l.MediaType = strings.ReplaceAll(l.MediaType, "+gzip", ".gzip")
		l.MediaType = strings.ReplaceAll(l.MediaType, "+zstd", ".zstd")
		img.Layers = append(img.Layers, l)
	}
	img.Manifest.Data = marshal(t, manifest(img))
	return img
}

func (c Config) spec(diffIDs []string) any {
	if c.Architecture == "" {
		c.Architecture = runtime.GOARCH
	}
	if c.OS == "" {
		c.OS = "linux"
	}
	return map[string]any{
		"architecture": c.Architecture,
		"os":           c.OS,
		"config": map[string]any{
			"Entrypoint": c.Entrypoint, "Cmd": c.Cmd, "Env": c.Env, "User": c.User,
			"WorkingDir": c.WorkingDir, "StopSignal": c.StopSignal, "Labels": c.Labels, "Volumes": c.Volumes,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	}
}

// Descriptor describes a blob as manifests and indexes do.
func Descriptor(b Blob) map[string]any {
	return map[string]any{"mediaType": b.MediaType, "digest": b.Digest(), "size": len(b.Data)}
}

func manifest(img Image) any {
	layers := []any{}
	for _, l := range img.Layers {
		layers = append(layers, Descriptor(l))
	}
	return map[string]any{
		"schemaVersion": 2,
		"mediaType":     img.Manifest.MediaType,
		"config":        Descriptor(img.Config),
		"layers":        layers,
	}
}

// Platform is a choice in an index.
type Platform struct {
	OS, Architecture, Variant string
	Image                     Image
}

// Index makes an OCI image index.
func Index(t testing.TB, choices ...Platform) Blob {
	t.Helper()
	var ms []any
	for _, c := range choices {
		d := Descriptor(c.Image.Manifest)
		d["platform"] = map[string]any{"os": c.OS, "architecture": c.Architecture, "variant": c.Variant}
		ms = append(ms, d)
	}
	mt := "application/vnd.oci.image.index.v1+json"
	return Blob{mt, marshal(t, map[string]any{"schemaVersion": 2, "mediaType": mt, "manifests": ms})}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Busybox makes an image of Debian's busybox-static with links for all its
// applets, the usual directories, /etc/passwd and /etc/group, in one gzip
// layer. It skips the test if /bin/busybox is missing.
func Busybox(t testing.TB) Image {
	t.Helper()
	return New(t, Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin:/sbin"}},
		Layer{Tar(t, BusyboxFiles(t)...), Gzip})
}

// BusyboxFiles are the files of the Busybox image, to be extended.
func BusyboxFiles(t testing.TB) []File {
	t.Helper()
	const path = "/bin/busybox"
	program, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("needs busybox-static: %v", err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatalf("list busybox applets: %v", err)
	}
	files := []File{
		{Name: "bin/"}, {Name: "dev/"}, {Name: "etc/"}, {Name: "proc/", Mode: 0o555}, {Name: "sys/", Mode: 0o555},
		{Name: "root/", Mode: 0o700}, {Name: "run/"}, {Name: "tmp/", Mode: 0o1777}, {Name: "var/"}, {Name: "home/"},
		{Name: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser:x:1000:1000:user:/home:/bin/sh\n")},
		{Name: "etc/group", Data: []byte("root:x:0:\nnogroup:x:65534:\nuser:x:1000:\nextra:x:2000:user\n")},
		{Name: "bin/busybox", Mode: 0o755, Data: program},
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			files = append(files, File{Name: "bin/" + name, Link: "busybox"})
		}
	}
	return files
}

// Program makes an image whose entrypoint is one static program of this
// machine, at /program.
func Program(t testing.TB, path string) Image {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return New(t, Config{Entrypoint: []string{"/program"}},
		Layer{Tar(t, File{Name: "program", Mode: 0o755, Data: data}, File{Name: "tmp/", Mode: 0o1777}), Gzip})
}
