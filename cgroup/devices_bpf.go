package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// On cgroup v2 a device policy is a program of type BPF_PROG_TYPE_CGROUP_DEVICE
// that the kernel runs at each open and mknod, with struct bpf_cgroup_dev_ctx:
//
//	u32 access_type   // what is asked << 16 | kind
//	u32 major, minor
//
// and that returns 1 to allow. Few instructions of a simple form are needed, so
// they are put together here rather than by a library.

// bpfInsn is struct bpf_insn.
type bpfInsn struct {
	code uint8
	regs uint8 // source << 4 | destination
	off  int16
	imm  int32
}

// Registers: the context, and what is taken from it once.
const (
	rResult = 0
	rCtx    = 1
	rKind   = 2
	rAsked  = 3
	rMajor  = 4
	rMinor  = 5
)

const (
	bpfDevBlock = 1
	bpfDevChar  = 2
)

func loadCtx(dst uint8, off int16) bpfInsn {
	return bpfInsn{code: unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W, regs: rCtx<<4 | dst, off: off}
}

func alu(op, dst uint8, imm int32) bpfInsn {
	return bpfInsn{code: unix.BPF_ALU | op | unix.BPF_K, regs: dst, imm: imm}
}

// skipUnlessEqual jumps over the next n instructions if a register differs.
func skipUnlessEqual(reg uint8, imm int32, n int16) bpfInsn {
	return bpfInsn{code: bpfJmp32 | bpfJne | unix.BPF_K, regs: reg, off: n, imm: imm}
}

const (
	bpfJmp32 = 0x06 // kernel 5.1: compares 32 bits, so that a major above 2^31 is not sign-extended
	bpfJne   = 0x50
	bpfExit  = 0x90
	bpfMov   = 0xb0
)

func result(n int32) []bpfInsn {
	return []bpfInsn{alu(bpfMov, rResult, n), {code: unix.BPF_JMP | bpfExit}}
}

// filter translates the policy. Each bit of what is asked counts for itself:
// an exception that allows crosses out the bits that it gives, and the request
// is granted when none is left.
func (p *devicePolicy) filter() []bpfInsn {
	insns := []bpfInsn{
		loadCtx(rKind, 0),
		{code: unix.BPF_ALU | bpfMov | unix.BPF_X, regs: rKind<<4 | rAsked},
		alu(unix.BPF_AND, rKind, 0xffff),
		alu(unix.BPF_RSH, rAsked, 16),
		loadCtx(rMajor, 4),
		loadCtx(rMinor, 8),
	}
	for _, e := range p.exceptions {
		insns = append(insns, e.match(p.exceptionBody(e))...)
	}
	end := int32(0)
	if p.allow {
		end = 1
	}
	return append(insns, result(end)...)
}

// exceptionBody runs when the device is the exception's.
func (p *devicePolicy) exceptionBody(e deviceException) []bpfInsn {
	if p.allow {
		// Anything that is denied among what is asked: no.
		return append([]bpfInsn{
			{code: unix.BPF_ALU | bpfMov | unix.BPF_X, regs: rAsked<<4 | rResult},
			alu(unix.BPF_AND, rResult, int32(e.access)),
			{code: bpfJmp32 | unix.BPF_JEQ | unix.BPF_K, regs: rResult, off: 2},
		}, result(0)...)
	}
	return append([]bpfInsn{
		alu(unix.BPF_AND, rAsked, int32(^e.access&mayAll)),
		skipUnlessEqual(rAsked, 0, 2),
	}, result(1)...)
}

// match runs body if the device in the registers is k's.
func (k deviceKey) match(body []bpfInsn) []bpfInsn {
	kind := int32(bpfDevChar)
	if k.kind == 'b' {
		kind = bpfDevBlock
	}
	tests := []bpfInsn{skipUnlessEqual(rKind, kind, 0)}
	if k.major != anyNumber {
		tests = append(tests, skipUnlessEqual(rMajor, int32(uint32(k.major)), 0))
	}
	if k.minor != anyNumber {
		tests = append(tests, skipUnlessEqual(rMinor, int32(uint32(k.minor)), 0))
	}
	for i := range tests {
		tests[i].off = int16(len(tests) - 1 - i + len(body))
	}
	return append(tests, body...)
}

func encode(insns []bpfInsn) []byte {
	var b []byte
	for _, i := range insns {
		b = append(b, i.code, i.regs)
		b = binary.NativeEndian.AppendUint16(b, uint16(i.off))
		b = binary.NativeEndian.AppendUint32(b, uint32(i.imm))
	}
	return b
}

// filterCache keeps loaded programs: most containers have the same policy, and
// one program can be attached to many groups.
type filterCache struct {
	mu  sync.Mutex
	fds map[string]int // by instructions
}

const maxFilters = 16

// with calls f with the descriptor of a loaded program, which stays the cache's.
func (c *filterCache) with(code []byte, f func(fd int) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd, ok := c.fds[string(code)]
	if !ok {
		var err error
		if fd, err = loadFilter(code); err != nil {
			return err
		}
		if len(c.fds) >= maxFilters {
			for k, old := range c.fds {
				unix.Close(old)
				delete(c.fds, k)
			}
		}
		if c.fds == nil {
			c.fds = make(map[string]int)
		}
		c.fds[string(code)] = fd
	}
	return f(fd)
}

// setDevicesV2 attaches the policy's program in place of the one that was
// attached before, without a moment in between.
func (g *Group) setDevicesV2(p *devicePolicy) error {
	dir, err := open(g.h.unified+g.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	old, err := attachedFilters(dir)
	if err != nil {
		return err
	}
	defer func() {
		for _, fd := range old {
			unix.Close(fd)
		}
	}()
	return g.h.filters.with(encode(p.filter()), func(fd int) error {
		return replaceFilters(dir, fd, old)
	})
}

// replaceFilters attaches a program and detaches the old ones, in one step where
// there is just one.
func replaceFilters(dir, fd int, old []int) error {
	replace := 0
	if len(old) == 1 {
		replace = old[0]
	}
	err := attachFilter(dir, fd, replace)
	// A program that is attached already cannot be attached once more.
	if err != nil && !(errors.Is(err, unix.EINVAL) && slices.ContainsFunc(old, func(o int) bool { return same(o, fd) })) {
		return fmt.Errorf("attach device filter: %w", err)
	}
	for _, o := range old {
		if o != replace && !same(o, fd) {
			if err := detachFilter(dir, o); err != nil {
				return fmt.Errorf("detach old device filter: %w", err)
			}
		}
	}
	return nil
}

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for try := 0; ; try++ {
		r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		// The verifier gives up with EAGAIN when a signal comes.
		if errno == unix.EINTR || errno == unix.EAGAIN && try < 30 {
			continue
		}
		if errno != 0 {
			return -1, errno
		}
		return int(r), nil
	}
}

func loadFilter(code []byte) (int, error) {
	license := []byte("Apache-2.0\x00")
	// The first fields of union bpf_attr; those that are missing count as 0.
	attr := struct {
		progType, insnCount uint32
		insns, license      unsafe.Pointer
		logLevel, logSize   uint32
		log                 unsafe.Pointer
	}{
		progType:  unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		insnCount: uint32(len(code) / 8),
		insns:     unsafe.Pointer(&code[0]),
		license:   unsafe.Pointer(&license[0]),
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err == nil {
		return fd, nil
	}
	log := make([]byte, 64<<10)
	pin.Pin(&log[0])
	attr.logLevel, attr.logSize, attr.log = 1, uint32(len(log)), unsafe.Pointer(&log[0])
	if fd, err2 := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err2 == nil {
		return fd, nil
	}
	return -1, fmt.Errorf("load device filter: %w %s", err, strings.TrimSpace(unix.ByteSliceToString(log)))
}

// attachFilter attaches a program, in place of the program replace if not 0.
func attachFilter(dir, fd, replace int) error {
	attr := struct{ target, prog, kind, flags, replace uint32 }{
		uint32(dir), uint32(fd), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI, 0,
	}
	if replace != 0 {
		attr.flags |= unix.BPF_F_REPLACE // kernel 5.6
		attr.replace = uint32(replace)
	}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func detachFilter(dir, fd int) error {
	attr := struct{ target, prog, kind, flags uint32 }{uint32(dir), uint32(fd), unix.BPF_CGROUP_DEVICE, 0}
	_, err := bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// attachedFilters opens the device programs attached to a group.
func attachedFilters(dir int) (fds []int, err error) {
	ids := make([]uint32, 64) // the kernel's own maximum
	// Linux 6.17 to 7.1 write revision whatever size is passed, so the structure
	// must reach that far, or memory beside it is overwritten.
	attr := struct {
		target, kind, flags, attachFlags uint32
		ids                              unsafe.Pointer
		count, _                         uint32
		progAttachFlags, links, linkFlag uint64
		revision                         uint64
	}{target: uint32(dir), kind: unix.BPF_CGROUP_DEVICE, ids: unsafe.Pointer(&ids[0]), count: uint32(len(ids))}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ids[0])
	pin.Pin(&attr)
	if _, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return nil, fmt.Errorf("query device filters: %w", err)
	}
	for _, id := range ids[:min(int(attr.count), len(ids))] {
		fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&struct{ id uint32 }{id}), 4)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) {
			continue // a security module's; it can only forbid more
		}
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return nil, fmt.Errorf("open device filter %d: %w", id, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// same tells whether two descriptors are of one program.
func same(a, b int) bool {
	ida, erra := programID(a)
	idb, errb := programID(b)
	return erra == nil && errb == nil && ida == idb
}

func programID(fd int) (string, error) {
	s, err := readFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(s) {
		if id, ok := strings.CutPrefix(line, "prog_id:"); ok {
			return strings.TrimSpace(id), nil
		}
	}
	return "", errors.New("no program")
}
