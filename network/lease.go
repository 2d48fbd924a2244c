package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"podstead/network/internal/bridge"
	"podstead/network/internal/cni"
)

// leaseVersion is that of the file format. A reader takes older ones, too.
const leaseVersion = 1

// lease is the record of one connected pod: all that is needed to disconnect
// it. It is never changed; a new one takes its place.
type lease struct {
	Version   int       `json:"version"`
	PodID     string    `json:"podID"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       string    `json:"uid"`
	Netns     string    `json:"netns"`
	BootID    string    `json:"bootID"`
	Created   time.Time `json:"created"`

	IPs   []netip.Addr  `json:"ips,omitempty"`
	Ports []PortMapping `json:"ports,omitempty"`
	// Of the built-in network: the host's end of the veth pair, and its limits.
	Link   string        `json:"link,omitempty"`
	Limits bridge.Limits `json:"limits,omitzero"`
	CNI    *attachment   `json:"cni,omitempty"`  // who connected the pod, if not the built-in network
	Also   []*attachment `json:"also,omitempty"` // further networks by CNI plugins
}

// attachments lists the networks that plugins connected the pod to.
func (l *lease) attachments() []*attachment {
	if l.CNI == nil {
		return nil
	}
	return append([]*attachment{l.CNI}, l.Also...)
}

// parseLease reads a lease file. It checks what the rest relies on: these files
// lie on a disk, and names from them go to the kernel.
func parseLease(data []byte) (*lease, error) {
	var l lease
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, err
	}
	switch {
	case l.Version < 1 || l.Version > leaseVersion:
		return nil, fmt.Errorf("version %d is not supported", l.Version)
	case !validID.MatchString(l.PodID):
		return nil, fmt.Errorf("pod ID %q does not match %s", l.PodID, validID)
	case l.BootID == "":
		return nil, errors.New("no boot ID")
	}
	if l.CNI != nil {
		for _, a := range l.attachments() {
			if a == nil {
				return nil, errors.New("empty attachment")
			}
			if _, err := cni.Parse(a.File, a.Config); err != nil {
				return nil, err
			}
		}
		return &l, nil
	}
	return &l, l.checkBuiltin()
}

// checkBuiltin checks a lease of the built-in network.
func (l *lease) checkBuiltin() error {
	if l.Link == "" || len(l.Link) > 15 || strings.ContainsAny(l.Link, "/ \x00") {
		return fmt.Errorf("link name %q is not valid", l.Link)
	}
	for _, ip := range l.IPs {
		if !ip.IsValid() || ip.Zone() != "" || ip.Is4In6() {
			return fmt.Errorf("address %s is not valid", ip)
		}
	}
	if n := len(l.IPs); n != 1 && (n != 2 || l.IPs[0].Is4() == l.IPs[1].Is4()) {
		return fmt.Errorf("addresses %v: one of a family expected", l.IPs)
	}
	ports, err := normalizePorts(l.Ports)
	l.Ports = ports
	return err
}

// leases is the set of all leases, in memory and as one file each.
type leases struct {
	dir string
	log *slog.Logger

	mu    sync.Mutex
	byPod map[string]*lease
}

// openLeases reads all leases. One that cannot be read is renamed to *.bad.
func openLeases(dir string, log *slog.Logger) (*leases, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &leases{dir: dir, log: log, byPod: map[string]*lease{}}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		switch {
		case strings.HasPrefix(f.Name(), ".tmp-"):
			os.Remove(path) // of a write that a crash cut short
		case strings.HasSuffix(f.Name(), ".json"):
			l, err := readLease(path)
			if err != nil {
				s.setAside(path, err)
				continue
			}
			s.byPod[l.PodID] = l
		}
	}
	return s, nil
}

func readLease(path string) (*lease, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l, err := parseLease(data)
	if err == nil && filepath.Base(path) != l.PodID+".json" {
		err = fmt.Errorf("is of pod %s", l.PodID)
	}
	return l, err
}

// setAside puts a file out of the way that would do harm or no good.
func (s *leases) setAside(path string, why error) {
	s.log.Error("lease set aside", "file", path, "error", why)
	if err := os.Rename(path, path+".bad"); err != nil {
		s.log.Error("lease not set aside", "file", path, "error", err)
	}
}

func (s *leases) path(podID string) string { return filepath.Join(s.dir, podID+".json") }

// get returns the lease of a pod, or nil.
func (s *leases) get(podID string) *lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byPod[podID]
}

// all returns all leases, the oldest first.
func (s *leases) all() []*lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*lease, 0, len(s.byPod))
	for _, l := range s.byPod {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b *lease) int { return a.Created.Compare(b.Created) })
	return all
}

// put writes a lease in place of the one that the pod may have. The file comes
// second: whoever looks for things without a lease must not find those of one
// that is about to be written.
func (s *leases) put(l *lease) error {
	data, err := json.MarshalIndent(l, "", "\t")
	if err != nil {
		return err
	}
	s.mu.Lock()
	before := s.byPod[l.PodID]
	s.byPod[l.PodID] = l
	s.mu.Unlock()
	err = writeJSON(s.path(l.PodID), data)
	if errors.Is(err, os.ErrNotExist) { // after destroy
		if err = os.MkdirAll(s.dir, 0o700); err == nil {
			err = writeJSON(s.path(l.PodID), data)
		}
	}
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if delete(s.byPod, l.PodID); before != nil {
			s.byPod[l.PodID] = before
		}
		return fmt.Errorf("write lease: %w", err)
	}
	return nil
}

// remove forgets a lease.
func (s *leases) remove(podID string) error {
	if err := os.Remove(s.path(podID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove lease: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byPod, podID)
	return nil
}

// destroy removes the directory, with what was set aside in it.
func (s *leases) destroy() error { return os.RemoveAll(s.dir) }
