// Package oci is the OCI runtime: it creates, starts, signals and deletes
// containers from bundles, with the command line that runc has, so that
// whoever drives runc (containerd's shim, conmon and podman, people) can drive
// it. Each verb has a file of its own, which holds the operation, a method of
// Runtime, and its command.
//
//	create   directory, cgroup, compile, fork; the child prepares itself and waits
//	start    another process connects to the child, which executes the program
//	delete   kill what is left, remove cgroup and directory
//
// It is not the engine's way to launch containers, which have a supervisor for
// a parent and need no command line; both use oci/launch.
//
// All that outlives a call is in the container's directory below the root (on
// tmpfs): the record, the specification as it was at create, the compiled
// program's texts and the socket on which a created container waits. The
// kernel is asked what is true: a record whose process is gone is a stopped
// container. A call that dies half way leaves what delete --force removes.
package oci

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/cgroup/systemd"
	"podstead/oci/resctrl"
)

// Version is the runtime-spec version that is implemented.
const Version = "1.3.0"

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("container does not exist")
	ErrExists   = errors.New("container with given ID already exists")
	ErrStatus   = errors.New("container has the wrong status")
)

// Runtime keeps containers below a root directory. It holds no state of its
// own, so any number of processes may work on one root at a time: calls that
// change a container exclude each other by a lock on its directory.
type Runtime struct {
	Root    string
	Log     *slog.Logger
	Cgroups *cgroup.Hierarchy
	// Systemd makes the groups of containers if UseSystemd says so, and removes
	// those that it made in any case.
	Systemd    *systemd.Manager
	UseSystemd bool
	// privilege is what we may do on the host.
	privilege privilege
	// Resctrl is the file system for linux.intelRdt; nil means the mounted one.
	Resctrl *resctrl.FS
}

// checkID refuses what would not be a plain name of a directory.
func checkID(id string) error {
	if id == "" {
		return errors.New("container ID cannot be empty")
	}
	foreign := func(r rune) bool {
		return !('A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || strings.ContainsRune("_+-.", r))
	}
	if strings.ContainsFunc(id, foreign) || id == "." || id == ".." || len(id) > 255 {
		return fmt.Errorf("invalid container ID %q: want one of A-Z a-z 0-9 _ + - . for each character", id)
	}
	return nil
}

func (r *Runtime) dir(id string) string { return filepath.Join(r.Root, id) }

// Files in a container's directory.
const (
	recordFile  = "state.json"
	specFile    = "config.json"
	programFile = "program"
	startSocket = "start.sock"
)

// container is one container, loaded.
type container struct {
	runtime *Runtime
	record
	// devicesSet tells that the device rules are in force.
	devicesSet bool
	lock       *os.File          // its directory, if locked
	groups     *cgroup.Hierarchy // where its group is, once that was asked for
}

func (c *container) dir() string             { return c.runtime.dir(c.ID) }
func (c *container) file(name string) string { return filepath.Join(c.dir(), name) }

// group is the container's control group. That of a container which has none
// says so in all that it is asked.
func (c *container) group() *cgroup.Group {
	if c.groups == nil {
		c.groups = c.runtime.Cgroups
		if c.Systemd {
			c.groups = c.groups.WithDriver(c.runtime.Systemd)
		}
	}
	return c.groups.Group(c.Cgroup)
}

func (c *container) unlock() {
	if c.lock != nil {
		c.lock.Close()
		c.lock = nil
	}
}

// load reads a container's record.
func (r *Runtime) load(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	rec, err := readRecord(filepath.Join(r.dir(id), recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	return &container{runtime: r, record: rec}, nil
}

// loadLocked reads it after all others that work on the container are done.
func (r *Runtime) loadLocked(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	lock, err := lockDir(r.dir(id), unix.LOCK_EX)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	c, err := r.load(id)
	if err != nil {
		lock.Close()
		return nil, err
	}
	c.lock = lock
	return c, nil
}

// lockDir locks a directory for as long as the file is open. Forked children
// close it at once. A directory that was replaced while we waited is not the
// one that others lock.
func lockDir(dir string, how int) (*os.File, error) {
	for {
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		if err := flock(f, how); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		locked, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if now, err := os.Stat(dir); err == nil && os.SameFile(locked, now) {
			return f, nil
		}
		f.Close()
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}
