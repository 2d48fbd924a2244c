package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Save writes images as one OCI archive that docker, too, can load. A tag is
// saved as such; an ID or digest saves the image without a name. The same
// images give the same bytes.
func (s *Store) Save(ctx context.Context, w io.Writer, names ...string) error {
	if len(names) == 0 {
		return fmt.Errorf("save images: no name given")
	}
	var saved savedImages
	s.mu.Lock()
	for _, n := range names {
		e, err := s.lookup(n)
		if err != nil {
			s.mu.Unlock()
			return fmt.Errorf("save image %.300s: %w", n, err)
		}
		saved.add(e, n)
	}
	for _, e := range saved.entries {
		for _, f := range e.files() {
			s.pins[f]++
		}
	}
	s.mu.Unlock()
	defer func() {
		for _, e := range saved.entries {
			s.unpin(e.files())
		}
	}()
	if err := saved.write(ctx, w, s); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	return nil
}

type savedImages struct {
	entries []*entry // in the order of their first names
	tags    map[string][]string
}

func (v *savedImages) add(e *entry, name string) {
	if v.tags == nil {
		v.tags = map[string][]string{}
	}
	if _, ok := v.tags[e.ID]; !ok {
		v.entries = append(v.entries, e)
		v.tags[e.ID] = nil
	}
	n, err := parseName(name)
	if err != nil || !slices.Contains(e.Tags, n.String()) || slices.Contains(v.tags[e.ID], n.String()) {
		return
	}
	v.tags[e.ID] = append(v.tags[e.ID], n.String())
}

func (v *savedImages) write(ctx context.Context, w io.Writer, s *Store) error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	docker := []dockerImage{}
	blobs := map[string]int64{}
	for _, e := range v.entries {
		d := ocispec.Descriptor{MediaType: e.Manifest.MediaType, Digest: digest.Digest(e.Manifest.Digest), Size: e.Manifest.Size}
		di := dockerImage{Config: blobPath(e.Config.Digest)}
		for _, t := range v.tags[e.ID] {
			named, err := parseName(t)
			if err != nil {
				return err
			}
			d.Annotations = map[string]string{"io.containerd.image.name": t,
				ocispec.AnnotationRefName: named.(reference.Tagged).Tag()}
			index.Manifests = append(index.Manifests, d)
			di.RepoTags = append(di.RepoTags, reference.FamiliarString(named))
		}
		if d.Annotations == nil {
			index.Manifests = append(index.Manifests, d)
		}
		blobs[e.Manifest.Digest], blobs[e.Config.Digest] = e.Manifest.Size, e.Config.Size
		for _, l := range e.Layers {
			blobs[l.Blob.Digest] = l.Blob.Size
			di.Layers = append(di.Layers, blobPath(l.Blob.Digest))
		}
		docker = append(docker, di)
	}
	t := tar.NewWriter(w)
	for _, f := range []struct {
		name    string
		content any
	}{
		{"oci-layout", ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
		{"index.json", index},
		{"manifest.json", docker},
	} {
		b, err := json.Marshal(f.content)
		if err != nil {
			return err
		}
		if err := t.WriteHeader(savedFile(f.name, int64(len(b)))); err != nil {
			return err
		}
		if _, err := t.Write(b); err != nil {
			return err
		}
	}
	for _, d := range slices.Sorted(maps.Keys(blobs)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.saveBlob(t, d, blobs[d]); err != nil {
			return err
		}
	}
	return t.Close()
}

func savedFile(name string, size int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o444, Size: size}
}

// saveBlob copies a blob and makes sure that it still is what it is called.
func (s *Store) saveBlob(t *tar.Writer, d string, size int64) error {
	f, err := os.Open(s.path(blobPath(d)))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.WriteHeader(savedFile(blobPath(d), size)); err != nil {
		return err
	}
	v := digest.Digest(d).Verifier()
	if _, err := io.Copy(t, io.TeeReader(f, v)); err != nil {
		return fmt.Errorf("blob %s: %w", d, err)
	}
	if !v.Verified() {
		return fmt.Errorf("blob %s is damaged on disk", d)
	}
	return nil
}
