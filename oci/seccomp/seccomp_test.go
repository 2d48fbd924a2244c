package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// call is struct seccomp_data.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

func (c call) bytes() []byte {
	b := binary.LittleEndian.AppendUint32(nil, c.nr)
	b = binary.LittleEndian.AppendUint32(b, c.arch)
	b = binary.LittleEndian.AppendUint64(b, 0) // instruction pointer
	for _, a := range c.args {
		b = binary.LittleEndian.AppendUint64(b, a)
	}
	return b
}

// execute interprets a filter as the kernel does, and counts instructions.
func execute(t testing.TB, code []unix.SockFilter, c call) (result uint32, steps int) {
	t.Helper()
	data := c.bytes()
	var acc uint32
	for pc := 0; pc < len(code); pc++ {
		steps++
		in := code[pc]
		taken := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if in.K%4 != 0 || int(in.K) > len(data)-4 {
				t.Fatalf("load at %d", in.K)
			}
			acc = binary.LittleEndian.Uint32(data[in.K:])
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= in.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			taken(acc == in.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			taken(acc > in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			taken(acc >= in.K)
		case unix.BPF_RET | unix.BPF_K:
			return in.K, steps
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
	}
	t.Fatal("ran off the end")
	return 0, 0
}

// expected is what a profile says of a call, read without any cleverness.
func expected(p *specs.LinuxSeccomp, a *arch, c call) uint32 {
	fallback, _ := parseAction(p.DefaultAction, p.DefaultErrnoRet)
	if c.nr&x32Bit != a.mask {
		panic("not of this architecture")
	}
	rules, _ := parseRules(p.Syscalls)
	last := uint32(0)
	var conditional []uint32
	for _, r := range rules {
		for _, name := range r.names {
			nr, ok := a.number()[name]
			if !ok {
				continue
			}
			last = max(last, nr)
			if nr|a.mask != c.nr || r.action == fallback {
				continue
			}
			if len(r.conditions) == 0 {
				return r.action
			}
			for _, all := range r.conditions {
				holds := true
				for _, arg := range all {
					holds = holds && compare(c.args[arg.Index], arg)
				}
				if holds {
					conditional = append(conditional, r.action)
				}
			}
		}
	}
	if len(conditional) > 0 {
		return conditional[0]
	}
	// Comparing with the table: anything above is newer than the profile.
	if newer, ok := unknownCall(fallback); ok && c.nr&^a.mask > last {
		return newer
	}
	return fallback
}

func compare(v uint64, a specs.LinuxSeccompArg) bool {
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpNotEqual:
		return v != a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpGreaterEqual:
		return v >= a.Value
	case specs.OpMaskedEqual:
		return v&a.Value == a.ValueTwo
	}
	panic(a.Op)
}

// TestRandomProfiles compares compiled filters with what the profiles say.
func TestRandomProfiles(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		machine := []*arch{x86_64, aarch64}[seed%2]
		p, values := randomProfile(r, machine)
		f, err := compile(p, machine)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for range 400 {
			a := family(machine)[r.IntN(len(family(machine)))]
			if a.muxed != nil {
				continue // checked on its own below
			}
			c := call{nr: uint32(r.IntN(560)), arch: a.audit}
			c.nr |= a.mask
			for i := range c.args {
				c.args[i] = values[r.IntN(len(values))]
				if a.bits == 32 {
					c.args[i] &= 0xffffffff
				}
			}
			want := uint32(unix.SECCOMP_RET_KILL_PROCESS)
			if a == machine || slices.Contains(p.Architectures, a.name) {
				want = expected(p, a, c)
			}
			if got, _ := execute(t, f.Instructions, c); got != want {
				t.Fatalf("seed %d: %s call %+v: got %#x, want %#x\nprofile %+v", seed, a.name, c, got, want, p)
			}
		}
	}
}

func randomProfile(r *rand.Rand, a *arch) (*specs.LinuxSeccomp, []uint64) {
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace, specs.ActKill}
	var names []string
	for name := range a.number() {
		names = append(names, name)
	}
	slices.Sort(names)
	p := &specs.LinuxSeccomp{DefaultAction: actions[r.IntN(len(actions))]}
	for _, other := range family(a) {
		if r.IntN(2) == 0 {
			p.Architectures = append(p.Architectures, other.name)
		}
	}
	values := []uint64{0, 1, 2, 0xffffffff, 1 << 32, 1<<32 | 1, 1 << 63, ^uint64(0)}
	value := func() uint64 {
		v := values[r.IntN(len(values))] + uint64(r.IntN(3)) - 1
		if a.bits == 64 && family(a)[1].bits == 32 && slices.Contains(p.Architectures, family(a)[1].name) {
			v &= 0xffffffff // a 32-bit architecture sees the low half alone
		}
		values = append(values, v)
		return v
	}
	unconditional := map[string]bool{}
	for range r.IntN(20) {
		s := specs.LinuxSyscall{Action: actions[r.IntN(len(actions))]}
		conditional := r.IntN(2) == 0
		for range 1 + r.IntN(6) {
			name := names[r.IntN(len(names))]
			if !conditional && unconditional[name] {
				continue
			}
			unconditional[name] = unconditional[name] || !conditional
			s.Names = append(s.Names, name)
		}
		s.Names = append(s.Names, "no_such_call")
		if conditional {
			for range 1 + r.IntN(4) {
				s.Args = append(s.Args, specs.LinuxSeccompArg{
					Index: uint(r.IntN(6)), Op: operators[r.IntN(len(operators))], Value: value(), ValueTwo: value(),
				})
			}
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p, values
}

func TestDefaultProfile(t *testing.T) {
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := compile(p, x86_64)
	if err != nil {
		t.Fatal(err)
	}
	_, steps := execute(t, f.Instructions, call{nr: unix.SYS_READ, arch: unix.AUDIT_ARCH_X86_64})
	t.Logf("%d instructions, %d executed for read", len(f.Instructions), steps)
	if len(f.Instructions) > 800 {
		t.Errorf("%d instructions", len(f.Instructions))
	}
	const enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	const eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	for _, c := range []struct {
		name string
		args [6]uint64
		want uint32
	}{
		{"read", [6]uint64{}, unix.SECCOMP_RET_ALLOW},
		{"mount", [6]uint64{}, eperm},
		{"clone3", [6]uint64{}, enosys},
		{"clone", [6]uint64{unix.CLONE_NEWUSER}, eperm},
		{"clone", [6]uint64{unix.CLONE_VM}, unix.SECCOMP_RET_ALLOW},
		{"personality", [6]uint64{0}, unix.SECCOMP_RET_ALLOW},
		{"personality", [6]uint64{1}, eperm},
		{"socket", [6]uint64{unix.AF_INET}, unix.SECCOMP_RET_ALLOW},
		{"socket", [6]uint64{unix.AF_VSOCK}, eperm},
	} {
		nr := x86_64.number()[c.name]
		if got, _ := execute(t, f.Instructions, call{nr: nr, arch: unix.AUDIT_ARCH_X86_64, args: c.args}); got != c.want {
			t.Errorf("%s%v: got %#x, want %#x", c.name, c.args, got, c.want)
		}
	}
	for _, c := range []struct{ nr, arch, want uint32 }{
		{9999, unix.AUDIT_ARCH_X86_64, enosys},
		{9999 | x32Bit, unix.AUDIT_ARCH_X86_64, enosys},
		{3, unix.AUDIT_ARCH_I386, unix.SECCOMP_RET_ALLOW},
		{21, unix.AUDIT_ARCH_I386, eperm}, // mount
		{0, unix.AUDIT_ARCH_ARM, unix.SECCOMP_RET_KILL_PROCESS},
	} {
		if got, _ := execute(t, f.Instructions, call{nr: c.nr, arch: c.arch}); got != c.want {
			t.Errorf("call %d of architecture %#x: got %#x, want %#x", c.nr, c.arch, got, c.want)
		}
	}
}

func TestMuxedCalls(t *testing.T) {
	f, err := compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"connect", "shmget"}, Action: specs.ActAllow}},
	}, x86_64)
	if err != nil {
		t.Fatal(err)
	}
	const eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	for _, c := range []struct {
		nr   string
		arg  uint64
		want uint32
	}{
		{"socketcall", 3, unix.SECCOMP_RET_ALLOW}, {"socketcall", 2, eperm},
		{"ipc", 23, unix.SECCOMP_RET_ALLOW}, {"ipc", 1, eperm}, {"connect", 0, unix.SECCOMP_RET_ALLOW},
	} {
		if got, _ := execute(t, f.Instructions, call{nr: x86.number()[c.nr], arch: x86.audit, args: [6]uint64{c.arg}}); got != c.want {
			t.Errorf("%s %d: got %#x, want %#x", c.nr, c.arg, got, c.want)
		}
	}
}

func TestErrorsNameTheField(t *testing.T) {
	errno, big := uint(1), uint(1<<20)
	for want, p := range map[string]*specs.LinuxSeccomp{
		".defaultAction":                      {},
		".architectures[0]":                   {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"Z80"}},
		".flags[0]":                           {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}},
		".listenerPath: is missing":           {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActNotify}}},
		".listenerMetadata":                   {DefaultAction: specs.ActAllow, ListenerMetadata: "x"},
		".defaultAction: SCMP_ACT_NOTIFY":     {DefaultAction: specs.ActNotify, ListenerPath: "/x"},
		".syscalls[0].action: write":          {DefaultAction: specs.ActAllow, ListenerPath: "/x", Syscalls: []specs.LinuxSyscall{{Names: []string{"read", "write"}, Action: specs.ActNotify}}},
		".flags[0]: SECCOMP_FILTER_FLAG_WAIT": {DefaultAction: specs.ActAllow, ListenerPath: "/x", Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}},
		".syscalls[0].action":                 {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_X"}}},
		"takes no errnoRet":                   {DefaultAction: specs.ActAllow, DefaultErrnoRet: &errno},
		"too large":                           {DefaultAction: specs.ActErrno, DefaultErrnoRet: &big},
		".syscalls[0].args[0].op":             {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{}}}}},
	} {
		if _, err := Compile(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestFeatures has every action and flag that is announced compiled.
func TestFeatures(t *testing.T) {
	f := Features()
	for _, a := range f.Actions {
		p := notifyProfile()
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.LinuxSeccompAction(a)})
		for _, l := range f.SupportedFlags {
			p.Flags = append(p.Flags, specs.LinuxSeccompFlag(l))
		}
		for _, l := range f.Archs {
			p.Architectures = append(p.Architectures, specs.Arch(l))
		}
		if c, err := Compile(p); err != nil || !c.Notify {
			t.Errorf("%s: %v", a, err)
		}
	}
}

// TestNotify executes a filter that waits for a listener.
func TestNotify(t *testing.T) {
	f, err := compile(notifyProfile(), x86_64)
	if err != nil {
		t.Fatal(err)
	}
	if f.Flags != unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW {
		t.Errorf("flags %#x", f.Flags)
	}
	for name, want := range map[string]uint32{"mkdir": unix.SECCOMP_RET_USER_NOTIF, "read": unix.SECCOMP_RET_ALLOW} {
		if got, _ := execute(t, f.Instructions, call{nr: x86_64.number()[name], arch: x86_64.audit}); got != want {
			t.Errorf("%s: got %#x, want %#x", name, got, want)
		}
	}
}

func notifyProfile() *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, ListenerPath: "/run/agent",
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}},
	}
}

// TestTables checks the tables where all architectures agree, and some numbers
// that are known by heart.
func TestTables(t *testing.T) {
	for _, a := range []*arch{x86_64, x86, x32, aarch64, arm} {
		if n := a.number()["openat2"]; n != 437 {
			t.Errorf("%s: openat2 is %d", a.name, n)
		}
	}
	for _, c := range []struct {
		a    *arch
		name string
		nr   uint32
	}{
		{x86_64, "execve", 59}, {x86, "execve", 11}, {x32, "execve", 520}, {x32, "read", 0}, {x32, "pwritev2", 547},
		{aarch64, "execve", 221}, {arm, "execve", 11}, {arm, "set_tls", 0xf0005}, {x86, "socketcall", 102},
	} {
		if got := c.a.number()[c.name]; got != c.nr {
			t.Errorf("%s: %s is %d, want %d", c.a.name, c.name, got, c.nr)
		}
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
