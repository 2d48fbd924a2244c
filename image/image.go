// Package image resolves, pulls, stores, lists, loads, saves and removes
// container images, and hands out their layers as directories for overlay
// mounts. It knows registries, OCI and docker formats and certs.d mirrors; it
// knows nothing of containers. Image bytes are attacker input throughout.
//
// An image is whole or absent: layers are staged, synced once, renamed and then
// recorded, so a crash or a power cut leaves at most staging directories, which
// the next Open removes.
package image

import (
	"context"
	"io"
	"log/slog"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config of a Store.
type Config struct {
	Dir      string // root of all data, made with mode 0700
	CertsDir string // certs.d convention, e.g. /etc/containerd/certs.d; "" for none
	Log      *slog.Logger
}

// Store holds images. Safe for concurrent use; one process at a time may have a
// directory open (a lock file sees to that).
type Store struct{}

// Open opens or makes a store. A bad record is set aside and logged, never fatal.
func Open(cfg Config) (*Store, error) { panic("not yet") }

// Close waits for nothing; pulls under way are cancelled and their staging removed.
func (s *Store) Close() error { panic("not yet") }

// Image is one image: the configuration's digest is its ID.
type Image struct {
	ID          string   // "sha256:…" of the configuration
	RepoTags    []string // "docker.io/library/busybox:1.36"
	RepoDigests []string // "docker.io/library/busybox@sha256:…"
	Size        int64    // bytes of the compressed layers and configuration
	Pinned      bool
	Pulled      time.Time
	Config      ocispec.Image // attacker input, size-limited
}

// Auth is a registry credential; the zero value is anonymous. It is never logged.
type Auth struct {
	Username, Password, IdentityToken, RegistryToken string
	ServerAddress                                    string
}

// ErrNotFound says that no image has that name. Other errors of a pull are
// *PullError.
var ErrNotFound error

// PullError tells why a pull failed. Reason is one of "RegistryUnavailable",
// "NotFound", "Unauthorized", "InvalidImage", "DigestMismatch", "NoSpace",
// "InvalidName", "Cancelled".
type PullError struct {
	Ref, Reason string
	Err         error
}

func (e *PullError) Error() string { return "pull " + e.Ref + ": " + e.Err.Error() }
func (e *PullError) Unwrap() error { return e.Err }

// Pull brings an image for this machine's platform and records it under ref
// ("busybox", "host:5000/a/b:tag", "name@sha256:…"). Concurrent pulls of the
// same reference join; concurrent pulls share layers under way.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth) (Image, error) { panic("not yet") }

// Progress is the state of a pull under way.
type Progress struct {
	Ref     string
	Stage   string // resolving, fetching, unpacking, syncing
	Started time.Time
	Layers  []LayerProgress
}

// LayerProgress is the state of one layer of it.
type LayerProgress struct {
	Digest         string
	Stage          string // waiting, fetching, unpacking, done, shared
	Bytes, Total   int64  // compressed
	Unpacked       int64  // bytes written
	BytesPerSecond int64
	Retries        int
}

// Pulls returns all pulls under way.
func (s *Store) Pulls() []Progress { panic("not yet") }

// Get finds an image by tag, tag-less name, digest reference, full or
// unambiguous short ID. ErrNotFound if there is none.
func (s *Store) Get(name string) (Image, error) { panic("not yet") }

// List returns all images, newest first.
func (s *Store) List() []Image { panic("not yet") }

// Remove removes the image of that name with all its tags, and the layers that
// nothing else uses. Layers held by Hold stay until released. A missing image
// is no error.
func (s *Store) Remove(ctx context.Context, name string) error { panic("not yet") }

// Untag removes one name; the image goes with its last name.
func (s *Store) Untag(ctx context.Context, ref string) error { panic("not yet") }

// Hold returns the layer directories of an image, top first, for an overlay's
// lowerdir, and keeps them until Release(holder), also across a restart of the
// process and a Remove of the image.
func (s *Store) Hold(ctx context.Context, id, holder string) (lower []string, err error) {
	panic("not yet")
}

// Release ends a hold; an unknown holder is no error.
func (s *Store) Release(ctx context.Context, holder string) error { panic("not yet") }

// Holders lists the holders, for reconciliation at start.
func (s *Store) Holders() []string { panic("not yet") }

// Load reads OCI layout or docker archives (tar, also gzip or zstd), from which
// it takes images and names. Loaded images are pinned.
func (s *Store) Load(ctx context.Context, r io.Reader) ([]Image, error) { panic("not yet") }

// Save writes images as one OCI archive that docker, too, can load.
func (s *Store) Save(ctx context.Context, w io.Writer, names ...string) error { panic("not yet") }

// Usage returns the bytes and inodes that the store takes on its filesystem,
// from its records and not by walking trees.
func (s *Store) Usage() (bytes, inodes uint64) { panic("not yet") }
