package criu

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mounts: each is one of the specification's, at its place and with no more
// rights; what the specification hides is hidden. CRIU mounts what images say,
// with the host's privilege, and a procfs or a debugfs too many, or a volume
// that is not read-only any more, are the host's.
func (c *checker) mounts() error {
	var err error
	if c.table, err = readMounts(c.Pid); err != nil {
		return err
	}
	root, err := os.OpenFile(c.proc(c.Pid, "root"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	wanted, err := c.wantedMounts(root)
	if err != nil {
		return err
	}
	for _, m := range c.table {
		if strings.HasPrefix(m.typ, "cgroup") && !within(m.root, c.Cgroup) {
			return forbidden("a mount of the cgroup %s on %s", m.root, m.point)
		}
	}
	return checkMounts(c.table, wanted, c.Spec)
}

// wantedMount is a mount of the specification as a mount table shows it.
type wantedMount struct {
	point   string
	typ     string // "" of a bind mount
	dev     string // of a bind mount, with the part that is mounted
	root    string
	options []string // rights that are taken: "ro", "nosuid", …
	below   bool     // a recursive bind mount brings what is mounted below
}

// wantedMounts resolves the specification's mounts: destinations in the root,
// sources on the host.
func (c *checker) wantedMounts(root *os.File) ([]wantedMount, error) {
	host, err := readMounts(os.Getpid())
	if err != nil {
		return nil, err
	}
	var list []wantedMount
	for i, m := range c.Spec.Mounts {
		w := wantedMount{point: resolveIn(root, m.Destination), options: restrictions(m.Options)}
		if !IsBind(m) {
			w.typ = m.Type
			list = append(list, w)
			continue
		}
		source, err := filepath.EvalSymlinks(m.Source)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d].source: %w", i, err)
		}
		h, rel, err := hostMount(host, source)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d].source: %w", i, err)
		}
		w.dev, w.root = h.dev, path.Join(h.root, rel)
		w.below = slices.Contains(m.Options, "rbind")
		list = append(list, w)
		if w.below {
			for _, s := range host {
				if within(s.point, source) && s.point != source {
					list = append(list, wantedMount{
						point: w.point + strings.TrimPrefix(s.point, source), dev: s.dev, root: s.root,
						options: recursiveRestrictions(m.Options),
					})
				}
			}
		}
	}
	return list, nil
}

// hostMount finds the mount that a path of the host is on, and where in it.
func hostMount(host []mount, p string) (m mount, rel string, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, p, 0, unix.STATX_MNT_ID, &st); err != nil {
		return m, "", &os.PathError{Op: "statx", Path: p, Err: err}
	}
	for _, h := range host {
		if h.id == int(st.Mnt_id) {
			return h, strings.TrimPrefix(path.Clean(p), strings.TrimSuffix(h.point, "/")), nil
		}
	}
	return m, "", fmt.Errorf("%s is on no mount that is known", p)
}

func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// restrictions are the options that take rights away. Of an option and its
// opposite the last counts.
func restrictions(options []string) []string {
	return lastOf(options, map[string]string{
		"ro": "ro", "rw": "-ro", "nosuid": "nosuid", "suid": "-nosuid", "nodev": "nodev", "dev": "-nodev", "noexec": "noexec", "exec": "-noexec",
		"rro": "ro", "rrw": "-ro", "rnosuid": "nosuid", "rsuid": "-nosuid", "rnodev": "nodev", "rdev": "-nodev", "rnoexec": "noexec", "rexec": "-noexec",
	})
}

func recursiveRestrictions(options []string) []string {
	return lastOf(options, map[string]string{
		"rro": "ro", "rrw": "-ro", "rnosuid": "nosuid", "rsuid": "-nosuid", "rnodev": "nodev", "rdev": "-nodev", "rnoexec": "noexec", "rexec": "-noexec",
	})
}

func lastOf(options []string, meaning map[string]string) []string {
	var got []string
	for _, o := range options {
		name, lifted := strings.CutPrefix(meaning[o], "-")
		if name == "" {
			continue
		}
		got = slices.DeleteFunc(got, func(g string) bool { return g == name })
		if !lifted {
			got = append(got, name)
		}
	}
	return got
}

// checkMounts compares a container's mount table with what was wanted.
func checkMounts(table []mount, wanted []wantedMount, spec *specs.Spec) error {
	rootSeen := false
	for _, m := range table {
		if m.point == "/" {
			if rootSeen {
				return forbidden("a second mount on /")
			}
			rootSeen = true
			if spec.Root != nil && spec.Root.Readonly && !slices.Contains(m.options, "ro") {
				return forbidden("a root that is not read-only")
			}
			continue
		}
		if err := allowed(m, table, wanted, spec); err != nil {
			return err
		}
	}
	return checkHidden(table, spec)
}

// allowed finds what of the specification a mount is, and checks its rights.
func allowed(m mount, table []mount, wanted []wantedMount, spec *specs.Spec) error {
	for _, w := range wanted {
		if w.typ == "" && m.dev == w.dev && m.root == w.root && m.point == w.point || w.typ != "" && isOfType(m, w) {
			return hasAll(m, w.options)
		}
	}
	switch m.typ {
	case "proc": // a part that is mounted over itself, read-only
		if slices.Contains(spec.Linux.ReadonlyPaths, m.point) && strings.HasSuffix(m.point, m.root) {
			return hasAll(m, []string{"ro"})
		}
	case "sysfs":
		if slices.Contains(spec.Linux.ReadonlyPaths, m.point) && strings.HasSuffix(m.point, m.root) {
			return hasAll(m, []string{"ro"})
		}
	case "tmpfs": // memory, or a part of the container's own /dev
		if m.root == "/" || ownTmpfs(m, table) {
			return nil
		}
	case "devpts":
		if m.point == "/dev/console" { // its terminal
			return nil
		}
	}
	if m.point == "/dev/null" || m.point == "/dev/console" {
		return forbidden("a mount of type %s on %s", m.typ, m.point)
	}
	if within(m.point, "/proc") || within(m.point, "/sys") || isKernel(m.typ) {
		return forbidden("a mount of type %s (%s) on %s", m.typ, m.root, m.point)
	}
	if slices.Contains(spec.Linux.ReadonlyPaths, m.point) { // a part of the root over itself
		return hasAll(m, []string{"ro"})
	}
	return forbidden("a mount of type %s (%s of %s) on %s", m.typ, m.root, m.dev, m.point)
}

// isOfType tells whether a mount is of a file system that the specification
// wants there.
func isOfType(m mount, w wantedMount) bool {
	if w.typ == "cgroup" { // v1: a tmpfs with a mount for each hierarchy
		return within(m.point, w.point) && (strings.HasPrefix(m.typ, "cgroup") || m.typ == "tmpfs" && m.root == "/")
	}
	return m.point == w.point && m.typ == w.typ && m.root == "/"
}

// ownTmpfs tells whether a part of a tmpfs comes from a whole one in the same
// table, as what hides files of /proc does.
func ownTmpfs(m mount, table []mount) bool {
	return slices.ContainsFunc(table, func(t mount) bool { return t.typ == "tmpfs" && t.dev == m.dev && t.root == "/" })
}

// isKernel tells whether a file system shows the kernel's or the host's state.
func isKernel(typ string) bool {
	return slices.Contains([]string{
		"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "devtmpfs", "bpf", "pstore", "efivarfs",
		"configfs", "fusectl", "binfmt_misc", "autofs",
	}, typ)
}

func hasAll(m mount, options []string) error {
	for _, o := range options {
		if !slices.Contains(m.options, o) {
			return forbidden("the mount on %s without %s", m.point, o)
		}
	}
	return nil
}

// checkHidden looks for what hides the masked and read-only paths, of procfs and
// sysfs at least: elsewhere they need not exist.
func checkHidden(table []mount, spec *specs.Spec) error {
	at := func(p string) *mount {
		for i := len(table) - 1; i >= 0; i-- {
			if table[i].point == path.Clean(p) {
				return &table[i]
			}
		}
		return nil
	}
	exists := func(p string) bool {
		_, err := os.Lstat(p)
		return (within(p, "/proc") || within(p, "/sys")) && err == nil && at("/"+strings.Split(p, "/")[1]) != nil
	}
	for _, p := range spec.Linux.MaskedPaths {
		m := at(p)
		if m == nil && exists(p) || m != nil && m.typ != "tmpfs" && m.typ != "devtmpfs" {
			return forbidden("%s, which linux.maskedPaths hides", p)
		}
	}
	for _, p := range spec.Linux.ReadonlyPaths {
		m := at(p)
		if m == nil && exists(p) || m != nil && !slices.Contains(m.options, "ro") && m.typ != "tmpfs" {
			return forbidden("%s writable, which linux.readonlyPaths makes read-only", p)
		}
	}
	return nil
}
