package criu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/oci/launch"
	"podstead/sys"
)

// ErrForbidden is in the error if images hold more than the specification
// allows.
var ErrForbidden = errors.New("the checkpoint has what its container is not allowed to have")

// Restored are the processes that CRIU has restored and that do not run yet.
type Restored struct {
	Spec *specs.Spec
	Pid  int // the first process
	// Members are the processes of the container's cgroup, Restorer that of them
	// which is CRIU.
	Members  []int
	Restorer int
	// Cgroup is the path of the container's own cgroup.
	Cgroup string
	// Stdio is what the container gets from outside as descriptors 0, 1 and 2.
	Stdio []*os.File
}

// Check compares what CRIU has made of image files, whose author may be an
// attacker, with the specification, which is the policy: namespaces, mounts,
// credentials, capabilities, filters, labels and open files of every process.
// The kernel is asked, not the images. Limits that are too high are lowered.
//
// What it cannot see it cannot refuse: the content of memory, and that of
// seccomp filters.
func (r *Restored) Check() error {
	c := checker{Restored: r, own: map[string]bool{}}
	pids, err := c.processes()
	if err != nil {
		return fmt.Errorf("look at what was restored: %w", err)
	}
	for _, f := range r.Stdio {
		if f == nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		c.own[fileID(st)] = true
	}
	if err := c.mounts(); err != nil {
		return err
	}
	for _, pid := range pids {
		for _, check := range []func(int) error{c.namespaces, c.threads, c.files, c.limits} {
			if err := check(pid); err != nil {
				return fmt.Errorf("restored process %d: %w", pid, err)
			}
		}
	}
	return nil
}

type checker struct {
	*Restored
	own   map[string]bool // files that the container gets from us
	table []mount
}

func (c *checker) proc(pid int, parts ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, parts...)...)
}

func forbidden(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrForbidden, fmt.Sprintf(format, args...))
}

// processes are the members of the cgroup and the descendants of the first
// process, wherever they are, but for those that are over.
func (c *checker) processes() ([]int, error) {
	pids := slices.DeleteFunc(slices.Clone(c.Members), func(p int) bool { return p == c.Restorer })
	if !slices.Contains(pids, c.Pid) {
		pids = append(pids, c.Pid)
	}
	for i := 0; i < len(pids); i++ {
		tasks, err := filepath.Glob(c.proc(pids[i], "task", "*", "children"))
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			b, err := os.ReadFile(t)
			if err != nil {
				return nil, err
			}
			for _, f := range strings.Fields(string(b)) {
				child, err := strconv.Atoi(f)
				if err != nil {
					return nil, err
				}
				if !slices.Contains(pids, child) {
					pids = append(pids, child)
				}
			}
		}
	}
	return slices.DeleteFunc(pids, func(pid int) bool { return pid != c.Pid && c.isOver(pid) }), nil
}

// isOver tells whether a process has ended: one that its parent had not waited
// for when it was dumped is restored as that, and has neither namespaces nor
// files. A process whose first thread alone has ended is not over.
func (c *checker) isOver(pid int) bool {
	stats, err := filepath.Glob(c.proc(pid, "task", "*", "stat"))
	if err != nil {
		return false
	}
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		_, fields := sys.ParseStat(b)
		if err != nil || len(fields) == 0 || fields[0] != "Z" && fields[0] != "X" {
			return false
		}
	}
	return true
}

// namespaceFiles are the files below /proc/PID/ns. The time namespace is not
// among them: CRIU always makes one, so that clocks go on.
var namespaceFiles = []struct {
	typ  specs.LinuxNamespaceType
	file string
}{
	{specs.MountNamespace, "mnt"}, {specs.PIDNamespace, "pid"}, {specs.NetworkNamespace, "net"},
	{specs.IPCNamespace, "ipc"}, {specs.UTSNamespace, "uts"}, {specs.UserNamespace, "user"}, {specs.CgroupNamespace, "cgroup"},
}

// namespaces: what the specification wants of its own is neither the host's nor
// another one than the first process's, what it wants joined is that.
func (c *checker) namespaces(pid int) error {
	for _, n := range namespaceFiles {
		got, err := os.Readlink(c.proc(pid, "ns", n.file))
		if err != nil {
			return err
		}
		host, err := os.Readlink("/proc/self/ns/" + n.file)
		if err != nil {
			return err
		}
		first, err := os.Readlink(c.proc(c.Pid, "ns", n.file))
		if err != nil {
			return err
		}
		ns := c.namespace(n.typ)
		switch {
		case ns == nil && got != host:
			return forbidden("a %s namespace of its own", n.typ)
		case ns != nil && got != first:
			return forbidden("another %s namespace than the first process", n.typ)
		case ns != nil && ns.Path == "" && got == host:
			return forbidden("the host's %s namespace", n.typ)
		case ns != nil && ns.Path != "":
			if same, err := sameFile(ns.Path, c.proc(pid, "ns", n.file)); err != nil || !same {
				return errors.Join(forbidden("another %s namespace than its pod", n.typ), err)
			}
		}
	}
	return nil
}

func (c *checker) namespace(t specs.LinuxNamespaceType) *specs.LinuxNamespace {
	for i := range c.Spec.Linux.Namespaces {
		if c.Spec.Linux.Namespaces[i].Type == t {
			return &c.Spec.Linux.Namespaces[i]
		}
	}
	return nil
}

func stat(path string) (st unix.Stat_t, err error) {
	if err = unix.Stat(path, &st); err != nil {
		err = &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st, err
}

func sameFile(a, b string) (bool, error) {
	x, err := stat(a)
	if err != nil {
		return false, err
	}
	y, err := stat(b)
	return err == nil && fileID(x) == fileID(y), err
}

// isNull tells whether a file is the null device, as the host's is that a
// container without an input gets.
func isNull(st unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

func fileID(st unix.Stat_t) string { return fmt.Sprintf("%d:%d", st.Dev, st.Ino) }

// threads: each has credentials of its own.
func (c *checker) threads(pid int) error {
	files, err := filepath.Glob(c.proc(pid, "task", "*", "status"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("has no threads: %w", os.ErrProcessDone)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := checkStatus(string(b), c.Spec); err != nil {
			return err
		}
		if err := c.label(filepath.Dir(f)); err != nil {
			return err
		}
	}
	return nil
}

// label: AppArmor's profile and SELinux's label are those of the specification.
func (c *checker) label(task string) error {
	for _, l := range []struct{ want, file string }{
		{c.Spec.Process.ApparmorProfile, "attr/apparmor/current"}, {c.Spec.Process.SelinuxLabel, "attr/current"},
	} {
		if l.want == "" || l.want == "unconfined" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(task, l.file))
		if err != nil {
			return err
		}
		if got := strings.TrimRight(string(b), "\n\x00"); got != l.want && !strings.HasPrefix(got, l.want+" (") {
			return forbidden("the security label %q instead of %q", got, l.want)
		}
	}
	return nil
}

// checkStatus compares a thread's credentials (/proc/PID/status) with those
// that the process of the specification could have come to.
func checkStatus(status string, spec *specs.Spec) error {
	f := map[string]string{}
	for line := range strings.Lines(status) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			f[key] = strings.TrimSpace(value)
		}
	}
	p := spec.Process
	bounding, permitted := capabilityMask(nil), capabilityMask(nil)
	if p.Capabilities != nil {
		bounding, permitted = capabilityMask(p.Capabilities.Bounding), capabilityMask(p.Capabilities.Permitted)
	}
	if !p.NoNewPrivileges { // what it executes may raise it up to the bounding set
		permitted |= bounding
	}
	for _, s := range []struct {
		key     string
		allowed uint64
	}{{"CapBnd", bounding}, {"CapPrm", permitted}, {"CapEff", permitted}, {"CapInh", bounding | permitted}, {"CapAmb", permitted}} {
		got, err := strconv.ParseUint(f[s.key], 16, 64)
		if err != nil {
			return fmt.Errorf("status: %s: %w", s.key, err)
		}
		if more := got &^ s.allowed; more != 0 {
			return forbidden("capabilities %#x in %s", more, s.key)
		}
	}
	if p.NoNewPrivileges && f["NoNewPrivs"] != "1" {
		return forbidden("no process.noNewPrivileges")
	}
	if s := spec.Linux.Seccomp; s != nil && (len(s.Syscalls) > 0 || s.DefaultAction != specs.ActAllow) && f["Seccomp"] != "2" {
		return forbidden("no seccomp filter")
	}
	if !p.NoNewPrivileges {
		return nil
	}
	// Without a privilege for it, nobody is another user than at the start.
	if bounding&capabilityMask([]string{"CAP_SETUID"}) == 0 {
		if err := checkIDs("Uid", f["Uid"], []uint32{p.User.UID}); err != nil {
			return err
		}
	}
	if bounding&capabilityMask([]string{"CAP_SETGID"}) == 0 {
		if err := checkIDs("Gid", f["Gid"], []uint32{p.User.GID}); err != nil {
			return err
		}
		return checkIDs("Groups", f["Groups"], append(slices.Clone(p.User.AdditionalGids), p.User.GID))
	}
	return nil
}

// capabilityMask has a bit for each name. An unknown one is none.
func capabilityMask(names []string) uint64 {
	var mask uint64
	for n, c := range launch.Capabilities() {
		if slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, c) }) {
			mask |= 1 << n
		}
	}
	return mask
}

func checkIDs(key, got string, allowed []uint32) error {
	for _, s := range strings.Fields(got) {
		id, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return fmt.Errorf("status: %s: %w", key, err)
		}
		if !slices.Contains(allowed, uint32(id)) {
			return forbidden("the id %d in %s", id, key)
		}
	}
	return nil
}

// files: what is open is in the container's mounts, or was given by us.
func (c *checker) files(pid int) error {
	fds, err := os.ReadDir(c.proc(pid, "fd"))
	if err != nil {
		return err
	}
	for _, fd := range fds {
		link, err := os.Readlink(c.proc(pid, "fd", fd.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		st, err := stat(c.proc(pid, "fd", fd.Name()))
		if err != nil {
			return err
		}
		switch kind, rest, _ := strings.Cut(link, ":"); {
		case c.own[fileID(st)] || isNull(st):
		case strings.HasPrefix(link, "/memfd:"):
		case filepath.IsAbs(link):
			if err := c.inMounts(pid, fd.Name(), link); err != nil {
				return err
			}
		case kind == "socket":
			if err := c.socket(pid, fd.Name()); err != nil {
				return err
			}
		case kind == "pipe" || kind == "anon_inode":
		case strings.HasPrefix(rest, "["): // a namespace
			if own, err := os.Readlink(c.proc(pid, "ns", kind)); err != nil || own != link {
				return forbidden("descriptor %s open on the namespace %s", fd.Name(), link)
			}
		default:
			return forbidden("descriptor %s open on %s", fd.Name(), link)
		}
	}
	return nil
}

func (c *checker) inMounts(pid int, fd, link string) error {
	id, err := mountOf(c.proc(pid, "fdinfo", fd))
	if err != nil {
		return err
	}
	for _, m := range c.table {
		if m.id == id {
			return nil
		}
	}
	return forbidden("descriptor %s open on %s, which is in none of its mounts", fd, link)
}

// socket: it is of the container's network namespace.
func (c *checker) socket(pid int, fd string) error {
	n, err := strconv.Atoi(fd)
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	sock, err := unix.PidfdGetfd(pidfd, n, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_getfd", err)
	}
	defer unix.Close(sock)
	const siocgskns = 0x894c
	ns, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(sock), siocgskns, 0)
	if errno != 0 {
		return os.NewSyscallError("ioctl SIOCGSKNS", errno)
	}
	defer unix.Close(int(ns))
	if same, err := sameFile("/proc/self/fd/"+strconv.Itoa(int(ns)), c.proc(pid, "ns", "net")); err != nil || !same {
		return errors.Join(forbidden("descriptor %s, a socket of another network", fd), err)
	}
	return nil
}
