package shared

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"podstead/sys"
)

// Family is an address family.
type Family string

// The families, as they are called below /proc/sys/net.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

const sysctls = "/proc/sys/net"

func (f Family) forwarding() string { return filepath.Join(sysctls, string(f), "conf/all/forwarding") }

// before is the file that tells what Forward changed.
func (h *Host) before(f Family) string { return filepath.Join(h.dir, string(f)+"-forwarding.before") }

// before is its content: what is to be written where to undo Forward, in order.
type before []struct{ Path, Value string }

// Forwarding tells whether packets of a family are forwarded.
func Forwarding(f Family) (bool, error) {
	v, err := read(f.forwarding())
	return v != "0", err
}

func read(path string) (string, error) {
	v, err := os.ReadFile(path)
	return strings.TrimSpace(string(v)), err
}

// Forward turns forwarding on and remembers what it changed.
func (l *Locked) Forward(f Family) error {
	if on, err := Forwarding(f); err != nil || on {
		return err
	}
	// What an instance began that was killed stays to be undone.
	undo, err := l.host.readBefore(f)
	if err != nil {
		return err
	}
	if len(undo) == 0 {
		undo = before{{f.forwarding(), "0"}}
	}
	if f == IPv6 {
		more, err := routerAdvertisements()
		if err != nil {
			return err
		}
		undo = append(undo, more...)
	}
	data, err := json.Marshal(undo)
	if err != nil {
		return err
	}
	if err := sys.WriteFileAtomic(l.host.before(f), data, 0o600, false); err != nil {
		return err
	}
	// What becomes a router takes no more advertisements of other routers, and
	// forgets what it has of them, its default route first of all, unless the
	// interface is told to do both.
	for _, u := range undo[1:] {
		if err := write(u.Path, "2"); err != nil {
			return err
		}
	}
	if err := write(f.forwarding(), "1"); err != nil {
		return err
	}
	if f == IPv6 {
		// Interfaces that come later are as they would have been.
		return write(filepath.Join(sysctls, "ipv6/conf/default/forwarding"), "0")
	}
	return nil
}

// CheckIPv6 tells why the host's interfaces cannot have IPv6 addresses.
func CheckIPv6() error {
	for _, conf := range []string{"all", "default"} {
		v, err := read(filepath.Join(sysctls, "ipv6/conf", conf, "disable_ipv6"))
		if errors.Is(err, os.ErrNotExist) {
			return errors.New("the kernel has no IPv6")
		}
		if err != nil {
			return err
		}
		if v != "0" {
			return fmt.Errorf("IPv6 is off on this host: net.ipv6.conf.%s.disable_ipv6=%s", conf, v)
		}
	}
	return nil
}

// routerAdvertisements lists the interfaces of the host that listen to routers.
func routerAdvertisements() (undo before, err error) {
	files, err := filepath.Glob(filepath.Join(sysctls, "ipv6/conf/*/accept_ra"))
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		if name := filepath.Base(filepath.Dir(path)); name == "all" || name == "default" || name == "lo" {
			continue
		}
		if v, err := read(path); err == nil && v == "1" {
			undo = append(undo, struct{ Path, Value string }{path, v})
		}
	}
	return undo, nil
}

// write sets a sysctl. An interface that has gone meanwhile is no error.
func write(path, value string) error {
	err := os.WriteFile(path, []byte(value), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		key := strings.ReplaceAll(strings.TrimPrefix(path, "/proc/sys/"), "/", ".")
		return fmt.Errorf("set sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

func (h *Host) readBefore(f Family) (before, error) {
	data, err := os.ReadFile(h.before(f))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var undo before
	if err := json.Unmarshal(data, &undo); err != nil {
		return nil, fmt.Errorf("read %s: %w", h.before(f), err)
	}
	for _, u := range undo {
		if !strings.HasPrefix(u.Path, sysctls+"/") {
			return nil, fmt.Errorf("read %s: %s is no network sysctl", h.before(f), u.Path)
		}
	}
	return undo, nil
}

// restore undoes Forward, if it was an instance that did it.
func (l *Locked) restore(f Family) error {
	undo, err := l.host.readBefore(f)
	if err != nil {
		return err
	}
	for _, u := range undo {
		if err := write(u.Path, u.Value); err != nil {
			return err
		}
	}
	return nil
}
