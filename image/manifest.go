package image

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What a registry or an archive may make us hold in memory (CVE-2023-25153).
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	maxLayers   = 500 // overlayfs' own limit
)

// Docker's media types beside those of OCI.
const (
	dockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig    = "application/vnd.docker.container.image.v1+json"
	dockerLayer     = "application/vnd.docker.image.rootfs.diff.tar"
	dockerSchema1   = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1JW = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// invalid is an error about the image itself.
func invalid(format string, args ...any) error {
	return &reasonError{ReasonInvalidImage, fmt.Errorf(format, args...)}
}

// reasonError carries a PullError's reason up to where the reference is known.
type reasonError struct {
	reason string
	err    error
}

func (e *reasonError) Error() string { return e.err.Error() }
func (e *reasonError) Unwrap() error { return e.err }

func digestOf(data []byte) string { return string(digest.FromBytes(data)) }

// document is any of what a manifest's address can return.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
	ArtifactType  string               `json:"artifactType"`
	Annotations   map[string]string    `json:"annotations"`
}

// parseDocument tells a manifest from an index, by content as well as by media
// type: the two must not disagree (CVE-2021-41190).
func parseDocument(b []byte, mediaType string) (*document, error) {
	if len(b) > maxManifest {
		return nil, invalid("manifest of more than %d bytes", maxManifest)
	}
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, invalid("manifest is not JSON: %v", err)
	}
	if d.MediaType != "" {
		mediaType = d.MediaType
	}
	switch mediaType {
	case dockerSchema1, dockerSchema1JW:
		return nil, invalid("manifest is of Docker schema 1, which is not supported: push the image again with a current tool")
	}
	if d.SchemaVersion == 1 || d.FSLayers != nil {
		return nil, invalid("manifest is of Docker schema 1, which is not supported: push the image again with a current tool")
	}
	if d.SchemaVersion != 2 {
		return nil, invalid("manifest has schemaVersion %d", d.SchemaVersion)
	}
	isIndex := mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerIndex
	isManifest := mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest
	switch {
	case d.Manifests != nil && (d.Config != nil || d.Layers != nil):
		return nil, invalid("manifest is an index and an image at once")
	case d.Manifests != nil && isManifest, d.Config != nil && isIndex:
		return nil, invalid("manifest's content is not of its media type %.100q", mediaType)
	case d.Manifests == nil && d.Config == nil:
		return nil, invalid("manifest has neither a config nor manifests (media type %.100q)", mediaType)
	}
	d.MediaType = mediaType
	return &d, nil
}

// choose returns the manifest of an index for this machine.
func choose(index []ocispec.Descriptor) (ocispec.Descriptor, error) {
	matcher := platforms.Only(platforms.DefaultSpec())
	var best *ocispec.Descriptor
	var has []string
	for i := range index {
		d := &index[i]
		if d.MediaType != ocispec.MediaTypeImageManifest && d.MediaType != dockerManifest && d.MediaType != "" {
			continue // nested indexes, artifacts
		}
		if d.Platform == nil {
			if len(index) == 1 {
				return *d, nil
			}
			continue
		}
		if d.Annotations["vnd.docker.reference.type"] != "" {
			continue // an attestation
		}
		if len(has) < 20 {
			has = append(has, platforms.Format(*d.Platform))
		}
		if matcher.Match(*d.Platform) && (best == nil || matcher.Less(*d.Platform, *best.Platform)) {
			best = d
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, invalid("no image for %s: there are %s",
			platforms.Format(platforms.DefaultSpec()), strings.Join(has, ", "))
	}
	return *best, nil
}

// checkPlatform refuses an image that would end in "exec format error".
func checkPlatform(c ocispec.Image) error {
	if c.OS != "" && c.OS != runtime.GOOS {
		return invalid("image is for the operating system %.50q", c.OS)
	}
	if c.Architecture == "" {
		return nil
	}
	p := c.Platform
	p.OS = runtime.GOOS
	if !platforms.Only(platforms.DefaultSpec()).Match(platforms.Normalize(p)) {
		return invalid("image is for %.100s, this machine is %s",
			platforms.Format(p), platforms.Format(platforms.DefaultSpec()))
	}
	return nil
}

// checkManifest refuses what cannot be run, before anything large is fetched.
func checkManifest(d *document) error {
	if err := checkDescriptor(*d.Config, maxConfig); err != nil {
		return invalid("config: %w", err)
	}
	if mt := d.Config.MediaType; mt != ocispec.MediaTypeImageConfig && mt != dockerConfig {
		return invalid("config's media type %.100q is not that of an image", mt)
	}
	if len(d.Layers) > maxLayers {
		return invalid("%d layers, more than the %d that overlayfs can stack", len(d.Layers), maxLayers)
	}
	for i, l := range d.Layers {
		if err := checkLayer(l); err != nil {
			return invalid("layer %d: %w", i+1, err)
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor, most int64) error {
	if err := validDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > most {
		return fmt.Errorf("size %d is not within 0 and %d", d.Size, most)
	}
	return nil
}

// checkLayer takes layers in the formats of the field. A foreign layer lies on
// a host that the manifest names: no request, and so no credential, ever goes
// to it (CVE-2020-15157).
func checkLayer(l ocispec.Descriptor) error {
	const most = 1 << 40
	if err := checkDescriptor(l, most); err != nil {
		return err
	}
	switch l.MediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		dockerLayer, dockerLayer + ".gzip", dockerLayer + ".zstd", dockerLayer + "+gzip", dockerLayer + "+zstd":
		return nil
	}
	if strings.Contains(l.MediaType, "foreign") || strings.Contains(l.MediaType, "nondistributable") {
		return fmt.Errorf("media type %.100q: foreign layers are not fetched", l.MediaType)
	}
	if strings.Contains(l.MediaType, "encrypted") {
		return fmt.Errorf("media type %.100q: encrypted layers are not supported", l.MediaType)
	}
	return fmt.Errorf("media type %.100q is not that of a layer", l.MediaType)
}

// checkConfig reads a configuration and checks it against the manifest.
func checkConfig(b []byte, layers int) (ocispec.Image, error) {
	c, err := parseConfig(b)
	if err != nil {
		return c, invalid("%w", err)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return c, invalid("config has %d diff IDs for %d layers", len(c.RootFS.DiffIDs), layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := validDigest(d); err != nil {
			return c, invalid("diff ID: %w", err)
		}
	}
	if layers == 0 {
		return c, invalid("image has no layers")
	}
	return c, checkPlatform(c)
}

// chainIDs names each layer together with all below it. Layers are stored by
// chain, as a few of them depend on what lies below: see layer.FixImplicit.
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	chain := make([]digest.Digest, len(diffIDs))
	copy(chain, diffIDs)
	return identity.ChainIDs(chain)
}
