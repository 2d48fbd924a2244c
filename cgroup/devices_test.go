package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rules parses "allow c 1:3 rw; deny a" and so on.
func rules(s string) []specs.LinuxDeviceCgroup {
	var all []specs.LinuxDeviceCgroup
	for part := range strings.SplitSeq(s, ";") {
		f := strings.Fields(part)
		if len(f) == 0 {
			continue
		}
		r := specs.LinuxDeviceCgroup{Allow: f[0] == "allow", Type: f[1]}
		if len(f) > 2 {
			var major, minor int64
			a, b, _ := strings.Cut(f[2], ":")
			if _, err := fmt.Sscan(a, &major); err == nil {
				r.Major = &major
			}
			if _, err := fmt.Sscan(b, &minor); err == nil {
				r.Minor = &minor
			}
		}
		if len(f) > 3 {
			r.Access = f[3]
		}
		all = append(all, r)
	}
	return all
}

func TestCompileDevices(t *testing.T) {
	for _, c := range []struct{ rules, want string }{
		{"", "<nil>"},
		{"deny a", "deny"},
		{"allow a", "allow"},
		{"deny a; allow c 1:3 rw", "deny; c 1:3 rw"},
		{"allow c 1:3", "deny; c 1:3 mrw"},
		{"deny a; allow c 1:3 r; allow c 1:3 w", "deny; c 1:3 rw"},
		{"deny a; allow c 1:3 rw; deny c 1:3 w", "deny; c 1:3 r"},
		{"deny a; allow c 1:3 rw; deny c 1:3 rw", "deny"},
		{"deny a; allow c 1:3 rw; deny c 1:* w", "deny; c 1:3 r"},
		{"deny a; allow c *:* m; allow b *:* m; allow c 1:3 rwm", "deny; c *:* m; b *:* m; c 1:3 mrw"},
		{"deny a; allow c 1:* rw; deny c 1:3 w", "error: rule 2: device c 1:3: the kernel cannot make an exception from c 1:*"},
		{"allow c 1:3; deny a", "deny"},
		{"allow a; deny b 8:0 w", "allow; b 8:0 w"},
		{"deny a; allow a *:* m", "deny; c *:* m; b *:* m"},
		{"deny a; allow a 7:1 rw", "deny; c 7:1 rw; b 7:1 rw"},
		{"allow x 1:3", `error: rule 0: type "x" is not a, b or c`},
		{"allow c 1:3 rx", `error: rule 0: access "rx" is not of r, w and m`},
		{"allow c -5:3 r", `error: rule 0: major -5 is not a device number`},
	} {
		p, err := compileDevices(rules(c.rules))
		if got := printPolicy(p, err); got != c.want {
			t.Errorf("%s\ngot  %s\nwant %s", c.rules, got, c.want)
		}
	}
}

func printPolicy(p *devicePolicy, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	if p == nil {
		return "<nil>"
	}
	s := "deny"
	if p.allow {
		s = "allow"
	}
	for _, e := range p.exceptions {
		s += "; " + e.deviceKey.String() + " " + e.access.String()
	}
	return s
}

// runFilter interprets a filter as the kernel would.
func runFilter(t *testing.T, insns []bpfInsn, kind byte, major, minor uint32, a access) bool {
	k := uint32(bpfDevChar)
	if kind == 'b' {
		k = bpfDevBlock
	}
	ctx := map[int16]uint32{0: uint32(a)<<16 | k, 4: major, 8: minor}
	var reg [11]uint32
	for pc := 0; pc < len(insns); pc++ {
		i := insns[pc]
		dst, src := i.regs&15, i.regs>>4
		operand := uint32(i.imm)
		if i.code&unix.BPF_X != 0 && i.code&7 != unix.BPF_LDX {
			operand = reg[src]
		}
		switch i.code &^ unix.BPF_X {
		case unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W:
			reg[dst] = ctx[i.off]
		case unix.BPF_ALU | bpfMov:
			reg[dst] = operand
		case unix.BPF_ALU | unix.BPF_AND:
			reg[dst] &= operand
		case unix.BPF_ALU | unix.BPF_RSH:
			reg[dst] >>= operand
		case bpfJmp32 | bpfJne:
			if reg[dst] != operand {
				pc += int(i.off)
			}
		case bpfJmp32 | unix.BPF_JEQ:
			if reg[dst] == operand {
				pc += int(i.off)
			}
		case unix.BPF_JMP | bpfExit:
			return reg[0] == 1
		default:
			t.Fatalf("instruction %d: code %#x", pc, i.code)
		}
	}
	t.Fatal("ran off the end")
	return false
}

func TestDeviceFilter(t *testing.T) {
	type ask struct {
		kind         byte
		major, minor uint32
		access       string
		want         bool
	}
	for _, c := range []struct {
		rules string
		asks  []ask
	}{
		{"deny a", []ask{{'c', 1, 3, "r", false}, {'b', 8, 0, "m", false}}},
		{"allow a", []ask{{'c', 1, 3, "rwm", true}, {'b', 8, 0, "m", true}}},
		{"deny a; allow c 1:3 rw; allow c 136:* rwm; allow c *:* m", []ask{
			{'c', 1, 3, "r", true}, {'c', 1, 3, "rw", true}, {'c', 1, 3, "rwm", true}, {'b', 1, 3, "r", false},
			{'c', 1, 5, "r", false}, {'c', 1, 5, "m", true}, {'c', 136, 77, "rwm", true}, {'b', 1, 3, "m", false},
			{'c', 137, 3, "rw", false},
		}},
		{"allow a; deny b 8:* w; deny c 10:200", []ask{
			{'b', 8, 1, "r", true}, {'b', 8, 1, "rw", false}, {'b', 9, 1, "rw", true},
			{'c', 10, 200, "m", false}, {'c', 10, 201, "m", true},
		}},
		{"deny a; allow c 4294967295:4294967294 r", []ask{
			{'c', 4294967295, 4294967294, "r", true}, {'c', 4294967295, 0, "r", false},
		}},
	} {
		p, err := compileDevices(rules(c.rules))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range c.asks {
			what, _ := parseAccess(a.access)
			if got := runFilter(t, p.filter(), a.kind, a.major, a.minor, what); got != a.want {
				t.Errorf("%s: %c %d:%d %s is %v", c.rules, a.kind, a.major, a.minor, a.access, got)
			}
		}
	}
}

// Opens and makes devices inside groups with different policies, which are
// changed while the process lives.
func TestDevicePolicyIsEnforced(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	dir := t.TempDir()
	set := func(s string) {
		t.Helper()
		if err := g.Set(&specs.LinuxResources{Devices: rules(s)}); err != nil {
			t.Fatal(err)
		}
	}
	set("deny a; allow c 1:3 rwm; allow c 136:* rwm; allow c *:* m")
	if !tryDevices(t, g, dir, "head -c1 /dev/null && echo > /dev/null && mknod $D/zero c 1 5") {
		t.Error("null or mknod is refused")
	}
	if tryDevices(t, g, dir, "head -c1 /dev/zero") {
		t.Error("zero can be read")
	}
	if tryDevices(t, g, dir, "mknod $D/b b 7 200") {
		t.Error("a block device can be made")
	}
	for range 2 { // the second time nothing changes
		set("deny a; allow c 1:3 rwm; allow c 1:5 r")
		if !tryDevices(t, g, dir, "head -c1 /dev/zero") || !tryDevices(t, g, dir, "echo > /dev/null") {
			t.Error("zero cannot be read, or null not be written")
		}
		if tryDevices(t, g, dir, "echo > /dev/zero") || tryDevices(t, g, dir, "mknod $D/y c 1 5") {
			t.Error("zero can be written or made")
		}
	}
	set("allow a")
	if !tryDevices(t, g, dir, "head -c1 /dev/urandom && mknod $D/b b 7 200") {
		t.Error("all is allowed, but not so")
	}
}

// tryDevices runs a script in the group and tells whether it succeeded.
func tryDevices(t *testing.T, g *Group, dir, script string) bool {
	t.Helper()
	cmd := start(t, g, "exec 2>"+filepath.Join(dir, "stderr")+"; "+script+" >&2", "D="+dir)
	err := cmd.Wait()
	if err == nil {
		return true
	}
	if cmd.ProcessState == nil || errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return false
}
