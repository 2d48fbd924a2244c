// Package netdevice moves network devices of the host into a container's
// network namespace (linux.netDevices), by rtnetlink. The runtime calls it while
// a container is created. Nothing is ever moved back: with the namespace the
// kernel destroys virtual devices, and returns physical ones.
package netdevice

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Check checks the names. An error names the field below linux.
func Check(devices map[string]specs.LinuxNetDevice) error {
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		if !valid(name) || strings.Contains(name, "%") {
			return fmt.Errorf("netDevices[%q]: is no name of a network device", name)
		}
		if to := devices[name].Name; to != "" && !valid(to) {
			return fmt.Errorf("netDevices[%q].name: %q is no name of a network device", name, to)
		}
	}
	return nil
}

// valid tells whether the kernel takes a name; one that ends in %d gets a number.
func valid(name string) bool {
	return name != "" && len(name) < unix.IFNAMSIZ && name != "." && name != ".." &&
		!strings.ContainsAny(name, "/: \t\n\x00") && !strings.Contains(strings.TrimSuffix(name, "%d"), "%")
}

// Move moves devices from this network namespace into that at path, with the
// names and the lasting global addresses that they are to have there, and sets
// them up. Those that were moved before an error stay moved.
func Move(devices map[string]specs.LinuxNetDevice, path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		to := devices[name].Name
		if to == "" {
			to = name
		}
		if err := move(name, to, ns); err != nil {
			return fmt.Errorf("linux.netDevices[%q]: %w", name, err)
		}
	}
	return nil
}

func move(name, to string, ns *os.File) error {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	// The kernel drops them on the way.
	addresses, err := lasting(dev.Index)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	before, err := inside(ns, func() ([]int, error) {
		// The kernel finds out only after it has moved the device.
		if _, err := net.InterfaceByName(to); err == nil {
			return nil, fmt.Errorf("move as %s: %w", to, unix.EEXIST)
		}
		return indices()
	})
	if err != nil {
		return err
	}
	body := slices.Concat(link(dev.Index, false),
		attribute(unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(ns.Fd()))),
		attribute(unix.IFLA_IFNAME, append([]byte(to), 0)))
	if err := request(unix.RTM_NEWLINK, 0, body); err != nil {
		return fmt.Errorf("move as %s: %w", to, err)
	}
	_, err = inside(ns, func() ([]int, error) {
		now, err := indices()
		if err != nil {
			return nil, err
		}
		// The kernel may have given it another index and, for a template, a name.
		now = slices.DeleteFunc(now, func(i int) bool { return slices.Contains(before, i) })
		if len(now) != 1 {
			return nil, fmt.Errorf("%d new devices in place of one", len(now))
		}
		return nil, configure(now[0], addresses)
	})
	return err
}

// inside runs f in the network namespace ns.
func inside(ns *os.File, f func() ([]int, error)) (result []int, err error) {
	err = sys.OnDisposableThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join the network namespace: %w", err)
		}
		result, err = f()
		return err
	})
	return result, err
}

// indices are those of the devices of the thread's network namespace.
func indices() (list []int, err error) {
	devs, err := net.Interfaces()
	for _, d := range devs {
		list = append(list, d.Index)
	}
	return list, err
}

// configure gives a device its addresses and sets it up.
func configure(index int, addresses [][]byte) error {
	for _, a := range addresses {
		binary.NativeEndian.PutUint32(a[4:], uint32(index)) // ifaddrmsg.ifa_index
		if err := request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a); err != nil {
			return fmt.Errorf("add its address: %w", err)
		}
	}
	if err := request(unix.RTM_NEWLINK, 0, link(index, true)); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	return nil
}

// lasting lists the permanent addresses of global scope, each as the body of the
// request that adds it.
func lasting(index int) (list [][]byte, err error) {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	msgs, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		m := &msgs[i]
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		head := slices.Clone(m.Data[:unix.SizeofIfAddrmsg]) // family, prefix length, flags, scope, index
		if int(binary.NativeEndian.Uint32(head[4:])) != index || head[2]&unix.IFA_F_PERMANENT == 0 || head[3] != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			return nil, err
		}
		head[2] = 0
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_ADDRESS, unix.IFA_LOCAL, unix.IFA_BROADCAST:
				head = append(head, attribute(a.Attr.Type, a.Value)...)
			}
		}
		list = append(list, head)
	}
	return list, nil
}

// link is a struct ifinfomsg.
func link(index int, up bool) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	if up {
		binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
		binary.NativeEndian.PutUint32(b[12:], unix.IFF_UP)
	}
	return b
}

// attribute is a struct rtattr with its value, padded.
func attribute(typ uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

// request asks the kernel for something, in the thread's network namespace, and
// waits for its answer.
func request(typ, flags uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(append(b, make([]byte, 8)...), body...)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send to netlink", err)
	}
	answer := make([]byte, 64<<10)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return os.NewSyscallError("receive from netlink", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("netlink answered with %d bytes that are no answer", n)
	}
	if errno := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return syscall.Errno(-errno)
	}
	return nil
}
