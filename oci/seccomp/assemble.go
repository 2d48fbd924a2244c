package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// Code is assembled from pieces that end in a return on every path, and whose
// jumps stay within them; so pieces can be put together in any order.
type piece = []unix.SockFilter

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func ret(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }

func jump(op uint16, k uint32, jt, jf uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: jt, Jf: jf, K: k}
}

// choose is yes if the comparison holds, else no.
func choose(op uint16, k uint32, yes, no piece) piece {
	if len(yes) <= 255 {
		return slices.Concat(piece{jump(op, k, 0, uint8(len(yes)))}, yes, no)
	}
	far := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(yes))}
	return slices.Concat(piece{jump(op, k, 1, 0), far}, yes, no)
}

// assemble puts the filter together: by architecture, then by number, then by
// arguments. What comes in by an architecture that the profile does not name
// dies, for its numbers mean other calls.
func assemble(archs []*arch, rules []rule, fallback uint32) piece {
	const foreign = unix.SECCOMP_RET_KILL_PROCESS
	code := piece{ret(foreign)}
	for i := len(archs) - 1; i >= 0; i-- {
		a := archs[i]
		if a == x32 {
			continue // part of x86_64
		}
		section := a.section(rules, fallback)
		if a == x86_64 {
			other := piece{ret(foreign)}
			if slices.Contains(archs, x32) {
				other = x32.section(rules, fallback)
			}
			section = choose(unix.BPF_JGE, x32Bit, other, section)
		}
		section = slices.Concat(piece{load(offNumber)}, section)
		code = choose(unix.BPF_JEQ, a.audit, section, code)
	}
	return slices.Concat(piece{load(offArch)}, code)
}

// span is a range of numbers, up to the next span, with one outcome.
type span struct {
	from uint32
	code piece
}

// section is the code for one architecture, with the number loaded.
func (a *arch) section(rules []rule, fallback uint32) piece {
	calls, last := a.outcomes(rules, fallback)
	numbers := make([]uint32, 0, len(calls))
	for nr := range calls {
		numbers = append(numbers, nr)
	}
	slices.Sort(numbers)
	plain := piece{ret(fallback)}
	spans := []span{{0, plain}}
	add := func(from uint32, code piece) {
		if s := &spans[len(spans)-1]; s.from == from {
			s.code = code
			if n := len(spans); n > 1 && slices.Equal(spans[n-2].code, code) {
				spans = spans[:n-1]
			}
		} else if !slices.Equal(s.code, code) {
			spans = append(spans, span{from, code})
		}
	}
	for _, nr := range numbers {
		add(nr, calls[nr])
		add(nr+1, plain)
	}
	// A call that is newer than the profile does not exist, so that programs
	// fall back to what they did before there was one. (With EPERM they would
	// not; glibc's clone3 is the well-known victim.)
	if newer, ok := unknownCall(fallback); ok {
		add(a.mask|(last+1), piece{ret(newer)})
	}
	return search(spans)
}

// unknownCall returns the outcome for calls with a higher number than any that
// the profile names.
func unknownCall(fallback uint32) (uint32, bool) {
	switch fallback & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return 0, false
	}
	return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), true
}

// search finds the span of the loaded number by bisection.
func search(spans []span) piece {
	if len(spans) == 1 {
		return spans[0].code
	}
	mid := len(spans) / 2
	return choose(unix.BPF_JGE, spans[mid].from, search(spans[mid:]), search(spans[:mid]))
}

// branch is a conjunction of conditions and what follows from it.
type branch struct {
	args   []specs.LinuxSeccompArg
	action uint32
}

// outcomes maps the numbers of the calls that a profile names to their code,
// and returns the highest number that it names. Names that this architecture
// does not have are passed over: profiles are written for many.
func (a *arch) outcomes(rules []rule, fallback uint32) (calls map[uint32]piece, last uint32) {
	numbers := a.number()
	always := map[uint32]uint32{}
	sometimes := map[uint32][]branch{}
	add := func(r *rule, nr uint32, conditions [][]specs.LinuxSeccompArg) {
		nr |= a.mask
		for _, c := range conditions {
			sometimes[nr] = append(sometimes[nr], branch{c, r.action})
		}
		// Profiles in use contradict themselves: the first rule wins, as in
		// libseccomp.
		if _, ok := always[nr]; len(conditions) == 0 && !ok {
			always[nr] = r.action
		}
	}
	for i := range rules {
		r := &rules[i]
		for _, name := range r.names {
			nr, ok := numbers[name]
			if ok {
				last = max(last, nr)
			}
			// A rule that says what happens anyway must not hide others.
			if r.action == fallback {
				continue
			}
			if ok {
				add(r, nr, r.conditions)
			}
			if m, ok := a.muxed[name]; ok && len(r.conditions) == 0 {
				operation := []specs.LinuxSeccompArg{{Index: 0, Value: m.operation, Op: specs.OpEqualTo}}
				add(r, numbers[m.via], [][]specs.LinuxSeccompArg{operation})
			}
		}
	}
	calls = map[uint32]piece{}
	for nr, list := range sometimes {
		calls[nr] = a.branches(list, fallback)
	}
	// A rule without conditions beats those with, as in libseccomp.
	for nr, action := range always {
		calls[nr] = piece{ret(action)}
	}
	return calls, last
}

// branches tries the branches in the order of the profile.
func (a *arch) branches(list []branch, fallback uint32) piece {
	code := piece{ret(fallback)}
	for i := len(list) - 1; i >= 0; i-- {
		yes := piece{ret(list[i].action)}
		for j := len(list[i].args) - 1; j >= 0; j-- {
			yes = slices.Concat(a.condition(list[i].args[j], uint8(len(yes))), yes)
		}
		code = slices.Concat(yes, code)
	}
	return code
}

// condition compares an argument: it falls through if the condition holds, and
// skips `skip` further instructions if not. Arguments are compared by halves.
func (a *arch) condition(c specs.LinuxSeccompArg, skip uint8) piece {
	lowHalf := load(offArgs + 8*uint32(c.Index))
	highHalf := load(offArgs + 8*uint32(c.Index) + 4)
	low, high := uint32(c.Value), uint32(c.Value>>32)
	if c.Op == specs.OpMaskedEqual {
		return a.maskedEqual(c, skip)
	}
	if a.bits == 32 {
		op, holds := comparison(c.Op)
		if holds {
			return piece{lowHalf, jump(op, low, 0, skip)}
		}
		return piece{lowHalf, jump(op, low, skip, 0)}
	}
	switch c.Op {
	case specs.OpEqualTo:
		return piece{highHalf, jump(unix.BPF_JEQ, high, 0, skip+2), lowHalf, jump(unix.BPF_JEQ, low, 0, skip)}
	case specs.OpNotEqual:
		return piece{highHalf, jump(unix.BPF_JEQ, high, 0, 2), lowHalf, jump(unix.BPF_JEQ, low, skip, 0)}
	}
	op, holds := comparison(c.Op)
	if holds { // > or >=
		return piece{highHalf, jump(unix.BPF_JGT, high, 3, 0), jump(unix.BPF_JEQ, high, 0, skip+2), lowHalf, jump(op, low, 0, skip)}
	}
	return piece{highHalf, jump(unix.BPF_JGT, high, skip+3, 0), jump(unix.BPF_JEQ, high, 0, 2), lowHalf, jump(op, low, skip, 0)}
}

// comparison returns the BPF comparison for an operator, and whether the
// operator holds when the comparison does or when it does not.
func comparison(o specs.LinuxSeccompOperator) (op uint16, holds bool) {
	switch o {
	case specs.OpEqualTo:
		return unix.BPF_JEQ, true
	case specs.OpNotEqual:
		return unix.BPF_JEQ, false
	case specs.OpGreaterThan:
		return unix.BPF_JGT, true
	case specs.OpGreaterEqual:
		return unix.BPF_JGE, true
	case specs.OpLessEqual:
		return unix.BPF_JGT, false
	}
	return unix.BPF_JGE, false // OpLessThan
}

func (a *arch) maskedEqual(c specs.LinuxSeccompArg, skip uint8) piece {
	and := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: k}
	}
	low := piece{
		load(offArgs + 8*uint32(c.Index)), and(uint32(c.Value)),
		jump(unix.BPF_JEQ, uint32(c.ValueTwo), 0, skip),
	}
	if a.bits == 32 {
		return low
	}
	return slices.Concat(piece{
		load(offArgs + 8*uint32(c.Index) + 4), and(uint32(c.Value >> 32)),
		jump(unix.BPF_JEQ, uint32(c.ValueTwo>>32), 0, skip+3),
	}, low)
}
