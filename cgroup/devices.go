package cgroup

import (
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// anyNumber is a major or minor number's wildcard.
const anyNumber = -1

// deviceKey names a device node, or with anyNumber many.
type deviceKey struct {
	kind         byte // 'b' or 'c'
	major, minor int64
}

func (k deviceKey) String() string {
	return fmt.Sprintf("%c %s:%s", k.kind, numberOrStar(k.major), numberOrStar(k.minor))
}

func numberOrStar(n int64) string {
	if n == anyNumber {
		return "*"
	}
	return strconv.FormatInt(n, 10)
}

func (k deviceKey) overlaps(o deviceKey) bool {
	same := func(a, b int64) bool { return a == b || a == anyNumber || b == anyNumber }
	return k.kind == o.kind && same(k.major, o.major) && same(k.minor, o.minor)
}

// access is a set of what may be done with a device.
type access uint8

// The values are the kernel's (BPF_DEVCG_ACC_*).
const (
	mayMknod access = 1 << iota
	mayRead
	mayWrite
	mayAll = mayMknod | mayRead | mayWrite
)

func (a access) String() string {
	s := ""
	for i, c := range "mrw" {
		if a&(1<<i) != 0 {
			s += string(c)
		}
	}
	return s
}

func parseAccess(s string) (access, error) {
	if s == "" {
		return mayAll, nil
	}
	var a access
	for _, c := range s {
		i := strings.IndexRune("mrw", c)
		if i < 0 {
			return 0, fmt.Errorf("access %q is not of r, w and m", s)
		}
		a |= 1 << i
	}
	return a, nil
}

// devicePolicy is what a list of rules comes to: all or nothing, and what is
// different. It is the form that the v1 controller has, and both versions get
// the same policy from the same rules.
type devicePolicy struct {
	allow      bool
	exceptions []deviceException // in the order of the rules
}

type deviceException struct {
	deviceKey
	access access
}

// compileDevices applies rules in their order, starting from nothing allowed.
// No rules are no policy (nil). A rule that takes away part of what a rule with
// a wildcard gave, or the other way round, cannot be expressed and is refused.
func compileDevices(rules []specs.LinuxDeviceCgroup) (*devicePolicy, error) {
	if len(rules) == 0 {
		return nil, nil
	}
	p := &devicePolicy{}
	for i, r := range rules {
		if err := p.add(r); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
	}
	return p, nil
}

func (p *devicePolicy) add(r specs.LinuxDeviceCgroup) error {
	a, err := parseAccess(r.Access)
	if err != nil {
		return err
	}
	key := deviceKey{major: anyNumber, minor: anyNumber}
	for _, n := range []struct {
		name string
		from *int64
		to   *int64
	}{{"major", r.Major, &key.major}, {"minor", r.Minor, &key.minor}} {
		if n.from == nil {
			continue
		}
		if *n.from < anyNumber || *n.from > 1<<32-1 {
			return fmt.Errorf("%s %d is not a device number", n.name, *n.from)
		}
		*n.to = *n.from
	}
	switch r.Type {
	case "c", "u":
		return p.except(key, 'c', a, r.Allow)
	case "b":
		return p.except(key, 'b', a, r.Allow)
	case "", "a":
		if a == mayAll && key.major == anyNumber && key.minor == anyNumber {
			*p = devicePolicy{allow: r.Allow}
			return nil
		}
		if err := p.except(key, 'c', a, r.Allow); err != nil {
			return err
		}
		return p.except(key, 'b', a, r.Allow)
	}
	return fmt.Errorf("type %q is not a, b or c", r.Type)
}

// except makes a rule for one kind of devices part of the policy.
func (p *devicePolicy) except(key deviceKey, kind byte, a access, allow bool) error {
	key.kind = kind
	if allow != p.allow {
		for i := range p.exceptions {
			if p.exceptions[i].deviceKey == key {
				p.exceptions[i].access |= a
				return nil
			}
		}
		p.exceptions = append(p.exceptions, deviceException{key, a})
		return nil
	}
	kept := p.exceptions[:0:0]
	for _, e := range p.exceptions {
		if e.deviceKey == key {
			e.access &^= a
		} else if e.overlaps(key) && e.access&a != 0 && !key.covers(e.deviceKey) {
			return fmt.Errorf("device %v: the kernel cannot make an exception from %v", key, e.deviceKey)
		} else if key.covers(e.deviceKey) {
			e.access &^= a
		}
		if e.access != 0 {
			kept = append(kept, e)
		}
	}
	p.exceptions = kept
	return nil
}

// covers tells whether every device that o names is named by k.
func (k deviceKey) covers(o deviceKey) bool {
	return k.kind == o.kind && (k.major == anyNumber || k.major == o.major) &&
		(k.minor == anyNumber || k.minor == o.minor)
}

// DefaultDevices are the rules for the devices that every container has
// (runtime-spec, "Default Devices", and the pty nodes), to be put after those
// of its specification. Any node may be made, as other runtimes have it: to
// make one is not to open it.
func DefaultDevices() []specs.LinuxDeviceCgroup {
	rule := func(major, minor int64, access string) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Access: access}
		if major != anyNumber {
			r.Major = &major
		}
		if minor != anyNumber {
			r.Minor = &minor
		}
		return r
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
		rule(1, 3, "rwm"),           // null
		rule(1, 5, "rwm"),           // zero
		rule(1, 7, "rwm"),           // full
		rule(1, 8, "rwm"),           // random
		rule(1, 9, "rwm"),           // urandom
		rule(5, 0, "rwm"),           // tty
		rule(5, 1, "rwm"),           // console
		rule(5, 2, "rwm"),           // ptmx
		rule(136, anyNumber, "rwm"), // pts/*
	}
}

func (g *Group) setDevices(p *devicePolicy) error {
	if _, dir, ok := g.h.v1Dir("devices"); ok {
		return setDevicesV1(dir+g.path, p)
	}
	if g.h.unified == "" {
		return fmt.Errorf("the host has no devices controller")
	}
	return g.setDevicesV2(p)
}

// setDevicesV1 writes only what differs from the present list, so that a
// running container never lacks a device that it keeps.
func setDevicesV1(dir string, p *devicePolicy) error {
	now, err := readFile(dir + "/devices.list")
	if err != nil {
		return err
	}
	allowsAll := strings.HasPrefix(now, "a ")
	if p.allow {
		if !allowsAll {
			if err := writeFile(dir+"/devices.allow", "a"); err != nil {
				return err
			}
		}
		return writeExceptions(dir+"/devices.deny", p.exceptions)
	}
	if allowsAll {
		if err := writeFile(dir+"/devices.deny", "a"); err != nil {
			return err
		}
		return writeExceptions(dir+"/devices.allow", p.exceptions)
	}
	if err := writeExceptions(dir+"/devices.allow", missingIn(now, p.exceptions)); err != nil {
		return err
	}
	for line := range strings.Lines(now) {
		line = strings.TrimSpace(line)
		if rest := surplus(line, p.exceptions); rest != "" {
			if err := writeFile(dir+"/devices.deny", rest); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeExceptions(file string, exceptions []deviceException) error {
	for _, e := range exceptions {
		if err := writeFile(file, e.deviceKey.String()+" "+e.access.String()); err != nil {
			return fmt.Errorf("device %v: %w", e.deviceKey, err)
		}
	}
	return nil
}

// listed returns what a devices.list gives to one device.
func listed(list string, key deviceKey) access {
	for line := range strings.Lines(list) {
		name, a, ok := cutAccess(line)
		if ok && name == key.String() {
			return a
		}
	}
	return 0
}

// cutAccess splits "c 1:3 rwm".
func cutAccess(line string) (name string, a access, ok bool) {
	line = strings.TrimSpace(line)
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return "", 0, false
	}
	a, err := parseAccess(line[i+1:])
	return line[:i], a, err == nil
}

func missingIn(list string, exceptions []deviceException) []deviceException {
	var missing []deviceException
	for _, e := range exceptions {
		if listed(list, e.deviceKey)&e.access != e.access {
			missing = append(missing, e)
		}
	}
	return missing
}

// surplus is the part of a devices.list line that is not to be allowed, as a
// rule to deny, or "".
func surplus(line string, exceptions []deviceException) string {
	name, a, ok := cutAccess(line)
	if !ok {
		return ""
	}
	for _, e := range exceptions {
		if e.deviceKey.String() == name {
			a &^= e.access
		}
	}
	if a == 0 {
		return ""
	}
	return name + " " + a.String()
}

// DeviceRule is an exception of what DeviceRules returns.
type DeviceRule struct {
	Kind         byte  // 'b' or 'c'
	Major, Minor int64 // -1: any
	Access       string
}

// DeviceRules is what a list of rules comes to, for those who tell others of it:
// all or nothing, but for exceptions.
func DeviceRules(rules []specs.LinuxDeviceCgroup) (allow bool, exceptions []DeviceRule, err error) {
	p, err := compileDevices(rules)
	if err != nil || p == nil {
		return err == nil, nil, err
	}
	for _, e := range p.exceptions {
		exceptions = append(exceptions, DeviceRule{e.kind, e.major, e.minor, e.access.String()})
	}
	return p.allow, exceptions, nil
}
