package launch

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// pauseUser owns the pause process: nobody's, so that no container's user may
// signal or look into it.
const pauseUser = 65535

// pause compiles pid 1 of a shared pid namespace. It has an empty read-only
// root of its own: a container that may trace it must not find the host's
// files at /proc/1/root.
func (c *compiler) pause(opt Options) (*Program, error) {
	image, err := PauseProgram()
	if err != nil {
		return nil, err
	}
	if err := c.namespaces(); err != nil {
		return nil, err
	}
	exe := c.addSlot(slot{kind: slotMemfd, path: "pause", content: image, label: "make the pause image"})
	if label := c.spec.Linux.MountLabel; label != "" { // processes of the pod may begin with it
		c.do("linux.mountLabel: label the pause image", cFsetxattr, exe, "security.selinux", label, len(label)+1, 0)
	}
	c.enterHostSide(opt.CgroupJoin, opt.CgroupDir)
	c.enterNamespaces()
	c.enterMountNamespace()
	c.root = c.newMount("make an empty root", "tmpfs", "tmpfs", c.labelled("tmpfs", []string{"nr_blocks=1", "nr_inodes=1"}), unix.MOUNT_ATTR_RDONLY)
	c.attachRoot()
	c.do("start a session", cSetsid)
	c.names()
	c.switchRoot()
	c.identity()
	c.do("set no_new_privs", cSetNoNewPrivs, 1)
	c.do("reset signals", cSignals)
	c.do("close descriptors", cCloseAll, exe)
	c.do("restore the limit of open files", cFileLimit)
	c.do("wait for the start", cPrepared)
	c.do("prepare to execute", cExecuting)
	c.do("exec: pause", cExecveat, exe, "", c.vector([]string{"pause"}), c.vector(nil), unix.AT_EMPTY_PATH)
	return c.finish()
}

func pauseProcess(spec *specs.Spec) *specs.Process {
	var label string
	if spec.Process != nil {
		label = spec.Process.SelinuxLabel
	}
	return &specs.Process{
		SelinuxLabel: label,
		Args:         []string{"pause"}, Cwd: "/", NoNewPrivileges: true,
		User: specs.User{UID: pauseUser, GID: pauseUser},
	}
}

// The pause program, in words:
//
//	rt_sigprocmask(SIG_SETMASK, all)    a blocked signal reaches even pid 1
//	rt_sigaction(SIGCHLD, SIG_IGN)      the kernel reaps all orphans by itself
//	do r = rt_sigtimedwait({SIGINT, SIGTERM}) while r < 0
//	exit_group(0)                       and all of the namespace with it
//
// It has no stack frame, no libraries and no writable memory of its own.

// pauseData follows the code: struct sigaction with SIG_IGN, the two signal sets.
var pauseData = slices.Concat(
	word64(1), word64(0), word64(0), word64(0), // ignore, at 0
	word64(1<<64-1),            // all, at 32
	word64(1<<(2-1)|1<<(15-1)), // SIGINT and SIGTERM, at 40
)

const (
	pauseIgnore = 0
	pauseAll    = 32
	pauseTerm   = 40
)

func word64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
func word32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

// pauseAMD64 is the code for x86_64. `end` is where pauseData starts.
func pauseAMD64() []byte {
	const end = 84
	var b []byte
	emit := func(bytes ...byte) { b = append(b, bytes...) }
	// lea reg, [rip+offset]: the offset counts from the end of the instruction.
	lea := func(modrm byte, data int) {
		emit(0x48, 0x8d, modrm)
		b = append(b, word32(uint32(end+data-(len(b)+4)))...)
	}
	const rsi, rdi = 0x35, 0x3d  // modrm of rip-relative addresses
	emit(0xb8, 14, 0, 0, 0)      // mov eax, rt_sigprocmask
	emit(0xbf, 2, 0, 0, 0)       // mov edi, SIG_SETMASK
	lea(rsi, pauseAll)           // lea rsi, [all]
	emit(0x31, 0xd2)             // xor edx, edx
	emit(0x41, 0xba, 8, 0, 0, 0) // mov r10d, 8
	emit(0x0f, 0x05)             // syscall
	emit(0xb8, 13, 0, 0, 0)      // mov eax, rt_sigaction
	emit(0xbf, 17, 0, 0, 0)      // mov edi, SIGCHLD
	lea(rsi, pauseIgnore)        // lea rsi, [ignore]
	emit(0x0f, 0x05)             // syscall
	loop := len(b)
	emit(0xb8, 128, 0, 0, 0)          // mov eax, rt_sigtimedwait
	lea(rdi, pauseTerm)               // lea rdi, [term]
	emit(0x31, 0xf6)                  // xor esi, esi
	emit(0x0f, 0x05)                  // syscall
	emit(0x85, 0xc0)                  // test eax, eax
	emit(0x78, byte(loop-(len(b)+2))) // js loop
	emit(0xb8, 231, 0, 0, 0)          // mov eax, exit_group
	emit(0x31, 0xff)                  // xor edi, edi
	emit(0x0f, 0x05)                  // syscall
	for len(b) < end {
		emit(0xcc) // int3
	}
	return b
}

// pauseARM64 is the code for arm64.
func pauseARM64() []byte {
	const end = 96
	var b []byte
	emit := func(in uint32) { b = append(b, word32(in)...) }
	mov := func(reg, v uint32) { emit(0xd2800000 | v<<5 | reg) } // movz xREG, #v
	adr := func(reg uint32, data int) {                          // adr xREG, data
		off := uint32(end + data - len(b))
		emit(0x10000000 | off&3<<29 | off>>2&0x7ffff<<5 | reg)
	}
	call := func(nr uint32) { // mov x8, #nr; svc #0
		mov(8, nr)
		emit(0xd4000001)
	}
	mov(0, 2) // SIG_SETMASK
	adr(1, pauseAll)
	mov(2, 0)
	mov(3, 8)
	call(135)  // rt_sigprocmask
	mov(0, 17) // SIGCHLD
	adr(1, pauseIgnore)
	call(134) // rt_sigaction; x2, x3 as before
	loop := len(b)
	adr(0, pauseTerm)
	mov(1, 0)
	call(137) // rt_sigtimedwait
	back := uint32(loop-len(b)) >> 2 & 0x3fff
	emit(0xb7f80000 | back<<5) // tbnz x0, #63, loop
	mov(0, 0)
	call(94) // exit_group
	for len(b) < end {
		emit(0xd4200000) // brk #0
	}
	return b
}

// PauseProgram is the program as a static ELF file of one segment, for runtimes
// whose pods need a process from an image.
func PauseProgram() ([]byte, error) {
	switch runtime.GOARCH {
	case "amd64":
		return elfImage(62, append(pauseAMD64(), pauseData...)), nil
	case "arm64":
		return elfImage(183, append(pauseARM64(), pauseData...)), nil
	}
	return nil, fmt.Errorf("there is no pause program for %s", runtime.GOARCH)
}

// elfImage wraps code, which starts with its entry point, into an ELF file for
// a machine (EM_X86_64, EM_AARCH64).
func elfImage(machine uint16, code []byte) []byte {
	const base, headers = 0x400000, 64 + 56
	size := uint64(headers + len(code))
	var b []byte
	half := func(v ...uint16) {
		for _, v := range v {
			b = binary.LittleEndian.AppendUint16(b, v)
		}
	}
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0) // 64 bits, little-endian
	half(2, machine)                                                       // ET_EXEC
	b = append(b, word32(1)...)
	b = append(b, word64(base+headers)...) // entry
	b = append(b, word64(64)...)           // program header
	b = append(b, word64(0)...)            // no sections
	b = append(b, word32(0)...)
	half(64, 56, 1, 64, 0, 0)
	b = append(b, word32(1)...) // PT_LOAD
	b = append(b, word32(5)...) // read, execute
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		b = append(b, word64(v)...)
	}
	return append(b, code...)
}
