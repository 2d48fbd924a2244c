// Package layer unpacks one image layer, a tar stream, into one directory in
// the form that overlayfs wants for a lower directory, and knows what a layer
// needs from the layers below it.
//
// The stream is attacker input. Every path is resolved by the kernel beneath
// the layer's root (openat2 with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS),
// names are never followed in their last component, and entries, bytes, names
// and the memory for them are bounded. What the package writes is not synced:
// the store syncs once per image. A failed unpack leaves a partial directory
// for its caller to remove with RemoveAll.
//
// Only the image store calls it. It keeps no state.
package layer

import (
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Limits bound what one layer may take. Zero values are defaults, far above what
// is seen in practice: the largest public images have some hundred thousand
// files and tens of gigabytes per layer.
type Limits struct {
	Entries    int64  // tar entries, made parents included; 2,000,000
	Bytes      int64  // sum of the files' logical sizes; 256 GiB
	ZstdWindow uint64 // largest zstd window, which is memory; 32 MiB
}

// Unpacker unpacks layers. It is safe for concurrent use, and keeps zstd
// decoders with their windows for the next layer until memory is collected.
type Unpacker struct {
	limits Limits
	zstd   sync.Pool // of *zstd.Decoder
}

// NewUnpacker returns an Unpacker with these limits.
func NewUnpacker(l Limits) *Unpacker {
	if l.Entries <= 0 {
		l.Entries = 2_000_000
	}
	if l.Bytes <= 0 {
		l.Bytes = 256 << 30
	}
	if l.ZstdWindow == 0 {
		l.ZstdWindow = 32 << 20
	}
	return &Unpacker{limits: l}
}

// Limits are those in force.
func (u *Unpacker) Limits() Limits { return u.limits }

const (
	maxName        = 4096    // PATH_MAX
	maxXattrs      = 256     // per entry
	implicitMemory = 8 << 20 // bytes of names of implicit directories
)

// Result tells what was unpacked.
type Result struct {
	DiffID digest.Digest // of the whole uncompressed stream
	Bytes  uint64        // taken on disk, estimated from sizes in 4 KiB blocks
	Inodes uint64
	// OpaqueRoot says that the layer hides all layers below it. Overlayfs does
	// not look for the mark on a layer's root, so the store leaves them out.
	OpaqueRoot bool
	// Implicit are directories that the archive does not mention but has
	// entries in, parents first. See FixImplicit.
	Implicit []string
	// Dropped counts attributes that were not applied, by name: those that
	// belong to overlayfs or to the host, or that the filesystem lacks.
	Dropped map[string]int
}

// FormatError says that the layer itself is wrong: no retry will help.
type FormatError struct {
	Entry string // name of the tar entry, "" for the stream as a whole
	Err   error
}

func (e *FormatError) Error() string {
	if e.Entry == "" {
		return "layer: " + e.Err.Error()
	}
	return fmt.Sprintf("layer entry %.200q: %v", e.Entry, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

var errTooMany = errors.New("more entries than allowed")
