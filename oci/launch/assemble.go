package launch

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// assembler builds a program call by call. The compiler is written in terms of
// it, so that its code reads like the calls that the child will make.
type assembler struct {
	p       *Program
	strings map[string]ref
	hows    map[unix.OpenHow]ref
	temps   int // registers other than the slots'
	err     error
}

// tempReg marks a register that is not a slot's. The slots' come first in the
// finished program, and are not all known before.
const tempReg reg = 0x8000

// reg is a register as an argument, ref a piece of the program's data.
type (
	reg uint16
	ref uint32
)

// newAssembler makes one with room for an exec.
func newAssembler(id string) *assembler {
	return &assembler{
		p:       &Program{id: id, cgroup: -1, pidns: -1, ops: make([]op, 0, 64), data: make([]byte, 0, 6<<10)},
		strings: map[string]ref{},
		hows:    map[unix.OpenHow]ref{},
	}
}

// fail records the first error; the program is then never finished.
func (a *assembler) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// finish returns the program. The compiler's own mistakes are found here too.
func (a *assembler) finish() (*Program, error) {
	if a.err != nil {
		return nil, a.err
	}
	a.p.regs = len(a.p.slots) + a.temps
	if a.p.regs > maxRegs {
		return nil, fmt.Errorf("%d descriptors are too many", a.p.regs)
	}
	for i := range a.p.ops {
		a.numberRegs(&a.p.ops[i])
	}
	if err := a.p.check(); err != nil {
		return nil, fmt.Errorf("compile %s: %w", a.p.id, err)
	}
	return a.p, nil
}

// numberRegs puts temporary registers behind the slots'.
func (a *assembler) numberRegs(o *op) {
	final := func(r uint64) uint64 {
		if r&uint64(tempReg) != 0 {
			return r&^uint64(tempReg) + uint64(len(a.p.slots))
		}
		return r
	}
	for i := range o.args {
		if o.args[i].kind == argReg {
			o.args[i].value = final(o.args[i].value)
		}
	}
	if o.out != noReg {
		o.out = uint16(final(uint64(o.out)))
	}
}

// addSlot adds a descriptor for Open to open.
func (a *assembler) addSlot(s slot) reg {
	a.p.slots = append(a.p.slots, s)
	return reg(len(a.p.slots) - 1)
}

func (a *assembler) newReg() reg {
	a.temps++
	return tempReg | reg(a.temps-1)
}

// do adds a call with the arguments that are not constants of its signature.
// An argument is an int, uint32, uint64 or syscall.Errno, a
// string, a reg, a ref, or nil for a null pointer. text says what is being
// done to which object, for errors.
func (a *assembler) do(text string, c callID, args ...any) *op {
	o := op{call: c, out: noReg, text: text}
	for i, p := range calls[c].params {
		if p.kind == pConst {
			o.args[i] = arg{argInt, p.n}
			continue
		}
		o.args[i] = a.arg(args[0])
		args = args[1:]
	}
	if len(args) > 0 {
		panic("launch: too many arguments for " + calls[c].name)
	}
	a.p.ops = append(a.p.ops, o)
	return &a.p.ops[len(a.p.ops)-1]
}

// get adds a call and returns the register with its result.
func (a *assembler) get(text string, c callID, args ...any) reg {
	r := a.newReg()
	a.do(text, c, args...).out = uint16(r)
	return r
}

func (a *assembler) arg(v any) arg {
	switch v := v.(type) {
	case nil:
		return arg{}
	case int:
		return arg{argInt, uint64(int64(v))}
	case uint32:
		return arg{argInt, uint64(v)}
	case uint64:
		return arg{argInt, v}
	case syscall.Errno:
		return arg{argInt, uint64(v)}
	case reg:
		return arg{argReg, uint64(v)}
	case ref:
		return arg{argData, uint64(v)}
	case string:
		return arg{argData, uint64(a.str(v))}
	}
	panic(fmt.Sprintf("launch: argument of type %T", v))
}

// passing makes errors of the op that was added last harmless.
func (o *op) passing(errs ...syscall.Errno) *op {
	for i, e := range errs {
		o.pass[i] = uint16(e)
	}
	return o
}

// orElse runs body if the call that was added last fails with one of errs.
func (a *assembler) orElse(body func(), errs ...syscall.Errno) {
	at := a.last()
	a.p.ops[at].passing(errs...)
	a.p.ops[at].skipOK = a.skipped(at, body)
}

// andThen runs body unless the call that was added last fails with one of errs.
func (a *assembler) andThen(body func(), errs ...syscall.Errno) {
	at := a.last()
	a.p.ops[at].passing(errs...)
	a.p.ops[at].skipErr = a.skipped(at, body)
}

// ifElse runs yes if the call that was added last succeeds, and no if it fails
// with one of errs.
func (a *assembler) ifElse(yes, no func(), errs ...syscall.Errno) {
	a.andThen(func() {
		yes()
		// Skip the other branch: a call that always succeeds.
		a.do("", cTestReg, 0, 0, syscall.EINVAL)
	}, errs...)
	jump := a.last()
	a.p.ops[jump].skipOK = a.skipped(jump, no)
}

func (a *assembler) last() int { return len(a.p.ops) - 1 }

// skipped adds the operations of body and returns how many they are.
func (a *assembler) skipped(at int, body func()) uint16 {
	body()
	n := a.last() - at
	if n > 0xffff {
		a.fail(fmt.Errorf("%d operations are too many", n))
	}
	return uint16(n)
}

// str interns a NUL-terminated string. A string with a NUL of its own would
// mean something else to the kernel than to the specification's author.
func (a *assembler) str(s string) ref {
	if r, ok := a.strings[s]; ok {
		return r
	}
	for i := range len(s) {
		if s[i] == 0 {
			a.fail(fmt.Errorf("%q has a NUL character", s))
			break
		}
	}
	r := ref(len(a.p.data))
	a.p.data = append(append(a.p.data, s...), 0)
	a.strings[s] = r
	return r
}

// space reserves n aligned bytes.
func (a *assembler) space(n int) ref {
	for len(a.p.data)%8 != 0 {
		a.p.data = append(a.p.data, 0)
	}
	r := ref(len(a.p.data))
	a.p.data = append(a.p.data, make([]byte, n)...)
	return r
}

// put stores a structure of fixed size as the kernel wants it.
func (a *assembler) put(v any) ref {
	b, err := binary.Append(nil, binary.NativeEndian, v)
	if err != nil {
		panic("launch: " + err.Error())
	}
	r := a.space(len(b))
	copy(a.p.data[r:], b)
	return r
}

// pointer makes the 8 bytes at `at` point to `to`.
func (a *assembler) pointer(at, to ref) {
	a.p.relocs = append(a.p.relocs, reloc{uint32(at), uint32(to)})
}

// vector stores a null-terminated array of strings.
func (a *assembler) vector(list []string) ref {
	v := a.space(8 * (len(list) + 1))
	for i, s := range list {
		a.pointer(v+ref(8*i), a.str(s))
	}
	return v
}

// how stores the argument of openat2.
func (a *assembler) how(flags, mode, resolve uint64) ref {
	h := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Mode: mode, Resolve: resolve}
	r, ok := a.hows[h]
	if !ok {
		r = a.put(h)
		a.hows[h] = r
	}
	return r
}

func putUint32(b []byte, v uint32) { binary.NativeEndian.PutUint32(b, v) }
