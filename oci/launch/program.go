package launch

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// Program is a compiled launch: pure data, encodable, printable. It is made by
// Compile and its kin or by UnmarshalBinary, does not change afterwards, and may be
// executed any number of times, by several callers at once.
type Program struct {
	id       string
	clone    uint64 // CLONE_NEW* flags of the child
	cgroup   int    // slot of a cgroup v2 directory to be born in, -1 if none
	pidns    int    // slot of a pid namespace, or of a process in one, to be born in; -1 if none
	terminal bool
	owner    uint32 // gets the pipes and ttys handed over as stdio
	maps     *idMaps
	parent   []parentStep
	slots    []slot
	passed   []int // slots whose descriptors the image gets, as 3, 4, …
	regs     int   // number of registers; the first len(slots) hold the slots' descriptors
	ops      []op
	data     []byte  // strings and structures, which arguments point into
	relocs   []reloc // pointers inside data
	encoded  []byte  // in place of what is only needed to execute it, see Encoded
}

// idMaps are written by the forker when the child has made a user namespace.
type idMaps struct {
	UID, GID string // in the format of /proc/PID/uid_map
}

// parentStep is done by the forker for a child in a new user namespace, where
// the child itself has lost the privilege: before it is let on, or, for
// resource limits, when it is prepared.
type parentStep struct {
	label string
	// Either a file of /proc/PID and its new content …
	file, content string
	// … or, with file empty, a resource limit.
	resource   int
	soft, hard uint64
}

// slot is a descriptor that Program.Open opens, and the forker passes on.
type slot struct {
	kind  slotKind
	path  string
	flags uint64 // open flags (slotFile), slotFlag… (slotTree)
	// Of slotTree, applied before the mount can be seen by anybody:
	set, clear   uint64 // MOUNT_ATTR_… of the mount
	rset, rclear uint64 // and of it and its submounts
	propagation  uint64 // MS_PRIVATE, …
	idmap        *idMaps
	lower        []string // of slotOverlay, from top to bottom
	upper, work  string
	mountOptions []string // of slotOverlay, "key" or "key=value"
	content      []byte   // of slotMemfd
	target       bool     // slotFile of the process that is joined: it goes with that
	label        string
}

type slotKind uint8

const (
	slotFile    slotKind = iota + 1 // open(path, flags)
	slotTree                        // a detached copy of the mounts at path
	slotOverlay                     // a detached overlay mount
	slotPidfd                       // a pidfd of the process whose number is path
	slotMemfd                       // a sealed file of memory with content
	slotGiven                       // a descriptor that the caller of Open has
	slotUserns                      // a user namespace with the maps idmap
)

// Flags of slotTree.
const (
	treeRecursive         = 1 << iota // take submounts along
	treePropagateRecurses             // and set the propagation of them too
	treeIdmapRecurses                 // and map the ids of them too
)

// op is one system call, or one of the executor's own operations (calls.go).
type op struct {
	call  callID
	whole bool   // text is the whole error; do not add the errno's own
	out   uint16 // register for the result, noReg for none
	// Control flow only goes forward, so every program ends.
	skipOK, skipErr uint16          // operations skipped after success, after an error in pass
	pass            [maxPass]uint16 // errors that are none; anyErrno: all
	args            [6]arg
	text            string // what is being done, for errors
}

const (
	maxPass  = 4
	noReg    = 0xffff
	maxRegs  = 8192
	anyErrno = syscall.Errno(0xffff)
)

// arg is an argument of an op.
type arg struct {
	kind  argKind
	value uint64 // the integer, the offset into data, or the register
}

type argKind uint8

const (
	argInt  argKind = iota // an integer
	argData                // a pointer to data[value]
	argReg                 // the content of a register
)

// reloc says that the 8 bytes at data[at] are a pointer to data[to].
type reloc struct{ at, to uint32 }

// joinStep is the step that fails with ESRCH if the process to join has ended
// since it was opened.
const joinStep = "join the container's namespaces"

// joinCgroupStep begins the steps that fail with ENOENT or ENODEV if the cgroup of
// the container to join is gone.
const joinCgroupStep = "join the container's cgroup "

// StepError says which step of a launch failed. errors.Is finds its Errno, and
// os.ErrProcessDone if the process that was to be joined has ended.
type StepError struct {
	Step  string        // what was being done to which object
	Errno syscall.Errno // what the kernel said
	whole bool
}

func (e *StepError) Error() string {
	if e.whole {
		return e.Step
	}
	return e.Step + ": " + e.Errno.Error()
}

func (e *StepError) Unwrap() error { return e.Errno }

// Is tells of the end of the process that was to be joined.
func (e *StepError) Is(target error) bool {
	if target != os.ErrProcessDone {
		return false
	}
	return e.Step == joinStep && e.Errno == syscall.ESRCH ||
		strings.HasPrefix(e.Step, joinCgroupStep) && (e.Errno == syscall.ENOENT || e.Errno == syscall.ENODEV)
}

// Terminal tells whether the child makes a pty (then Child.Console is set).
func (p *Program) Terminal() bool { return p.terminal }

// ID names the container in error texts and logs.
func (p *Program) ID() string { return p.id }

// cString returns the string at data[off].
func (p *Program) cString(off uint64) (string, bool) {
	if off >= uint64(len(p.data)) {
		return "", false
	}
	n := bytes.IndexByte(p.data[off:], 0)
	if n < 0 {
		return "", false
	}
	return string(p.data[off : off+uint64(n)]), true
}

// check makes sure that executing the program stays within its own data,
// registers and operations, whatever it was decoded from. It is what stands
// between a damaged message and the forker's memory.
func (p *Program) check() error {
	if p.regs < len(p.slots) || p.regs > maxRegs {
		return fmt.Errorf("%d registers for %d slots", p.regs, len(p.slots))
	}
	if p.clone&^namespaceFlags != 0 {
		return fmt.Errorf("clone flags %#x", p.clone)
	}
	for _, s := range []int{p.cgroup, p.pidns} {
		if s < -1 || s >= len(p.slots) {
			return fmt.Errorf("no slot %d", s)
		}
	}
	for _, s := range p.passed {
		if s < 0 || s >= len(p.slots) {
			return fmt.Errorf("no slot %d", s)
		}
	}
	for i, r := range p.relocs {
		if r.at%8 != 0 || uint64(r.at)+8 > uint64(len(p.data)) || int(r.to) >= len(p.data) {
			return fmt.Errorf("pointer %d is out of bounds", i)
		}
	}
	targets := p.pointers()
	for i := range p.ops {
		if err := p.checkOp(i, targets); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	return nil
}

// pointers maps the offset of each pointer in data to its target.
func (p *Program) pointers() map[uint32]uint32 {
	m := make(map[uint32]uint32, len(p.relocs))
	for _, r := range p.relocs {
		m[r.at] = r.to
	}
	return m
}

func (p *Program) checkOp(i int, targets map[uint32]uint32) error {
	o := &p.ops[i]
	if int(o.call) >= len(calls) || calls[o.call].name == "" {
		return fmt.Errorf("unknown call %d", o.call)
	}
	if o.out != noReg && int(o.out) >= p.regs {
		return fmt.Errorf("no register %d", o.out)
	}
	if n := len(p.ops) - i - 1; int(o.skipOK) > n || int(o.skipErr) > n {
		return fmt.Errorf("skips beyond the end")
	}
	if f := o.args[0]; o.call == cFork && (f.kind != argInt || f.value&^namespaceFlags != 0) {
		return fmt.Errorf("clone flags %#x", f.value)
	}
	params := calls[o.call].params
	for n, a := range o.args {
		if n >= len(params) {
			if a != (arg{}) {
				return fmt.Errorf("%s: argument %d is too many", calls[o.call].name, n)
			}
			continue
		}
		if err := p.checkArg(o, params[n], a, targets); err != nil {
			return fmt.Errorf("%s: argument %d: %w", calls[o.call].name, n, err)
		}
	}
	return nil
}

func (p *Program) checkArg(o *op, want param, a arg, targets map[uint32]uint32) error {
	if a.kind > argReg {
		return fmt.Errorf("unknown kind %d", a.kind)
	}
	if a.kind == argReg && a.value >= uint64(p.regs) {
		return fmt.Errorf("no register %d", a.value)
	}
	if want.kind == pInt {
		if a.kind == argData {
			return fmt.Errorf("a pointer in place of an integer")
		}
		return nil
	}
	if want.kind == pConst {
		if a.kind != argInt || a.value != want.n {
			return fmt.Errorf("is not %d", want.n)
		}
		return nil
	}
	if want.null && a == (arg{}) {
		return nil
	}
	if a.kind != argData {
		return fmt.Errorf("no pointer")
	}
	return p.checkPointer(o, want, a.value, targets)
}

// checkPointer checks what a pointer argument leads to.
func (p *Program) checkPointer(o *op, want param, off uint64, targets map[uint32]uint32) error {
	switch want.kind {
	case pString:
		if _, ok := p.cString(off); !ok {
			return fmt.Errorf("no string at %d", off)
		}
		return nil
	case pBuffer:
		return p.inData(off, want.n)
	case pSized, pInts:
		size := o.args[want.n]
		if size.kind != argInt || size.value > uint64(len(p.data)) {
			return fmt.Errorf("size is no small integer")
		}
		if want.kind == pInts {
			return p.inData(off, 4*size.value)
		}
		return p.inData(off, size.value)
	case pVector:
		return p.checkVector(off, targets)
	case pFilter:
		return p.checkFilter(off, targets)
	}
	return fmt.Errorf("unknown parameter kind %d", want.kind)
}

func (p *Program) inData(off, size uint64) error {
	if size > uint64(len(p.data)) || off > uint64(len(p.data))-size {
		return fmt.Errorf("%d bytes at %d are out of bounds", size, off)
	}
	return nil
}
