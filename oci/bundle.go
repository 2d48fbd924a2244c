package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/hook"
)

// loadBundle reads and checks a bundle's config.json and finds its root file
// system. What launching needs of it, launch checks; an error names the field.
func loadBundle(bundle string) (spec *specs.Spec, rootfs string, err error) {
	file := filepath.Join(bundle, specFile)
	spec, err = readSpec(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, "", fmt.Errorf("bundle %s has no %s", bundle, specFile)
	}
	if err != nil {
		return nil, "", err
	}
	if err := checkSpec(spec); err != nil {
		return nil, "", fmt.Errorf("%s: %w", file, err)
	}
	rootfs = spec.Root.Path
	if !filepath.IsAbs(rootfs) {
		rootfs = filepath.Join(bundle, rootfs)
	}
	st, err := os.Stat(rootfs)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is not a directory", rootfs)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%s: root.path: %w", file, err)
	}
	return spec, rootfs, nil
}

func checkSpec(s *specs.Spec) error {
	major, _, _ := strings.Cut(s.Version, ".")
	switch {
	case s.Version == "":
		return errors.New("ociVersion: missing")
	case major != "1":
		return fmt.Errorf("ociVersion: %s is not supported, 1.x is", s.Version)
	case s.Process == nil:
		return errors.New("process: missing")
	case len(s.Process.Args) == 0:
		return errors.New("process.args: empty")
	case s.Root == nil || s.Root.Path == "":
		return errors.New("root.path: missing")
	case s.Linux == nil:
		return errors.New("linux: missing: only Linux containers are supported")
	case s.VM != nil:
		return errors.New("vm: not supported")
	}
	return hook.Check(s.Hooks)
}

// hasPrivate tells whether a container makes a namespace of its own.
func hasPrivate(s *specs.Spec, kind specs.LinuxNamespaceType) bool {
	for _, n := range s.Linux.Namespaces {
		if n.Type == kind {
			return n.Path == ""
		}
	}
	return false
}

// hasNetwork tells whether a container's network is not the host's.
func hasNetwork(s *specs.Spec) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
}

// relativeCgroups is where groups are whose path is relative. What is empty below
// it is nobody's.
const relativeCgroups = "/podstead-oci"

// cgroupPath is where the container's group is, below each hierarchy's root. A
// path that is relative is to a place of the runtime's choice.
func cgroupPath(s *specs.Spec, id string) string {
	switch p := s.Linux.CgroupsPath; {
	case p == "":
		return "/podstead-oci-" + id
	case !strings.HasPrefix(p, "/") && !strings.Contains(p, ":"):
		return relativeCgroups + filepath.Clean("/"+p)
	default:
		return p
	}
}
