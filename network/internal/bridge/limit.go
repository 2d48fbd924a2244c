package bridge

import (
	"errors"
	"fmt"
	"math"
	"net"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Limits bound what passes a port, in bits per second; 0 is no bound.
type Limits struct {
	ToPod   uint64 `json:"toPod,omitempty"`
	FromPod uint64 `json:"fromPod,omitempty"`
}

// NoIFBError says that the kernel cannot shape what comes from a pod.
type NoIFBError struct{ Err error }

func (e *NoIFBError) Error() string {
	return fmt.Sprintf("the kernel has no links of type ifb (CONFIG_IFB): %v", e.Err)
}

// Unwrap returns the cause.
func (e *NoIFBError) Unwrap() error { return e.Err }

// Limit shapes the traffic of a port on the host's side, where no pod can change
// it: what goes to the pod as it leaves the port, and what comes from it as it
// leaves an ifb link, to which it is led first, for the kernel shapes only what
// goes out. It can be repeated.
func (b *Bridge) Limit(name string, l Limits) error {
	if l == (Limits{}) {
		return nil
	}
	port, err := b.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look for %s: %w", name, err)
	}
	if l.ToPod > 0 {
		if err := b.shape(port, l.ToPod); err != nil {
			return err
		}
	}
	if l.FromPod == 0 {
		return nil
	}
	ifb, err := b.ensureIFB(ifbName(name), port.Attrs().MTU)
	if err != nil {
		return err
	}
	if err := b.shape(ifb, l.FromPod); err != nil {
		return err
	}
	return b.redirect(port, ifb)
}

// shape lets a link send so many bits per second.
func (b *Bridge) shape(link netlink.Link, bits uint64) error {
	q := tokenBucket(bits/8, link.Attrs().MTU)
	q.QdiscAttrs = netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if err := b.nl.QdiscReplace(q); err != nil {
		return fmt.Errorf("limit %s to %d bit/s: %w", link.Attrs().Name, bits, err)
	}
	return nil
}

// tokenBucket sends rate bytes per second in the long run, as much at once as
// the link has sent less in the last 10 ms (but two packets), and lets packets
// wait for 50 ms.
func tokenBucket(rate uint64, mtu int) *netlink.Tbf {
	const ethernetHeader = 14
	// The kernel counts in units of 64 ns with 32 bits.
	const longest = 250 // seconds
	burst := min(max(rate/100, uint64(2*(mtu+ethernetHeader))), rate*longest, math.MaxUint32/4)
	queue := min(rate/20, math.MaxUint32/4)
	return &netlink.Tbf{Rate: rate, Limit: uint32(burst + queue), Buffer: netlink.Xmittime(rate, uint32(burst))}
}

// ensureIFB returns the ifb link called name, up.
func (b *Bridge) ensureIFB(name string, mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	err := b.nl.LinkAdd(&netlink.Ifb{LinkAttrs: attrs})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, &NoIFBError{err}
	case err != nil && !errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	if err := WriteSysctl("ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return nil, err
	}
	link, err := b.nl.LinkByName(name)
	if err == nil {
		err = b.nl.LinkSetUp(link)
	}
	if err != nil {
		return nil, fmt.Errorf("set %s up: %w", name, err)
	}
	return link, nil
}

// redirect leads all that comes in by a port to another link, which sends it on
// its way again.
func (b *Bridge) redirect(port, to netlink.Link) error {
	index := port.Attrs().Index
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	err := b.nl.QdiscAdd(ingress)
	if errors.Is(err, unix.EEXIST) { // with a filter that may lead to a link that is gone
		if err = b.nl.QdiscDel(ingress); err == nil {
			err = b.nl.QdiscAdd(ingress)
		}
	}
	if err == nil {
		attrs := netlink.FilterAttrs{LinkIndex: index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL}
		actions := []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)}
		err = b.nl.FilterAdd(&netlink.MatchAll{FilterAttrs: attrs, Actions: actions})
		if errors.Is(err, unix.ENOENT) { // a kernel without cls_matchall
			err = b.nl.FilterAdd(&netlink.U32{FilterAttrs: attrs, Actions: actions})
		}
	}
	if err != nil {
		return fmt.Errorf("lead %s to %s: %w", port.Attrs().Name, to.Attrs().Name, err)
	}
	return nil
}

// Unlimit removes the link that Limit made for a port, which may be gone.
func (b *Bridge) Unlimit(name string) error { return b.Remove(ifbName(name)) }

const (
	portPrefix = "veth"
	ifbPrefix  = "ifb"
)

// PortName makes the name of a port from ten hexadecimal digits.
func PortName(digits string) string { return portPrefix + digits }

func ifbName(port string) string { return ifbPrefix + strings.TrimPrefix(port, portPrefix) }

var ifbPattern = regexp.MustCompile(`^` + ifbPrefix + `[0-9a-f]{10}$`)

// RemoveStrayIFBs removes the links that Limit made for ports which are gone,
// whichever instance's they were.
func (b *Bridge) RemoveStrayIFBs() error {
	links, err := Whole(b.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		if l.Type() != "ifb" || !ifbPattern.MatchString(name) {
			continue
		}
		if _, err := net.InterfaceByName(portPrefix + strings.TrimPrefix(name, ifbPrefix)); err == nil {
			continue
		}
		errs = append(errs, b.Remove(name))
	}
	return errors.Join(errs...)
}
