package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
)

// maxStored bounds the sets of descriptors that are kept.
const maxStored = 10000

// store keeps descriptors under a name, in place of what was there.
func (d *daemon) store(name string, fds []int) error {
	if name == "" || len(name) > protocol.MaxID {
		return fmt.Errorf("store %q: %w", name, errInvalid)
	}
	if len(fds) == 0 {
		return fmt.Errorf("store %s: no descriptors: %w", name, errInvalid)
	}
	old, exists := d.stored[name]
	if !exists && len(d.stored) >= maxStored {
		return fmt.Errorf("store %s: %d names are taken: %w", name, len(d.stored), unix.EMFILE)
	}
	protocol.CloseFds(old)
	d.stored[name] = fds
	return nil
}

// take finds stored descriptors; they stay the supervisor's.
func (d *daemon) take(name string) ([]int, error) {
	fds, ok := d.stored[name]
	if !ok {
		return nil, fmt.Errorf("stored descriptors %s: %w", name, errNotExist)
	}
	return fds, nil
}

func (d *daemon) drop(name string) {
	protocol.CloseFds(d.stored[name])
	delete(d.stored, name)
}

// isListener tells whether a descriptor is a listening socket.
func isListener(fd int) bool {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && v == 1
}

// onlyListeners tells whether nothing is stored that somebody would miss.
func (d *daemon) onlyListeners() bool {
	for _, fds := range d.stored {
		for _, fd := range fds {
			if !isListener(fd) {
				return false
			}
		}
	}
	return true
}

// dropAll closes what is stored, and removes the names of unix sockets.
func (d *daemon) dropAll() {
	for name, fds := range d.stored {
		for _, fd := range fds {
			sa, err := unix.Getsockname(fd)
			if un, ok := sa.(*unix.SockaddrUnix); err == nil && ok && len(un.Name) > 1 && un.Name[0] == '/' {
				unix.Unlink(un.Name)
			}
		}
		d.drop(name)
	}
}
