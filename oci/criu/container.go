package criu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/sys"
)

// Keys of the namespaces that a container has from outside; runc's, so that
// what one has dumped the other restores.
const (
	networkKey = "extRootNetNS"
	pidKey     = "extRootPidNS"
)

// DescriptorsFile is the file among the images that says what the first process
// had as its descriptors 0, 1 and 2.
const DescriptorsFile = "descriptors.json"

// Supported refuses by name what a specification has that CRIU cannot restore.
func Supported(spec *specs.Spec) error {
	for i, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.UserNamespace {
			return fmt.Errorf("linux.namespaces[%d]: a container with a user namespace can be neither checkpointed nor restored", i)
		}
	}
	for i, m := range spec.Mounts {
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return fmt.Errorf("mounts[%d].uidMappings: a container with idmapped mounts can be neither checkpointed nor restored", i)
		}
	}
	return nil
}

// DescribeDump fills in what a dump must know of a container: which mounts,
// namespaces and descriptors are from outside. stdio are the names of Stdio. It
// writes DescriptorsFile.
func (o *DumpOptions) DescribeDump(spec *specs.Spec, stdio []string) error {
	if err := Supported(spec); err != nil {
		return err
	}
	mounts, err := readMounts(o.Pid)
	if err != nil {
		return err
	}
	points, err := bindPoints(spec, o.Pid, mounts)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if isBound(m.point, points) && !ownFile(spec, m.point) || isGroup(spec, m) {
			o.External = append(o.External, fmt.Sprintf("mnt[%s]:%s", m.point, m.point))
		}
	}
	if err := o.describeNamespaces(spec); err != nil {
		return err
	}
	for _, name := range stdio {
		if strings.HasPrefix(name, "file[") {
			o.External = append(o.External, name)
		}
	}
	b, err := json.Marshal(append([]string{}, stdio...))
	if err != nil {
		return err
	}
	return writeAt(o.Images, DescriptorsFile, b)
}

func writeAt(dir *os.File, name string, b []byte) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// describeNamespaces names the network and pid namespaces that the container
// joined; of others CRIU dumps what is in them, and the restore decides.
func (o *DumpOptions) describeNamespaces(spec *specs.Spec) error {
	for _, ns := range spec.Linux.Namespaces {
		file, key := "", ""
		switch {
		case ns.Path == "":
		case ns.Type == specs.NetworkNamespace:
			file, key = "net", networkKey
		case ns.Type == specs.PIDNamespace:
			file, key = "pid", pidKey
		}
		if file == "" {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", o.Pid, file), &st); err != nil {
			return fmt.Errorf("%s namespace of process %d: %w", file, o.Pid, err)
		}
		o.External = append(o.External, fmt.Sprintf("%s[%d]:%s", file, st.Ino, key))
	}
	return nil
}

// Stdio names what a process has as descriptors 0, 1 and 2: "pipe:[123]", or in
// CRIU's way a file of the host. It is asked before the process runs, while
// these are what it got from outside: a shell moves them about.
func Stdio(pid int) ([]string, error) {
	var names []string
	for fd := range 3 {
		name, err := describeFd(pid, fd)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

func describeFd(pid, fd int) (string, error) {
	file := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
	link, err := os.Readlink(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "/dev/null", nil // closed
	}
	if err != nil {
		return "", err
	}
	// A terminal is the container's own; its master comes separately.
	if !path.IsAbs(link) || strings.HasPrefix(link, "/dev/pts/") {
		return link, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: file, Err: err}
	}
	id, err := mountOf(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("file[%x:%x]", id, st.Ino), nil
}

// mountOf reads which mount an open file is on.
func mountOf(fdinfo string) (int, error) {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("%s: no mount is known", fdinfo)
}

// bindPoints are the mount points of the specification's bind mounts as the
// process sees them, with the links of the image followed.
func bindPoints(spec *specs.Spec, pid int, mounts []mount) ([]string, error) {
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var points []string
	for i, m := range spec.Mounts {
		if !IsBind(m) {
			continue
		}
		id, err := mountAt(root, m.Destination)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d].destination: %s: %w", i, m.Destination, err)
		}
		for _, e := range mounts {
			if e.id == id {
				points = append(points, e.point)
			}
		}
	}
	return points, nil
}

// mountAt returns the number of the mount that a path in a root is on.
func mountAt(root *os.File, dest string) (int, error) {
	fd, err := sys.Openat2(int(root.Fd()), dest, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return int(st.Mnt_id), nil
}

// IsBind tells whether a mount is of a part of the host's tree.
func IsBind(m specs.Mount) bool {
	if m.Type == "bind" {
		return true
	}
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

func isBound(point string, points []string) bool {
	for _, p := range points {
		if point == p || strings.HasPrefix(point, p+"/") {
			return true
		}
	}
	return false
}

// isGroup tells whether a mount shows the container's cgroup by a part of the
// host's tree, as it does without a cgroup namespace.
func isGroup(spec *specs.Spec, m mount) bool {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.CgroupNamespace {
			return false
		}
	}
	return m.typ == "cgroup" || m.typ == "cgroup2"
}

// ownFile tells whether a mount point is a file system of the container's own,
// below a bind mount though it may be.
func ownFile(spec *specs.Spec, point string) bool {
	for _, m := range spec.Mounts {
		if path.Clean(m.Destination) == point && !IsBind(m) {
			return true
		}
	}
	return false
}

// DescribeRestore fills in what a restore must know: where root, mounts and
// namespaces are for CRIU, launched as the restorer says. root is the root
// mount, of Restorer.Open.
func (o *RestoreOptions) DescribeRestore(spec *specs.Spec, r *launch.Restorer, root *os.File) error {
	if err := Supported(spec); err != nil {
		return err
	}
	o.Root = r.Root
	host, err := readMounts(os.Getpid())
	if err != nil {
		return err
	}
	for _, m := range r.Mounts {
		for _, dest := range []string{m.Destination, resolveIn(root, m.Destination)} {
			o.External = append(o.External, fmt.Sprintf("mnt[%s]:%s", dest, m.Source))
			for _, sub := range submounts(host, m) {
				o.External = append(o.External, fmt.Sprintf("mnt[%s]:%s", dest+sub, m.Source+sub))
			}
		}
	}
	for _, ns := range spec.Linux.Namespaces {
		switch {
		case ns.Path == "":
		case ns.Type == specs.NetworkNamespace:
			o.Inherit = append(o.Inherit, InheritFd{networkKey, r.Namespaces[ns.Type]})
		case ns.Type == specs.PIDNamespace:
			o.Inherit = append(o.Inherit, InheritFd{pidKey, r.Namespaces[ns.Type]})
		case ns.Type == specs.IPCNamespace, ns.Type == specs.UTSNamespace:
			o.Join = append(o.Join, Namespace{string(ns.Type), ns.Path})
		}
	}
	names, err := readDescriptors(o.Images)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for fd, name := range names {
		outside := strings.HasPrefix(name, "pipe:[") || strings.HasPrefix(name, "socket:[") || strings.HasPrefix(name, "file[")
		if outside && !seen[name] {
			o.Inherit = append(o.Inherit, InheritFd{name, fd})
			seen[name] = true
		}
	}
	return nil
}

// submounts are the mounts below a recursive bind mount's source, relative to it.
func submounts(host []mount, m launch.RestorerMount) []string {
	if !m.Recursive {
		return nil
	}
	var subs []string
	for _, h := range host {
		if sub, ok := strings.CutPrefix(h.point, strings.TrimSuffix(m.HostPath, "/")); ok && strings.HasPrefix(sub, "/") && sub != "/" {
			subs = append(subs, sub)
		}
	}
	return subs
}

// resolveIn follows the links of an image to a mount point. What is not there
// yet stays as it is.
func resolveIn(root *os.File, dest string) string {
	fd, err := sys.Openat2(int(root.Fd()), dest, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return dest
	}
	defer unix.Close(fd)
	at, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return dest
	}
	base, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(root.Fd())))
	if err != nil {
		return dest
	}
	if rel, ok := strings.CutPrefix(at, strings.TrimSuffix(base, "/")); ok && path.IsAbs(rel) {
		return rel
	}
	return dest
}

// maxDescriptors bounds the file that an archive's author wrote.
const maxDescriptors = 64 << 10

func readDescriptors(images *os.File) ([]string, error) {
	b, err := readSmall(images, DescriptorsFile, maxDescriptors)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // of a checkpoint that no container runtime has made
	}
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(b, &names); err != nil {
		return nil, fmt.Errorf("%s: %w", DescriptorsFile, err)
	}
	return names[:min(len(names), 3)], nil
}

// readSmall reads a regular file of a directory that may hold anything.
func readSmall(dir *os.File, name string, most int64) ([]byte, error) {
	fd, err := sys.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s: is no regular file of at most %d bytes", name, most)
	}
	return io.ReadAll(io.LimitReader(f, most))
}
