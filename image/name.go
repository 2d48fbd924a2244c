package image

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// parseName normalises an image name as all of the field does: "busybox" is
// "docker.io/library/busybox:latest", and a digest makes a tag beside it moot.
func parseName(name string) (reference.Named, error) {
	n, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, fmt.Errorf("image name %.300q: %w", name, err)
	}
	return n, nil
}

// isID tells "sha256:…" and the bare 64 digits, and returns the former.
func isID(s string) (string, bool) {
	s = strings.TrimPrefix(s, "sha256:")
	if len(s) != 64 || !isHex(s) {
		return "", false
	}
	return "sha256:" + s, true
}

func isHex(s string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}

// lookup finds the record of a name; s.mu is held.
func (s *Store) lookup(name string) (*entry, error) {
	if id, ok := isID(name); ok {
		if e := s.images[id]; e != nil {
			return e, nil
		}
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if n, err := parseName(name); err == nil {
		if id, ok := s.names[n.String()]; ok {
			return s.images[id], nil
		}
	}
	prefix := strings.TrimPrefix(name, "sha256:")
	const minPrefix = 4
	if len(prefix) < minPrefix || !isHex(prefix) {
		return nil, fmt.Errorf("%w: %.300s", ErrNotFound, name)
	}
	var found *entry
	for id, e := range s.images {
		if strings.HasPrefix(id, "sha256:"+prefix) {
			if found != nil {
				return nil, fmt.Errorf("image ID %s is ambiguous", name)
			}
			found = e
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	return found, nil
}

// blobPath and layerPath are relative to the store's directory.
func blobPath(d string) string      { return "blobs/sha256/" + digestHex(d) }
func layerPath(chain string) string { return "layers/" + digestHex(chain) }
func imagePath(id string) string    { return "images/" + digestHex(id) + ".json" }

func holdPath(holder string) string {
	return "holds/" + digestHex(string(digest.FromString(holder))) + ".json"
}

func digestHex(d string) string { return strings.TrimPrefix(d, "sha256:") }

// validDigest says whether d is a whole sha256 digest, and so a safe file name.
func validDigest(d digest.Digest) error {
	h, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok {
		return fmt.Errorf("digest %.80q is not sha256", string(d))
	}
	if b, err := hex.DecodeString(h); err != nil || len(b) != 32 || !isHex(h) {
		return fmt.Errorf("digest %.80q is malformed", string(d))
	}
	return nil
}
