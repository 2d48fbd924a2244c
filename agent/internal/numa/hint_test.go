package numa

import (
	"fmt"
	"strings"
	"testing"
)

// text writes hints as lists of nodes, with a ! after the preferred ones.
func text(hints ...Hint) string {
	var out []string
	for _, h := range hints {
		s := "any"
		if h.Nodes != 0 {
			var nodes CPUs
			for i := range MaxNodes {
				if h.Nodes.Has(i) {
					nodes = append(nodes, i)
				}
			}
			s = nodes.String()
		}
		if h.Preferred {
			s += "!"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestHints(t *testing.T) {
	m := machine(2, 1, 4, 1) // two nodes of four
	four := machine(2, 2, 2, 1)
	for _, c := range []struct{ what, got, want string }{
		{"no processors", text(m.CPUHints(0, m.All(), Options{})...), "any!"},
		{"on either node", text(m.CPUHints(2, m.All(), Options{})...), "0! 1! 0-1"},
		{"on one", text(m.CPUHints(3, set("0-1,4-7"), Options{})...), "1! 0-1"},
		{"on both, though one would do", text(m.CPUHints(3, set("0-1,4-5"), Options{})...), "0-1"},
		{"on both", text(m.CPUHints(6, m.All(), Options{})...), "0-1!"},
		{"more than there are", text(m.CPUHints(9, m.All(), Options{})...), ""},
		{"by socket", text(four.CPUHints(3, four.All(), Options{AlignBySocket: true})...), "0-1! 0,2 1-2 0-2 0,3 1,3 0-1,3 2-3! 0,2-3 1-3 0-3"},
		{"devices of two nodes", text(m.DeviceHints(1, []Mask{1, 2}, []Mask{2})...), "1! 0-1"},
		{"devices that do not say where they are", text(m.DeviceHints(1, []Mask{0, 0}, []Mask{0})...), "any!"},
		{"no device is free", text(m.DeviceHints(1, []Mask{1, 2}, nil)...), ""},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	if got := four.Aligned(1, Options{AlignBySocket: true}); got.String() != "0-3" {
		t.Error(got)
	}
}

func TestMerge(t *testing.T) {
	m := machine(2, 2, 2, 1)
	read := func(text string) (out [][]Hint) {
		for need := range strings.SplitSeq(text, ";") {
			var hints []Hint
			for _, f := range strings.Fields(need) {
				h := Hint{Preferred: strings.HasSuffix(f, "!")}
				if f = strings.TrimSuffix(f, "!"); f != "any" {
					for _, i := range set(f) {
						h.Nodes |= 1 << i
					}
				}
				hints = append(hints, h)
			}
			out = append(out, hints)
		}
		return out
	}
	for _, c := range []struct {
		what, needs                    string
		best, restricted, single, near string
	}{
		{"no needs", "any!", "0-3! yes", "0-3! yes", "0-3! yes", ""},
		{"one node for both", "0! 1! 0-1;1! 0-1", "1! yes", "1! yes", "1! yes", ""},
		{"different nodes", "0!;1!", "0-3 yes", "0-3 no", "0-3 no", ""},
		{"the lower of two", "0! 1!;0! 1!", "0! yes", "0! yes", "0! yes", ""},
		{"two nodes that are as few as can be", "0-1! 2-3!;0! 1! 0-1!", "0-1! yes", "0-1! yes", "0-3 no", ""},
		{"nothing is free", "0!;", "0 yes", "0 no", "0-3 no", ""},
		{"nobody prefers it", "0-1;0-1", "0-1 yes", "0-1 no", "0-3 no", ""},
		{"not on fewer nodes than one of them takes", "0-1 0-2;0! 0-1", "0-1 yes", "0-1 no", "0-3 no", ""},
		{"those that are closer", "0,2! 0-1!", "0-1! yes", "0-1! yes", "0-3 no", ""},
		{"the closer ones, although they are higher", "0,2! 2-3!", "0,2! yes", "0,2! yes", "0-3 no", "2-3! yes"},
	} {
		for policy, want := range map[Policy]string{BestEffort: c.best, Restricted: c.restricted, SingleNode: c.single} {
			for _, closest := range []bool{false, true} {
				if closest && c.near == "" || closest && policy == SingleNode {
					continue
				} else if closest {
					want = c.near
				}
				h, ok := Topology{policy, closest}.Merge(m, read(c.needs))
				got := text(h) + map[bool]string{true: " yes", false: " no"}[ok]
				if got != want && (ok || !strings.HasSuffix(want, " no")) { // refused is refused
					t.Errorf("%s, %s, closest %v: %s, want %s", c.what, policy, closest, got, want)
				}
			}
		}
	}
}

// FuzzMerge: what single-numa-node admits restricted admits, too, on the same number
// of nodes or fewer; what is admitted is possible for each need; order does not count.
func FuzzMerge(f *testing.F) {
	f.Add(uint32(0x0f0f), uint32(0xffff), uint32(3))
	f.Fuzz(func(t *testing.T, a, b, preferred uint32) {
		m := machine(2, 1, 4, 1)
		needs := [][]Hint{nil, nil}
		for i, bits := range []uint32{a, b} {
			for nodes := Mask(1); nodes <= m.AllNodes(); nodes++ {
				if bits>>nodes&1 == 1 {
					needs[i] = append(needs[i], Hint{nodes, preferred>>(nodes+Mask(8*i))&1 == 1})
				}
			}
		}
		other := [][]Hint{needs[1], needs[0]}
		for _, p := range []Policy{BestEffort, Restricted, SingleNode} {
			h, ok := Topology{Policy: p}.Merge(m, needs)
			h2, ok2 := Topology{Policy: p}.Merge(m, other)
			if h != h2 || ok != ok2 || h.Nodes == 0 || h.Nodes > m.AllNodes() {
				t.Errorf("%s: %v %v, the other way round %v %v", p, h, ok, h2, ok2)
			}
			if p == SingleNode && ok && h.Nodes.Count() != 1 {
				t.Errorf("single: %v of %v", h, needs)
			}
			if p == SingleNode && ok {
				if _, ok := (Topology{Policy: Restricted}).Merge(m, needs); !ok {
					t.Errorf("restricted refuses %v", needs)
				}
			}
		}
	})
}

func TestMemory(t *testing.T) {
	m := machine(2, 1, 2, 1)
	mem, err := NewMemory(m, []map[string]uint64{{"memory": 1 << 30}})
	if err != nil || mem.Has(0)["memory"] != 3<<30 || mem.Has(1)["memory"] != 4<<30 {
		t.Fatal(mem, err)
	}
	const gib = 1 << 30
	amount := func(n uint64) map[string]uint64 { return map[string]uint64{"memory": n * gib} }
	for _, c := range []struct {
		what   string
		want   uint64
		near   Mask
		others []Block
		hints  string
		take   string
	}{
		{"on either node", 2, 0, nil, "0! 1! 0-1", "1"},
		{"near one", 2, 2, nil, "0! 1! 0-1", "2"},
		{"more than a node has, so near one and another", 5, 1, nil, "0-1!", "3"},
		{"beside another", 2, 0, []Block{{1, amount(2)}}, "1!", "2"},
		{"not in other company", 5, 0, []Block{{1, amount(1)}}, "", "!"},
		{"nor a node of two that are used together", 1, 0, []Block{{3, amount(5)}}, "0-1", "3"},
		{"more than is left", 3, 0, []Block{{3, amount(5)}}, "", "!"},
	} {
		if got := text(mem.Hints(amount(c.want), c.others)...); got != c.hints {
			t.Errorf("%s: %s, want %s", c.what, got, c.hints)
		}
		nodes, err := mem.Take(amount(c.want), c.near, c.others)
		got := fmt.Sprint(nodes)
		if err != nil {
			got = "!"
		}
		if got != c.take {
			t.Errorf("%s: %s, want %s, %v", c.what, got, c.take, err)
		}
	}
	if got := text(mem.Hints(nil, nil)...); got != "any!" {
		t.Error(got)
	}
	if got := text(mem.Hints(map[string]uint64{"memory": gib, "hugepages-2Mi": 100 << 20}, nil)...); got != "0-1!" {
		t.Error("both have to fit: ", got)
	}
	if _, err := NewMemory(m, []map[string]uint64{{"memory": 5 * gib}}); err == nil {
		t.Error("more is reserved than there is")
	}
}
