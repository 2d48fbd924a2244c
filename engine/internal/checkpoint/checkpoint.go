// Package checkpoint writes and reads the archives that a container's state is
// kept in: the tar files of Podman, CRI-O and containerd, which checkpointctl
// shows and buildah makes images of.
//
//	config.dump      which container and image (Config)
//	spec.dump        the OCI specification
//	checkpoint/      CRIU's image files
//	rootfs-diff.tar  what was changed in the root, like an image layer
//	deleted.files    what was deleted there, a JSON list
//	dump.log, stats-dump
//
// Memory, and so every secret of the container, is in there: files are for root
// alone. What is read is attacker input: only files of known names are taken,
// regular ones, bounded in number and by the archive's own size; nothing in
// them is policy. The engine calls it; it keeps nothing.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Names in an archive.
const (
	ConfigFile  = "config.dump"
	SpecFile    = "spec.dump"
	ImagesDir   = "checkpoint"
	DiffFile    = "rootfs-diff.tar"
	DeletedFile = "deleted.files"
	LogFile     = "dump.log"
	StatsFile   = "stats-dump"
)

// Bounds of what is read.
const (
	maxFiles    = 100_000 // CRIU writes some ten for each process
	maxMetadata = 4 << 20
)

// Config is config.dump, as far as all who write it agree.
type Config struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	RestoredAt      time.Time `json:"restoredTime"`
	Restored        bool      `json:"restored"`
}

// ErrFormat is in the error if an archive is not what it should be.
var ErrFormat = errors.New("is no checkpoint of a container")

// imageName is what CRIU calls its files.
var imageName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,200}$`)

// Dir is a directory with a container's checkpoint, laid out like an archive.
type Dir string

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

// Images is the directory of CRIU's files.
func (d Dir) Images() string { return d.path(ImagesDir) }

// Config reads config.dump.
func (d Dir) Config() (Config, error) {
	var c Config
	return c, d.read(ConfigFile, &c)
}

// Spec reads spec.dump. It tells how the container was, not how it is to be.
func (d Dir) Spec() (*specs.Spec, error) {
	var s specs.Spec
	return &s, d.read(SpecFile, &s)
}

// Deleted reads the list of deleted files; there may be none.
func (d Dir) Deleted() ([]string, error) {
	var names []string
	err := d.read(DeletedFile, &names)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// Diff opens what was changed in the root, nil if nothing was.
func (d Dir) Diff() (*os.File, error) {
	f, err := openRegular(d.path(DiffFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

func (d Dir) read(name string, to any) error {
	f, err := openRegular(d.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMetadata+1))
	if err != nil {
		return err
	}
	if len(b) > maxMetadata {
		return fmt.Errorf("%s: more than %d bytes: %w", name, maxMetadata, ErrFormat)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrFormat, err)
	}
	return nil
}

// openRegular opens a file that is no link, pipe or device (CVE-2026-53489).
func openRegular(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: is no regular file: %w", path, ErrFormat)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// WriteConfig and WriteSpec write the metadata.
func (d Dir) WriteConfig(c Config) error { return d.write(ConfigFile, c) }

// WriteSpec writes spec.dump.
func (d Dir) WriteSpec(s *specs.Spec) error { return d.write(SpecFile, s) }

func (d Dir) write(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(d.path(name), b, 0o600)
}
