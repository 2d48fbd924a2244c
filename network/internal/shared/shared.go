// Package shared is what the instances on one host must agree on, although they
// know nothing of each other: who has which subnets, and who turned IP
// forwarding on. It lives in small files below a directory on a tmpfs, changed
// under a file lock; a reboot forgets them as it forgets what they speak of.
package shared

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Instance is one instance's entry.
type Instance struct {
	Name     string         `json:"name"` // of its bridge and table
	StateDir string         `json:"stateDir"`
	Subnets  []netip.Prefix `json:"subnets,omitempty"` // none if its pods are connected by plugins
}

// Host is the host's network as its instances see it: each network namespace
// that runs instances is a host of its own.
type Host struct {
	dir string
}

// Open returns the host that this process is on, with its files below root.
func Open(root string) (*Host, error) {
	// The thread's own namespace, not the first thread's: they are the same
	// one everywhere but in a test.
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return nil, fmt.Errorf("find own network namespace: %w", err)
	}
	return &Host{dir: filepath.Join(root, fmt.Sprintf("net-%d", st.Ino))}, nil
}

// Locked is the host while no other instance can change it.
type Locked struct {
	host *Host
	lock *os.File
}

// Lock waits for other instances to be done and returns the host for changing.
// Unlock must follow soon.
func (h *Host) Lock() (*Locked, error) {
	for {
		if err := os.MkdirAll(h.instances(), 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(h.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // the last instance left right now
		}
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if sameFile(f, h.lockFile()) {
			return &Locked{host: h, lock: f}, nil
		}
		f.Close() // it was removed while we waited
	}
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

func (h *Host) lockFile() string         { return filepath.Join(h.dir, "lock") }
func (h *Host) instances() string        { return filepath.Join(h.dir, "instances") }
func (h *Host) entry(name string) string { return filepath.Join(h.instances(), name+".json") }

// Unlock lets others go on.
func (l *Locked) Unlock() { l.lock.Close() }

// Instances lists the entries of all instances. One that cannot be read is
// reported in the error, and the others are returned nevertheless. Without the
// lock the list may be out of date.
func (h *Host) Instances() ([]Instance, error) {
	files, err := filepath.Glob(h.entry("*"))
	if err != nil {
		return nil, err
	}
	var all []Instance
	var errs []error
	for _, path := range files {
		var i Instance
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &i)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read %s: %w", path, err))
			continue
		}
		all = append(all, i)
	}
	return all, errors.Join(errs...)
}

// Join writes or replaces the entry of an instance.
func (l *Locked) Join(i Instance) error {
	data, err := json.Marshal(i)
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(l.host.entry(i.Name), data, 0o600, false)
}

// Forget removes the entry of an instance that others found to be gone.
func (l *Locked) Forget(name string) error { return os.Remove(l.host.entry(name)) }

// Leave removes the entry of an instance. The last one to leave turns
// forwarding off again, if it was an instance that turned it on, and removes
// the directory.
func (l *Locked) Leave(name string) error {
	if err := os.Remove(l.host.entry(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	left, err := filepath.Glob(l.host.entry("*"))
	if err != nil || len(left) > 0 {
		return err
	}
	for _, f := range []Family{IPv4, IPv6} {
		if err := l.restore(f); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(l.host.dir); err != nil {
		return err
	}
	os.Remove(filepath.Dir(l.host.dir)) // stays if another namespace uses it
	return nil
}
