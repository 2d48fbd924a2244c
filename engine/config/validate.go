package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// handlerName is a DNS label, as a RuntimeClass's handler is.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// findings collects errors with the fields they are about.
type findings []error

func (f *findings) add(field, format string, args ...any) {
	*f = append(*f, fmt.Errorf("%s: %w", field, fmt.Errorf(format, args...)))
}

// Validate names every field that cannot be.
func (c Config) Validate() error {
	var f findings
	seen := map[string]bool{}
	for i, h := range c.Handlers {
		at := fmt.Sprintf("handlers[%d]", i)
		if seen[h.Name] {
			f.add(at+".name", "%q is defined twice", h.Name)
		}
		seen[h.Name] = true
		h.validate(at, &f)
	}
	if c.DefaultHandler != "" && !seen[c.DefaultHandler] {
		f.add("defaultHandler", "no handler has the name %q", c.DefaultHandler)
	}
	drivers := []string{"", Cgroupfs, Systemd}
	if !slices.Contains(drivers, c.CgroupDriver) {
		f.add("cgroupDriver", "%q is none of %s", c.CgroupDriver, strings.Join(drivers[1:], ", "))
	}
	if c.CgroupDriver == Systemd {
		for i, h := range c.Handlers {
			if h.Type != Builtin {
				f.add(fmt.Sprintf("handlers[%d].type", i), "only %s is supported with cgroupDriver %s", Builtin, Systemd)
			}
		}
	}
	c.Network.validate(&f)
	c.Images.validate(&f)
	c.Streams.validate(&f)
	c.Logs.validate(&f)
	if s := c.TracingSettings(); s != nil {
		if err := s.Validate(); err != nil {
			f = append(f, fmt.Errorf("tracing.%w", err))
		}
	}
	directories("cdi.dirs", c.CDI.Dirs, &f)
	directories("hooks.dirs", c.Hooks.Dirs, &f)
	absolute("nri.socket", c.NRI.Socket, &f)
	absolute("nri.pluginDir", c.NRI.PluginDir, &f)
	absolute("nri.configDir", c.NRI.ConfigDir, &f)
	c.NRI.RegistrationTimeout.validate("nri.registrationTimeout", &f)
	c.NRI.RequestTimeout.validate("nri.requestTimeout", &f)
	return errors.Join(f...)
}

func (h Handler) validate(at string, f *findings) {
	if !handlerName.MatchString(h.Name) {
		f.add(at+".name", "%q is no name of a handler: want small letters, digits and inner dashes, 63 at most", h.Name)
	}
	kinds := []string{"", OCI, Shim, Builtin}
	if !slices.Contains(kinds, h.Type) {
		f.add(at+".type", "%q is none of %s", h.Type, strings.Join(kinds[1:], ", "))
	}
	if strings.Contains(h.Path, "/") {
		absolute(at+".path", h.Path, f)
	}
	absolute(at+".root", h.Root, f)
	absolute(at+".configPath", h.ConfigPath, f)
	// Which fields each type has no use for.
	useless := map[string]bool{
		"path": h.Type == Builtin && h.Path != "", "root": h.Type == Builtin && h.Root != "",
		"args":       (h.Type == Builtin || h.Type == Shim) && len(h.Args) > 0,
		"configPath": h.Type != Shim && h.ConfigPath != "",
	}
	for _, field := range []string{"path", "root", "args", "configPath"} {
		if useless[field] {
			f.add(at+"."+field, "means nothing for type %s", h.Kind())
		}
	}
	patterns(at+".podAnnotations", h.PodAnnotations, f)
	patterns(at+".containerAnnotations", h.ContainerAnnotations, f)
}

func (n Network) validate(f *findings) {
	absolute("network.cniConfDir", n.CNIConfDir, f)
	directories("network.cniBinDirs", n.CNIBinDirs, f)
	if n.ReadySlots < 0 || n.ReadySlots > 256 {
		f.add("network.readySlots", "%d is not within 0 and 256", n.ReadySlots)
	}
	if _, err := n.PodSubnets(); err != nil {
		f.add("network.podCIDR", "%v", err)
	}
}

// PodSubnets reads PodCIDR.
func (n Network) PodSubnets() (subnets []netip.Prefix, err error) {
	if n.PodCIDR == "" {
		return nil, nil
	}
	for _, text := range strings.Split(n.PodCIDR, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s has bits beyond its prefix: want %s", p, p.Masked())
		}
		subnets = append(subnets, p)
	}
	if len(subnets) > 2 || len(subnets) == 2 && subnets[0].Addr().Is4() == subnets[1].Addr().Is4() {
		return nil, fmt.Errorf("%s: want one subnet of an address family", n.PodCIDR)
	}
	return subnets, nil
}

func (i Images) validate(f *findings) {
	absolute("images.certsDir", i.CertsDir, f)
	patterns("images.pinned", i.Pinned, f)
	if i.ParallelLayers < 1 || i.ParallelLayers > 64 {
		f.add("images.parallelLayers", "%d is not within 1 and 64", i.ParallelLayers)
	}
	i.StallTimeout.validate("images.stallTimeout", f)
}

func (s Streams) validate(f *findings) {
	if host, port, err := net.SplitHostPort(s.Address); err != nil || port == "" {
		f.add("streams.address", "%q is not HOST:PORT", s.Address)
	} else if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		// Its URLs carry no credentials but a token, and no encryption.
		f.add("streams.address", "%q is no loopback address, and others may listen on the way to it", host)
	}
	s.IdleTimeout.validate("streams.idleTimeout", f)
	s.CreationTimeout.validate("streams.creationTimeout", f)
}

func (l Logs) validate(f *findings) {
	switch {
	case l.MaxBytes.bad != nil:
		f.add("logs.maxBytes", "%w", l.MaxBytes.bad)
	case l.MaxBytes.N < 0 || l.MaxBytes.N > 0 && l.MaxBytes.N < minLog:
		f.add("logs.maxBytes", "%d is neither 0 nor at least %d", l.MaxBytes.N, minLog)
	case l.MaxBytes.N > 0 && l.MaxFiles < 2:
		f.add("logs.maxFiles", "%d is less than 2", l.MaxFiles)
	}
}

// minLog keeps a log from being rotated at each line.
const minLog = 64 << 10

func (d Duration) validate(field string, f *findings) {
	switch {
	case d.bad != nil:
		f.add(field, "%w", d.bad)
	case d.Duration <= 0:
		f.add(field, "%s is not more than 0", d.Duration)
	}
}

func absolute(field, path string, f *findings) {
	if path != "" && !filepath.IsAbs(path) {
		f.add(field, "%q is not absolute", path)
	}
}

func directories(field string, dirs []string, f *findings) {
	for i, dir := range dirs {
		if dir == "" {
			f.add(fmt.Sprintf("%s[%d]", field, i), "is empty")
		}
		absolute(fmt.Sprintf("%s[%d]", field, i), dir, f)
	}
}

func patterns(field string, list []string, f *findings) {
	for i, p := range list {
		if p == "" || strings.Contains(strings.TrimSuffix(p, "*"), "*") {
			f.add(fmt.Sprintf("%s[%d]", field, i), "%q is neither a name nor the beginning of one with a * at the end", p)
		}
	}
}
