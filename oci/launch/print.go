package launch

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// String prints the program, one call a line, as golden files hold it: slots
// as @0, @1, …, other registers as %0, %1, …, conditional calls indented.
func (p *Program) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "launch %s\n", p.id)
	if p.clone != 0 {
		fmt.Fprintf(&b, "clone %s\n", flagNames(p.clone, cloneNames))
	}
	if p.cgroup >= 0 {
		fmt.Fprintf(&b, "clone into cgroup @%d\n", p.cgroup)
	}
	if p.pidns >= 0 {
		fmt.Fprintf(&b, "clone into pid namespace @%d\n", p.pidns)
	}
	if p.maps != nil {
		fmt.Fprintf(&b, "uid_map %q\ngid_map %q\n", p.maps.UID, p.maps.GID)
	}
	for _, s := range p.parent {
		if s.file != "" {
			fmt.Fprintf(&b, "forker: write %s %q\n", s.file, s.content)
		} else {
			fmt.Fprintf(&b, "forker: %s\n", s.label)
		}
	}
	for i := range p.slots {
		fmt.Fprintf(&b, "@%d = %s\n", i, p.slots[i].String())
	}
	var ends []int // of the conditional blocks that the current op is in
	for i := range p.ops {
		for len(ends) > 0 && ends[len(ends)-1] < i {
			ends = ends[:len(ends)-1]
		}
		o := &p.ops[i]
		b.WriteString(strings.Repeat("  ", len(ends)))
		p.printOp(&b, o)
		if n := int(max(o.skipOK, o.skipErr)); n > 0 {
			ends = append(ends, i+n)
		}
	}
	return b.String()
}

func (s *slot) String() string {
	switch s.kind {
	case slotFile:
		return fmt.Sprintf("open %s %s", s.path, flagNames(s.flags, openNames))
	case slotPidfd:
		return "pidfd_open " + s.path
	case slotMemfd:
		return fmt.Sprintf("memfd %s of %d bytes", s.path, len(s.content))
	case slotGiven:
		return "given: " + s.label
	case slotUserns:
		return "user namespace" + s.attributes()
	case slotTree:
		return "tree " + s.path + s.attributes()
	}
	return fmt.Sprintf("overlay lower=%s upper=%s work=%s%s", strings.Join(s.lower, ":"), s.upper, s.work, s.attributes())
}

func (s *slot) attributes() string {
	var b strings.Builder
	add := func(name string, v uint64, names []flagName) {
		if v != 0 {
			fmt.Fprintf(&b, " %s=%s", name, flagNames(v, names))
		}
	}
	if s.idmap != nil {
		fmt.Fprintf(&b, " idmap=%q,%q", s.idmap.UID, s.idmap.GID)
	}
	if s.flags&treeRecursive != 0 {
		b.WriteString(" recursive")
	}
	add("set", s.set, attrNames)
	add("clear", s.clear, attrNames)
	add("rset", s.rset, attrNames)
	add("rclear", s.rclear, attrNames)
	add("propagation", s.propagation, mountNames)
	for _, o := range s.mountOptions {
		b.WriteString(" " + o)
	}
	return b.String()
}

func (p *Program) printOp(b *strings.Builder, o *op) {
	if o.out != noReg {
		fmt.Fprintf(b, "%s = ", p.regName(uint64(o.out)))
	}
	c := calls[o.call]
	var args []string
	for i, param := range c.params {
		if param.kind == pConst && param.n == 0 && i > 0 {
			continue
		}
		args = append(args, p.printArg(param, o.args[i], o))
	}
	fmt.Fprintf(b, "%s(%s)", c.name, strings.Join(args, ", "))
	if o.skipOK > 0 {
		fmt.Fprintf(b, " or else %d:", o.skipOK)
	}
	if o.skipErr > 0 {
		fmt.Fprintf(b, " and then %d:", o.skipErr)
	}
	for _, e := range o.pass {
		if e != 0 {
			fmt.Fprintf(b, " %s", unix.ErrnoName(syscall.Errno(e)))
		}
	}
	b.WriteByte('\n')
}

func (p *Program) regName(r uint64) string {
	if r < uint64(len(p.slots)) {
		return "@" + strconv.FormatUint(r, 10)
	}
	return "%" + strconv.FormatUint(r-uint64(len(p.slots)), 10)
}

func (p *Program) printArg(param param, a arg, o *op) string {
	switch {
	case a.kind == argReg:
		return p.regName(a.value)
	case a.kind == argInt && param.kind != pInt && a.value == 0:
		return "null"
	case a.kind == argInt:
		return showInt(a.value, param.show)
	}
	switch param.kind {
	case pString:
		s, _ := p.cString(a.value)
		return strconv.Quote(s)
	case pVector:
		return p.showVector(uint32(a.value))
	case pFilter:
		return fmt.Sprintf("filter of %d instructions", binary.NativeEndian.Uint16(p.data[a.value:]))
	case pSized:
		if n := o.args[param.n].value; n <= 256 {
			return strconv.Quote(string(p.data[a.value : a.value+n]))
		}
	case pInts:
		if n := o.args[param.n].value; n <= 256 {
			var list []string
			for i := range n {
				list = append(list, fmt.Sprint(binary.NativeEndian.Uint32(p.data[a.value+4*i:])))
			}
			return "[" + strings.Join(list, " ") + "]"
		}
	case pBuffer:
		return showBuffer(p.data[a.value:a.value+param.n], param.show)
	}
	return fmt.Sprintf("&%d", a.value)
}

func (p *Program) showVector(off uint32) string {
	targets := p.pointers()
	var list []string
	for {
		to, ok := targets[off]
		if !ok {
			return "[" + strings.Join(list, " ") + "]"
		}
		s, _ := p.cString(uint64(to))
		list = append(list, strconv.Quote(s))
		off += 8
	}
}

func showBuffer(b []byte, as string) string {
	word := func(i int) uint64 { return binary.NativeEndian.Uint64(b[8*i:]) }
	switch as {
	case "how":
		return fmt.Sprintf("{%s %s}", flagNames(word(0)&^unix.O_CLOEXEC, openNames), flagNames(word(2), resolveNames))
	case "mountattr":
		return fmt.Sprintf("{set %s clear %s propagation %s}", flagNames(word(0), attrNames), flagNames(word(1), attrNames), flagNames(word(2), mountNames))
	case "caps":
		w := func(i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
		return fmt.Sprintf("{effective %08x%08x permitted %08x%08x inheritable %08x%08x}", w(3), w(0), w(4), w(1), w(5), w(2))
	case "pair":
		return fmt.Sprintf("{%d %d}", word(0), word(1))
	case "hex":
		return fmt.Sprintf("{%x}", b)
	}
	return "&buffer"
}

func showInt(v uint64, as string) string {
	switch as {
	case "dirfd":
		if int64(v) == unix.AT_FDCWD {
			return "cwd"
		}
	case "octal":
		return fmt.Sprintf("%#o", v)
	case "hex":
		return fmt.Sprintf("%#x", v)
	case "dev":
		return fmt.Sprintf("%d:%d", unix.Major(v), unix.Minor(v))
	case "errno":
		return unix.ErrnoName(syscall.Errno(v))
	case "cap":
		if v < uint64(numCapabilities) {
			return capabilityNames[v]
		}
	case "capset":
		var list []string
		for n, name := range capabilityNames {
			if v&(1<<n) != 0 {
				list = append(list, name)
			}
		}
		return strings.Join(list, "|")
	case "rlimit":
		for name, n := range rlimitNumbers {
			if uint64(n) == v {
				return name
			}
		}
	}
	if names, ok := flagSets[as]; ok {
		return flagNames(v, names)
	}
	return strconv.FormatInt(int64(v), 10)
}

type flagName struct {
	bit  uint64
	name string
}

// flagNames writes flags by name, what has none as a number.
func flagNames(v uint64, names []flagName) string {
	var list []string
	for _, n := range names {
		if v&n.bit == n.bit {
			list = append(list, n.name)
			v &^= n.bit
		}
	}
	if v != 0 || len(list) == 0 {
		list = append(list, fmt.Sprintf("%#x", v))
	}
	return strings.Join(list, "|")
}

var flagSets = map[string][]flagName{
	"open": openNames, "attr": attrNames, "mount": mountNames, "clone": cloneNames,
	"at": atNames, "resolve": resolveNames, "tree": treeNames, "move": moveNames, "umount": umountNames,
}

var (
	openNames = []flagName{
		{unix.O_PATH, "PATH"}, {unix.O_DIRECTORY, "DIRECTORY"}, {unix.O_NOFOLLOW, "NOFOLLOW"}, {unix.O_NOCTTY, "NOCTTY"},
		{unix.O_CREAT, "CREAT"}, {unix.O_EXCL, "EXCL"}, {unix.O_RDWR, "RDWR"}, {unix.O_WRONLY, "WRONLY"}, {unix.O_CLOEXEC, "CLOEXEC"},
	}
	resolveNames = []flagName{
		{unix.RESOLVE_IN_ROOT, "IN_ROOT"}, {unix.RESOLVE_BENEATH, "BENEATH"}, {unix.RESOLVE_NO_MAGICLINKS, "NO_MAGICLINKS"},
		{unix.RESOLVE_NO_SYMLINKS, "NO_SYMLINKS"}, {unix.RESOLVE_NO_XDEV, "NO_XDEV"},
	}
	attrNames = []flagName{
		{unix.MOUNT_ATTR__ATIME, "ATIME"}, {unix.MOUNT_ATTR_RDONLY, "RDONLY"}, {unix.MOUNT_ATTR_NOSUID, "NOSUID"},
		{unix.MOUNT_ATTR_NODEV, "NODEV"}, {unix.MOUNT_ATTR_NOEXEC, "NOEXEC"}, {unix.MOUNT_ATTR_NOATIME, "NOATIME"},
		{unix.MOUNT_ATTR_STRICTATIME, "STRICTATIME"}, {unix.MOUNT_ATTR_NODIRATIME, "NODIRATIME"},
		{unix.MOUNT_ATTR_NOSYMFOLLOW, "NOSYMFOLLOW"}, {unix.MOUNT_ATTR_IDMAP, "IDMAP"},
	}
	mountNames = []flagName{
		{unix.MS_REC, "REC"}, {unix.MS_PRIVATE, "PRIVATE"}, {unix.MS_SLAVE, "SLAVE"}, {unix.MS_SHARED, "SHARED"},
		{unix.MS_UNBINDABLE, "UNBINDABLE"},
	}
	cloneNames = []flagName{
		{unix.CLONE_NEWUSER, "USER"}, {unix.CLONE_NEWNS, "MNT"}, {unix.CLONE_NEWPID, "PID"}, {unix.CLONE_NEWNET, "NET"},
		{unix.CLONE_NEWIPC, "IPC"}, {unix.CLONE_NEWUTS, "UTS"}, {unix.CLONE_NEWCGROUP, "CGROUP"}, {unix.CLONE_NEWTIME, "TIME"},
	}
	atNames = []flagName{
		{unix.AT_EMPTY_PATH, "EMPTY_PATH"}, {unix.AT_RECURSIVE, "RECURSIVE"}, {unix.AT_SYMLINK_NOFOLLOW, "SYMLINK_NOFOLLOW"}, {unix.AT_EACCESS, "EACCESS"},
	}
	treeNames = []flagName{
		{unix.OPEN_TREE_CLONE, "CLONE"}, {unix.OPEN_TREE_CLOEXEC, "CLOEXEC"}, {unix.AT_EMPTY_PATH, "EMPTY_PATH"}, {unix.AT_RECURSIVE, "RECURSIVE"},
	}
	moveNames   = []flagName{{unix.MOVE_MOUNT_F_EMPTY_PATH, "F_EMPTY_PATH"}, {unix.MOVE_MOUNT_T_EMPTY_PATH, "T_EMPTY_PATH"}}
	umountNames = []flagName{{unix.MNT_DETACH, "DETACH"}}
)
