package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"podstead/sys"
)

// A record file is an envelope around what it says, so that a file which was
// cut short or changed is told from a good one.
type envelope struct {
	Version  int             `json:"version"`
	Checksum string          `json:"sha256"` // hex, of Record's bytes
	Record   json.RawMessage `json:"record"`
}

const recordVersion = 1

// record is what is known of an image. A record in the index is never changed:
// it is replaced, on disk first.
type record struct {
	ID       string        `json:"id"`
	Tags     []string      `json:"tags,omitempty"`
	Digests  []string      `json:"digests,omitempty"`
	Manifest blobRecord    `json:"manifest"`
	Config   blobRecord    `json:"config"`
	Layers   []layerRecord `json:"layers"` // lowest first
	Pinned   bool          `json:"pinned,omitempty"`
	Pulled   time.Time     `json:"pulled"`
}

type blobRecord struct {
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"`
}

type layerRecord struct {
	Blob       blobRecord `json:"blob"`
	DiffID     string     `json:"diffID"`
	Chain      string     `json:"chain"` // chain ID: names the directory
	Bytes      uint64     `json:"bytes"` // of the unpacked files
	Inodes     uint64     `json:"inodes"`
	OpaqueRoot bool       `json:"opaqueRoot,omitempty"` // hides the layers below
}

// hold is what a holder needs. It says all that is to know of the layers, for
// the image may be gone.
type hold struct {
	Holder string        `json:"holder"`
	Image  string        `json:"image"`
	Layers []layerRecord `json:"layers"`
}

func (r *record) clone() *record {
	c := *r
	c.Tags, c.Digests, c.Layers = slices.Clone(r.Tags), slices.Clone(r.Digests), slices.Clone(r.Layers)
	return &c
}

// size of what was or would be fetched.
func (r *record) size() int64 {
	n := r.Config.Size
	for _, l := range r.Layers {
		n += l.Blob.Size
	}
	return n
}

// files are the paths, relative to the store, that the record needs.
func (r *record) files() []string {
	f := []string{blobPath(r.Manifest.Digest), blobPath(r.Config.Digest)}
	for _, l := range r.Layers {
		f = append(f, blobPath(l.Blob.Digest), layerPath(l.Chain))
	}
	return f
}

func writeRecord(path string, v any, durable bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	b, err = json.Marshal(envelope{recordVersion, hex.EncodeToString(sum[:]), b})
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(path, b, 0o600, durable)
}

func readRecord(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if e.Version != recordVersion {
		return fmt.Errorf("record version %d is not %d", e.Version, recordVersion)
	}
	if sum := sha256.Sum256(e.Record); hex.EncodeToString(sum[:]) != e.Checksum {
		return fmt.Errorf("record's checksum is wrong")
	}
	return json.Unmarshal(e.Record, v)
}
