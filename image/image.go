// Package image resolves, pulls, stores, lists, loads, saves and removes
// container images, and hands out their layers as directories for overlay
// mounts. It knows registries, OCI and docker formats and certs.d mirrors; it
// knows nothing of containers. Image bytes are attacker input throughout.
//
// An image is whole or absent: layers and blobs are staged, synced once,
// renamed and then recorded, so a crash or a power cut leaves at most staging
// directories, which the next Open removes. Everything is below one directory:
//
//	images/ID.json          a record: names, manifest, layers; checksummed
//	layers/CHAINID/fs       an unpacked layer, in overlayfs' format
//	blobs/sha256/…          manifests, configurations and compressed layers
//	holds/…json             which layers a holder needs
//	staging/                what is under way; emptied by Open
//	quarantine/             records that could not be read, for a human to see
//
// Only the engine and its commands call it.
package image

import (
	"errors"
	"log/slog"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config of a Store.
type Config struct {
	Dir      string // root of all data, made with mode 0700
	CertsDir string // certs.d convention, e.g. /etc/containerd/certs.d; "" for none
	Log      *slog.Logger

	// ParallelLayers is how many layers are fetched and unpacked at a time, by
	// all pulls together; 3 if zero.
	ParallelLayers int
	// StallTimeout ends a connection that brings no byte for so long; it is
	// tried again from where it stopped. One minute if zero.
	StallTimeout time.Duration
	// MaxEntries and MaxBytes bound one layer: files, and bytes unpacked.
	// 2,000,000 and 256 GiB if zero.
	MaxEntries, MaxBytes int64
}

// Image is one image: the configuration's digest is its ID.
type Image struct {
	ID          string   // "sha256:…" of the configuration
	RepoTags    []string // "docker.io/library/busybox:1.36"
	RepoDigests []string // "docker.io/library/busybox@sha256:…"
	Size        int64    // bytes of the compressed layers and configuration
	Pinned      bool
	Pulled      time.Time
	Config      ocispec.Image // attacker input, size-limited; without History
}

// Auth is a registry credential; the zero value is anonymous. It is never
// logged, and never sent to another host than the reference's own or, if given,
// ServerAddress.
type Auth struct {
	Username, Password, IdentityToken, RegistryToken string
	ServerAddress                                    string
}

// ErrNotFound says that no image has that name. Other errors of a pull are
// *PullError.
var ErrNotFound = errors.New("image not found")

// PullError tells why a pull failed. Reason is one of the Reason constants.
type PullError struct {
	Ref, Reason string
	Err         error
}

// Error is of bearable length although registries have a say in it.
func (e *PullError) Error() string {
	const limit = 1000
	text := e.Err.Error()
	if len(text) > limit {
		text = text[:limit/2] + " … " + text[len(text)-limit/2:]
	}
	return "pull " + e.Ref + ": " + text
}

func (e *PullError) Unwrap() error { return e.Err }

// Reasons of a PullError.
const (
	ReasonUnavailable    = "RegistryUnavailable" // no host answered, or all broke off
	ReasonNotFound       = "NotFound"            // the registry has no such image
	ReasonUnauthorized   = "Unauthorized"
	ReasonInvalidImage   = "InvalidImage" // malformed, hostile, or for another platform
	ReasonDigestMismatch = "DigestMismatch"
	ReasonNoSpace        = "NoSpace"
	ReasonInvalidName    = "InvalidName"
	ReasonCancelled      = "Cancelled"
	ReasonInternal       = "Internal" // this machine's fault: permissions, I/O, configuration
)

// Progress is the state of a pull under way.
type Progress struct {
	Ref     string
	Host    string // that was asked last, a mirror maybe; "": none yet
	Stage   string // resolving, fetching, syncing
	Started time.Time
	Layers  []LayerProgress
}

// LayerProgress is the state of one layer of it.
type LayerProgress struct {
	Digest         string
	Stage          string // waiting, fetching, unpacking, done, shared
	Bytes, Total   int64  // compressed
	Unpacked       int64  // bytes written
	BytesPerSecond int64  // fetched, on average since the layer's start
	Retries        int
}
