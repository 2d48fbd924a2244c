package nat

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelTimeout bounds the wait for an answer of the kernel: an answer that
// does not come must not hold up all pods.
const kernelTimeout = 30 * time.Second

// session keeps its netlink sockets open, for closing one costs: the kernel
// then waits until what earlier transactions deleted is out of use, some ten
// milliseconds, in which no other transaction is begun.
type session struct {
	mu    sync.Mutex
	nft   *nftables.Conn
	raw   *mdlayher.Conn
	track *netlink.Handle
}

// do runs f with a connection that nobody else uses meanwhile. After an error
// the connection is given up, with the answers that may still be on their way.
func (s *session) do(f func(*nftables.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nft == nil {
		keep := func(c *mdlayher.Conn) error { s.raw = c; return nil }
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(keep))
		if err != nil {
			return fmt.Errorf("open nftables socket: %w", err)
		}
		s.nft = c
	}
	err := s.raw.SetDeadline(time.Now().Add(kernelTimeout))
	if err == nil {
		err = f(s.nft)
	}
	if err != nil {
		err = errors.Join(err, s.nft.CloseLasting())
		s.nft = nil
	}
	return err
}

// conntrack runs f with a socket for the connection table.
func (s *session) conntrack(f func(*netlink.Handle) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.track == nil {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open conntrack socket: %w", err)
		}
		if err := h.SetSocketTimeout(kernelTimeout); err != nil {
			h.Close()
			return err
		}
		s.track = h
	}
	return f(s.track)
}

func (s *session) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.track != nil {
		s.track.Close()
		s.track = nil
	}
	if s.nft == nil {
		return nil
	}
	err := s.nft.CloseLasting()
	s.nft = nil
	return err
}
