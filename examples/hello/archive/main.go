// Command archive packs one static program as an image, in an OCI archive that
// `podstead image load` and `docker load` read:
//
//	archive PROGRAM ARCHIVE
//
// The image is called localhost/NAME:latest and runs the program. The archive
// is the same, byte by byte, for the same program.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: archive PROGRAM ARCHIVE")
	}
	program, archive := os.Args[1], os.Args[2]
	data, err := pack(program, "localhost/"+filepath.Base(program)+":latest")
	if err == nil {
		err = os.WriteFile(archive, data, 0o644)
	}
	if err != nil {
		log.Fatal("archive: ", err)
	}
}

type file struct {
	name string
	mode int64
	data []byte
}

func pack(program, name string) ([]byte, error) {
	exe, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	layer, err := tarball([]file{{name: filepath.Base(program), mode: 0o755, data: exe}})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/" + filepath.Base(program)}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    descriptor(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageLayer, layer)},
	})
	if err != nil {
		return nil, err
	}
	entry := descriptor(ocispec.MediaTypeImageManifest, manifest)
	entry.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: name}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{entry}})
	if err != nil {
		return nil, err
	}
	return tarball([]file{
		{ocispec.ImageLayoutFile, 0o644, []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)},
		{ocispec.ImageIndexFile, 0o644, index},
		blob(manifest), blob(config), blob(layer),
	})
}

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func blob(data []byte) file {
	sum := sha256.Sum256(data)
	return file{"blobs/sha256/" + hex.EncodeToString(sum[:]), 0o644, data}
}

func tarball(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Format: tar.FormatPAX}); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
