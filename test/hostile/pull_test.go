package hostile

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/image/imagetest"
	"podstead/test/host"
)

func TestHostileArchives(t *testing.T) {
	n := start(t)
	img := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "a", Data: []byte("a")})})
	good := imagetest.ArchiveBytes(t, img, "localhost/good:1")
	layout := imagetest.File{Name: "oci-layout", Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	index := func(content string) []byte {
		return imagetest.Tar(t, layout, imagetest.File{Name: "index.json", Data: []byte(content)})
	}
	var many []imagetest.File
	for i := range 20001 {
		many = append(many, imagetest.File{Name: fmt.Sprint(i)})
	}
	for name, test := range map[string]struct {
		archive []byte
		want    string
	}{
		"empty":              {nil, "archive"},
		"garbage":            {bytes.Repeat([]byte("garbage\xff"), 1000), "tar"},
		"zeros":              {make([]byte, 1<<20), "archive"},
		"cut off":            {good[:len(good)*2/3], ""},
		"gzip cut off":       {imagetest.Compress(t, good, imagetest.Gzip)[:200], "gzip"},
		"too many files":     {imagetest.Tar(t, many...), "20000"},
		"name of 1 MB":       {imagetest.Tar(t, imagetest.File{Name: strings.Repeat("n", 500000)}), "name of"},
		"a file of 1 TB":     {header(t, 1<<40), "more than"},
		"index too large":    {index(`{"manifests":[` + strings.Repeat(" ", 5<<20) + `]}`), "index.json"},
		"index not JSON":     {index(`{"manifests":`), "index.json"},
		"index nests deep":   {index(strings.Repeat(`{"manifests":[`, 100000)), "index.json"},
		"index of nothing":   {index(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + strings.Repeat("0", 64) + `","size":5,"mediaType":"application/vnd.oci.image.manifest.v1+json"}]}`), "sha256:0000"},
		"digest upwards":     {index(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../../../../etc/passwd","size":5}]}`), "etc/passwd"},
		"size below zero":    {index(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + strings.Repeat("0", 64) + `","size":-5}]}`), "sha256:0000"},
		"docker upwards":     {imagetest.Tar(t, imagetest.File{Name: "manifest.json", Data: []byte(`[{"Config":"../../../../etc/passwd","Layers":["../../../../etc/passwd"]}]`)}), "etc/passwd"},
		"docker link loop":   {imagetest.Tar(t, imagetest.File{Name: "manifest.json", Data: []byte(`[{"Config":"a","Layers":[]}]`)}, imagetest.File{Name: "a", Link: "b"}, imagetest.File{Name: "b", Link: "a"}), `"a"`},
		"names itself badly": {imagetest.ArchiveBytes(t, img, "UPPER CASE/../..:tag\n"), "UPPER CASE"},
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, "load", n.within(t).tryLoad(test.archive), test.want)
		})
	}
}

// header is the start of an archive with one file of that size.
func header(t *testing.T, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "blob", Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	return b.Bytes()
}

// repeated is a compressed stream of the same block, over and over.
func repeated(t *testing.T, first, block []byte, times int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(first)
	chunk := bytes.Repeat(block, 1024)
	for range times / 1024 {
		w.Write(chunk)
	}
	w.Close()
	return b.Bytes()
}

func TestHostileRegistry(t *testing.T) {
	n := start(t)
	good := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "a", Data: bytes.Repeat([]byte("abc"), 1000)}), Compression: imagetest.Gzip})
	layer := func(data []byte) imagetest.Image {
		img := good
		img.Layers = []imagetest.Blob{{MediaType: img.Layers[0].MediaType, Data: data}}
		return manifest(t, img)
	}
	config := good
	config.Config.Data = []byte(`{"architecture":"amd64","os":"linux","rootfs":` + strings.Repeat(" ", 9<<20) + `{}}`)
	lies := good
	lies.Config.Data = bytes.Replace(good.Config.Data, []byte(good.DiffIDs[0]), []byte("sha256:"+strings.Repeat("1", 64)), 1)
	images := map[string]imagetest.Image{
		"good:1": good, "wrong:1": good, "short:1": good, "cut:1": good, "endless:1": good, "headers:1": good,
		"config:1": manifest(t, config), "lies:1": manifest(t, lies),
		"entries:1":  layer(repeated(t, nil, imagetest.Tar(t, imagetest.File{Name: "./"})[:512], 2_010_000)),
		"terabyte:1": layer(imagetest.Compress(t, header(t, 1<<40), imagetest.Gzip)),
		"notar:1":    layer([]byte("this is no archive at all, but long enough to be taken for something" + strings.Repeat(".", 2000))),
		"notgzip:1":  layer(append([]byte{0x1f, 0x8b, 8, 0}, make([]byte, 1000)...)),
		"huge:1":     good,
	}
	next := imagetest.Handler(t, images, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		blob := strings.HasSuffix(r.URL.Path, "/blobs/"+good.Layers[0].Digest())
		repo := strings.Split(r.URL.Path+"//", "/")[2]
		switch {
		case r.Method != http.MethodGet:
		case repo == "wrong" && blob:
			w.Write(bytes.Repeat([]byte("x"), len(good.Layers[0].Data)))
			return
		case repo == "short" && blob:
			w.Write(good.Layers[0].Data[:50])
			return
		case repo == "cut" && blob:
			w.Header().Set("Content-Length", fmt.Sprint(len(good.Layers[0].Data)))
			w.Write(good.Layers[0].Data[:50])
			return
		case repo == "endless" && blob, repo == "huge" && strings.Contains(r.URL.Path, "/manifests/"):
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 64<<10)); err != nil {
					return
				}
			}
			return
		case repo == "headers":
			w.Header().Set("Location", "http://169.254.169.254/latest/"+strings.Repeat("x", 100000))
			w.Header().Set("WWW-Authenticate", `Bearer realm="file:///etc/passwd",service="`+strings.Repeat("y", 100000)+`"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	for repo, want := range map[string]string{
		"good": "", "wrong": "sha256", "short": "", "cut": "", "endless": "bytes", "headers": "", "config": "config",
		"lies": "1111", "entries": "entries", "terabyte": "more than", "notar": "", "notgzip": "gzip", "huge": "bytes", "absent": "404",
	} {
		t.Run(repo, func(t *testing.T) {
			if repo == "entries" && host.Emulated() {
				t.Skip("two million entries are too many for an emulated processor")
			}
			n := n.within(t)
			ref := address + "/" + repo + ":1"
			_, err := n.rt.PullImage(n.ctx(), &runtimeapi.PullImageRequest{Image: spec(ref)})
			if repo == "good" {
				if err != nil {
					t.Fatal(err)
				}
				n.removeImage(ref)
				return
			}
			wantError(t, "pull", err, want, repo)
			if r, err := n.rt.ImageStatus(n.ctx(), &runtimeapi.ImageStatusRequest{Image: spec(ref)}); err != nil || r.GetImage() != nil {
				t.Errorf("the image is there after all: %v, %v", r.GetImage(), err)
			}
		})
	}
}

// manifest describes an image's blobs anew.
func manifest(t *testing.T, img imagetest.Image) imagetest.Image {
	t.Helper()
	layers := []any{}
	for _, l := range img.Layers {
		layers = append(layers, imagetest.Descriptor(l))
	}
	data, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": img.Manifest.MediaType, "config": imagetest.Descriptor(img.Config), "layers": layers})
	if err != nil {
		t.Fatal(err)
	}
	img.Manifest.Data = data
	return img
}
