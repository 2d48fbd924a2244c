// Package netdev reads the counters of the network interfaces of pods. It keeps
// nothing, and is called by the engine alone.
package netdev

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Interface is one interface's counters since it was made.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Usage is that of a network namespace: its interfaces without the loopback, in
// the kernel's order.
type Usage struct {
	Interfaces []Interface
	// Default is the interface that packets to the world take: the default
	// route's, IPv4 first, else eth0, else the first; "" if there is none.
	Default string
}

// Read reads network namespaces by the paths that they are bound to. One that
// cannot be joined, since its pod is on its way out, is left out. All are read
// by one thread: it costs more to make one than to read a namespace.
func Read(paths []string) (map[string]Usage, error) {
	all := map[string]Usage{}
	if len(paths) == 0 {
		return all, nil
	}
	err := sys.OnDisposableThread(func() error {
		for _, path := range paths {
			if u, err := readIn(path); err == nil {
				all[path] = u
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// readIn moves the thread.
func readIn(path string) (Usage, error) {
	ns, err := os.Open(path)
	if err != nil {
		return Usage{}, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return Usage{}, fmt.Errorf("join network namespace %s: %w", path, err)
	}
	var files [3]string
	for i, name := range []string{"dev", "route", "ipv6_route"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil && i == 0 {
			return Usage{}, err // the others are missing where a protocol is
		}
		files[i] = string(b)
	}
	u := Usage{Interfaces: parseDev(files[0])}
	u.Default = defaultInterface(u.Interfaces, files[1], files[2])
	return u, nil
}

// parseDev reads /proc/net/dev.
func parseDev(s string) []Interface {
	var all []Interface
	for line := range strings.Lines(s) {
		name, counters, ok := strings.Cut(line, ":")
		f := strings.Fields(counters)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(f) < 16 {
			continue
		}
		var n [16]uint64
		for i := range n {
			n[i], _ = strconv.ParseUint(f[i], 10, 64)
		}
		all = append(all, Interface{
			Name:    name,
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		})
	}
	return all
}

func defaultInterface(all []Interface, route4, route6 string) string {
	has := func(name string) bool {
		for _, i := range all {
			if i.Name == name {
				return true
			}
		}
		return false
	}
	for _, name := range []string{defaultRoute4(route4), defaultRoute6(route6), "eth0"} {
		if has(name) {
			return name
		}
	}
	if len(all) == 0 {
		return ""
	}
	return all[0].Name
}

// defaultRoute4 finds the interface of the best default route in
// /proc/net/route: name, destination, gateway, flags, references, use, metric,
// mask, …
func defaultRoute4(s string) string {
	best, name := uint64(1<<63), ""
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		metric, err := strconv.ParseUint(f[6], 10, 64)
		flags, err2 := strconv.ParseUint(f[3], 16, 64)
		if err != nil || err2 != nil || flags&unix.RTF_REJECT != 0 || metric >= best {
			continue
		}
		best, name = metric, f[0]
	}
	return name
}

// defaultRoute6 does it in /proc/net/ipv6_route: destination, its prefix's
// length, source, its prefix's length, next hop, metric, references, use, flags,
// name. All but the names are hexadecimal.
func defaultRoute6(s string) string {
	const anywhere = "00000000000000000000000000000000"
	best, name := uint64(1<<63), ""
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 10 || f[0] != anywhere || f[1] != "00" || f[9] == "lo" {
			continue
		}
		metric, err := strconv.ParseUint(f[5], 16, 64)
		flags, err2 := strconv.ParseUint(f[8], 16, 64)
		if err != nil || err2 != nil || flags&unix.RTF_REJECT != 0 || metric >= best {
			continue
		}
		best, name = metric, f[9]
	}
	return name
}
