package peer

import (
	"fmt"
	"math/rand"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Synthetic makes files that resemble those of a distribution's image: many small
// and a few large ones, which compress to about a third. A layer's files are
// always the same, and those of no other.
func Synthetic(layer, bytes int) (files []File) {
	r := rand.New(rand.NewSource(int64(layer)))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 4+r.Intn(12))
		r.Read(words[i])
	}
	for size := 0; size < bytes; {
		n := 1 << (9 + r.Intn(10))
		if r.Intn(100) == 0 {
			n = 2 << 20
		}
		data := make([]byte, 0, n+16)
		for len(data) < n {
			data = append(data, words[r.Intn(len(words))]...)
		}
		files = append(files, File{Name: fmt.Sprintf("usr/%d/%d/file%d", layer, len(files)/40, len(files)), Mode: 0o644, Data: data})
		size += n
	}
	return files
}

// Large makes an image of so many bytes in layers of Synthetic files, compressed
// by zstd or gzip.
func Large(bytes, layers int, zstd bool) (v1.Image, error) {
	options := []tarball.LayerOption{tarball.WithCompressedCaching, tarball.WithMediaType(types.OCILayer)}
	if zstd {
		options = append(options, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	}
	list := make([]v1.Layer, layers)
	for i := range list {
		var err error
		if list[i], err = layerOf(Synthetic(i, bytes/layers), options...); err != nil {
			return nil, err
		}
	}
	image, err := imageOf(v1.Config{}, list...)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigMediaType(mutate.MediaType(image, types.OCIManifestSchema1), types.OCIConfigJSON), nil
}
