package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"podstead/image/internal/layer"
)

// What an archive may hold, however many images.
const (
	maxArchiveFiles = 20_000
	maxArchiveName  = 512
)

// Load reads OCI layout or docker archives (tar, also gzip or zstd), from which
// it takes images and names. Loaded images are pinned. Names are taken as the
// archive says, from whoever has them; an image without a name is known by its
// ID alone. If it fails, the images before the bad one are there and returned.
func (s *Store) Load(ctx context.Context, r io.Reader) (images []Image, err error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	dir := s.stagingPath("archive")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, layer.RemoveAll(context.WithoutCancel(ctx), dir))
	}()
	ar, err := readArchive(ctx, r, dir, s.unpacker)
	if err != nil {
		return nil, fmt.Errorf("load archive: %w", err)
	}
	found, err := ar.images()
	if err != nil {
		return nil, fmt.Errorf("load archive: %w", err)
	}
	for _, a := range found {
		img, err := s.assemble(ctx, a)
		if err != nil {
			return images, fmt.Errorf("load image %s: %w", strings.Join(append(a.tags, digestOf(a.rawConf)), " "), err)
		}
		images = append(images, img)
		s.log.Info("image loaded", "image", img.ID, "names", img.RepoTags)
	}
	return images, nil
}

// begin ties a call's work to the store's life. end says that it is over.
func (s *Store) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, errors.New("image store is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	s.work.Add(1)
	return ctx, func() {
		stop()
		cancel()
		s.work.Done()
	}, nil
}

// archive is an archive whose files lie in a staging directory, under numbers:
// its own names are never used as paths.
type archive struct {
	files map[string]archiveFile // by clean name
	links map[string]string      // name → name
	blobs map[string]archiveFile // by digest of what was read
}

type archiveFile struct {
	path   string
	size   int64
	digest string
}

func readArchive(ctx context.Context, r io.Reader, dir string, u *layer.Unpacker) (*archive, error) {
	z, err := u.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	ar := &archive{map[string]archiveFile{}, map[string]string{}, map[string]archiveFile{}}
	t := tar.NewReader(z)
	most := u.Limits().Bytes
	left := most
	buf := make([]byte, 256<<10)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hdr, err := t.Next()
		if err == io.EOF {
			return ar, nil
		}
		if err != nil {
			return nil, fmt.Errorf("not a whole tar archive: %w", err)
		}
		if n == maxArchiveFiles {
			return nil, fmt.Errorf("more than %d files", maxArchiveFiles)
		}
		if len(hdr.Name) > maxArchiveName || len(hdr.Linkname) > maxArchiveName {
			return nil, fmt.Errorf("file name of %d bytes", max(len(hdr.Name), len(hdr.Linkname)))
		}
		name := archiveName(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			if left -= hdr.Size; left < 0 {
				return nil, fmt.Errorf("more than %d bytes", most)
			}
			f, err := stageFile(ctx, t, dir+"/"+strconv.Itoa(n), buf)
			if err != nil {
				return nil, fmt.Errorf("file %q: %w", name, err)
			}
			ar.files[name], ar.blobs[f.digest] = f, f
		case tar.TypeSymlink:
			ar.links[name] = archiveName(path.Dir("/"+name) + "/" + hdr.Linkname)
		case tar.TypeLink:
			ar.links[name] = archiveName(hdr.Linkname)
		}
	}
}

func archiveName(s string) string { return strings.TrimPrefix(path.Clean("/"+s), "/") }

func stageFile(ctx context.Context, r io.Reader, path string, buf []byte) (archiveFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return archiveFile{}, err
	}
	h := sha256.New()
	w := io.MultiWriter(f, h)
	var size int64
	for err == nil {
		var n int
		n, err = r.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			err = werr
		}
		size += int64(n)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
	}
	if err == io.EOF {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return archiveFile{}, err
	}
	return archiveFile{path, size, "sha256:" + hex.EncodeToString(h.Sum(nil))}, nil
}

// file finds a file by name, through the archive's own links.
func (ar *archive) file(name string) (archiveFile, bool) {
	name = archiveName(name)
	const maxLinks = 8
	for range maxLinks {
		if f, ok := ar.files[name]; ok {
			return f, true
		}
		target, ok := ar.links[name]
		if !ok {
			break
		}
		name = target
	}
	return archiveFile{}, false
}

func (f archiveFile) read(limit int64) ([]byte, error) {
	if f.size > limit {
		return nil, fmt.Errorf("%d bytes are more than %d", f.size, limit)
	}
	return os.ReadFile(f.path)
}

// An archive is the fetcher of its own blobs.

func (ar *archive) fetch(_ context.Context, d ocispec.Descriptor, _ io.Writer, _ func()) error {
	return invalid("archive lacks the blob %s", d.Digest)
}

func (ar *archive) local(d ocispec.Descriptor) string {
	if f, ok := ar.blobs[string(d.Digest)]; ok && f.size == d.Size {
		return f.path
	}
	return ""
}

func (ar *archive) images() ([]*assembly, error) {
	if f, ok := ar.file("index.json"); ok {
		return ar.ociImages(f)
	}
	if f, ok := ar.file("manifest.json"); ok {
		return ar.dockerImages(f)
	}
	return nil, errors.New("it has neither index.json (OCI) nor manifest.json (docker)")
}

func (ar *archive) ociImages(f archiveFile) ([]*assembly, error) {
	b, err := f.read(maxManifest)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var found []*assembly
	byDigest := map[string]*assembly{}
	for _, d := range index.Manifests {
		if d.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		if len(index.Manifests) > 1 && d.Platform != nil {
			if _, err := choose([]ocispec.Descriptor{d}); err != nil {
				continue // one of several, for another machine
			}
		}
		a := byDigest[string(d.Digest)]
		if a == nil {
			if a, err = ar.ociImage(d); err != nil {
				return nil, fmt.Errorf("manifest %.80s: %w", d.Digest, err)
			}
			byDigest[string(d.Digest)] = a
			found = append(found, a)
		}
		if err := a.addName(archiveRef(d.Annotations), string(d.Digest)); err != nil {
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, errors.New("index.json lists no image for this machine")
	}
	return found, nil
}

// archiveRef is the name that a descriptor's annotations give. The standard
// one is often only a tag, which names nothing by itself.
func archiveRef(annotations map[string]string) string {
	if n := annotations["io.containerd.image.name"]; n != "" {
		return n
	}
	if n := annotations[ocispec.AnnotationRefName]; strings.ContainsAny(n, ":/@") {
		return n
	}
	return ""
}

// addName gives the image a name, under which its digest is known, too.
func (a *assembly) addName(name, digest string) error {
	if name == "" {
		return nil
	}
	n, err := parseName(name)
	if err != nil {
		return err
	}
	if _, ok := n.(reference.Tagged); ok && !slices.Contains(a.tags, n.String()) {
		a.tags = append(a.tags, n.String())
	}
	if byDigest := n.Name() + "@" + digest; digest != "" && !slices.Contains(a.digests, byDigest) {
		a.digests = append(a.digests, byDigest)
	}
	return nil
}

func (ar *archive) ociImage(d ocispec.Descriptor) (*assembly, error) {
	const depth = 3 // an index, perhaps in an index
	for range depth {
		raw, err := ar.blob(d, maxManifest)
		if err != nil {
			return nil, err
		}
		doc, err := parseDocument(raw, d.MediaType)
		if err != nil {
			return nil, err
		}
		if doc.Manifests != nil {
			if d, err = choose(doc.Manifests); err != nil {
				return nil, err
			}
			continue
		}
		return ar.assembly(doc, raw)
	}
	return nil, invalid("indexes are nested too deep")
}

func (ar *archive) blob(d ocispec.Descriptor, limit int64) ([]byte, error) {
	f, ok := ar.blobs[string(d.Digest)]
	if !ok {
		return nil, invalid("archive lacks the blob %.80s", d.Digest)
	}
	return f.read(limit)
}

func (ar *archive) assembly(doc *document, raw []byte) (*assembly, error) {
	if err := checkManifest(doc); err != nil {
		return nil, err
	}
	rawConf, err := ar.blob(*doc.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	config, err := checkConfig(rawConf, len(doc.Layers))
	if err != nil {
		return nil, err
	}
	return &assembly{
		fetcher: ar, private: true, pinned: true,
		manifest: blobRecord{digestOf(raw), doc.MediaType, int64(len(raw))},
		doc:      doc, rawDoc: raw, config: config, rawConf: rawConf,
	}, nil
}

// dockerImage is an entry of docker's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (ar *archive) dockerImages(f archiveFile) ([]*assembly, error) {
	b, err := f.read(maxManifest)
	if err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	var list []dockerImage
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("manifest.json lists no image")
	}
	var found []*assembly
	for _, d := range list {
		raw, err := ar.dockerManifest(d)
		if err != nil {
			return nil, fmt.Errorf("image %.100q: %w", d.Config, err)
		}
		doc, err := parseDocument(raw, ocispec.MediaTypeImageManifest)
		if err != nil {
			return nil, err
		}
		a, err := ar.assembly(doc, raw)
		if err != nil {
			return nil, fmt.Errorf("image %.100q: %w", d.Config, err)
		}
		for _, tag := range d.RepoTags {
			if err := a.addName(tag, ""); err != nil {
				return nil, err
			}
		}
		found = append(found, a)
	}
	return found, nil
}

// dockerManifest makes the manifest that such an archive does not have.
func (ar *archive) dockerManifest(d dockerImage) ([]byte, error) {
	config, ok := ar.file(d.Config)
	if !ok {
		return nil, invalid("archive lacks the config %.100q", d.Config)
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: digest.Digest(config.digest), Size: config.size}}
	m.SchemaVersion = 2
	for _, l := range d.Layers {
		f, ok := ar.file(l)
		if !ok {
			return nil, invalid("archive lacks the layer %.100q", l)
		}
		mediaType, err := sniffLayer(f.path)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(f.digest), Size: f.size})
	}
	return json.Marshal(m)
}

func sniffLayer(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head [4]byte
	if _, err := io.ReadFull(f, head[:]); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
		return "", err
	}
	switch {
	case bytes.HasPrefix(head[:], []byte{0x1f, 0x8b}):
		return ocispec.MediaTypeImageLayerGzip, nil
	case bytes.Equal(head[:], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return ocispec.MediaTypeImageLayer, nil
}
