package numa

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// machine makes a topology of sockets × nodes × cores × threads, numbered as Linux
// does: the second threads of all cores come after the first. Each node has a cache.
func machine(sockets, nodes, cores, threads int) (m Machine) {
	all := sockets * nodes * cores
	for n := range sockets * nodes {
		node := Node{ID: n, Memory: map[string]uint64{"memory": 4 << 30, "hugepages-2Mi": 64 << 20}}
		for other := range sockets * nodes {
			d := 20
			switch {
			case other == n:
				d = 10
			case other/nodes == n/nodes:
				d = 12
			}
			node.Distances = append(node.Distances, d)
		}
		m.Nodes = append(m.Nodes, node)
	}
	for t := range threads {
		for c := range all {
			m.CPUs = append(m.CPUs, CPU{ID: t*all + c, Core: c, Cache: c / cores * cores, Node: c / cores, Socket: c / cores / nodes})
		}
	}
	return m
}

// halves gives each node two caches.
func halves(m Machine, cores int) Machine {
	for i := range m.CPUs {
		m.CPUs[i].Cache = m.CPUs[i].Core / (cores / 2) * (cores / 2)
	}
	return m
}

func set(list string) CPUs {
	c, err := Parse(list)
	if err != nil {
		panic(err)
	}
	return c
}

func TestSets(t *testing.T) {
	for text, want := range map[string]string{"": "", "0": "0", "3,1-2": "1-3", " 0,2-3 \n": "0,2-3", "5-5,5": "5",
		"1-": "!", "-1": "!", "3-1": "!", "0-9999": "!", "a": "!", "1,,2": "!"} {
		got, err := Parse(text)
		if err != nil != (want == "!") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	a, b := set("0-5"), set("4-7")
	if got := fmt.Sprint(a.And(b), a.Minus(b), a.Or(b), a.Has(5), a.Has(6)); got != "4-5 0-3 0-7 true false" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0,4-7")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(c.String()); err != nil || !again.Equal(c) {
			t.Errorf("%q: %v, then %v, %v", text, c, again, err)
		}
	})
}

func TestTake(t *testing.T) {
	one, two, four := machine(1, 1, 4, 2), machine(2, 1, 4, 2), halves(machine(2, 2, 4, 2), 4)
	for _, c := range []struct {
		what    string
		m       Machine
		free    string
		n       int
		options Options
		want    string
	}{
		{"one thread of a core that is split already", one, "1-7", 1, Options{}, "4"},
		{"a whole core", one, "0-7", 2, Options{}, "0,4"},
		{"a core and a thread", one, "0-7", 3, Options{}, "0-1,4"},
		{"not a split core for a whole one", one, "1-7", 2, Options{}, "1,5"},
		{"a whole socket", two, "0-15", 8, Options{}, "0-3,8-11"},
		{"the socket of which less is free", two, "0-3,6-11,14-15", 2, Options{}, "6,14"},
		{"a socket and a core beside it", two, "0-15", 10, Options{}, "0-4,8-12"},
		{"too many", one, "0-1", 3, Options{}, "!not enough cpus available to satisfy request: requested=3, available=2"},
		{"odd, with whole cores only", one, "0-7", 3, Options{FullCores: true}, "!SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"},
		{"no whole core", one, "0-3", 2, Options{FullCores: true}, "!SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 0, requested CPUs = 2, CPUs per core = 2"},
		{"whole cores only", one, "0-2,5-7", 4, Options{FullCores: true}, "1-2,5-6"},
		{"one of each core", one, "0-7", 3, Options{SpreadCores: true}, "0-2"},
		{"spread over two nodes", two, "1-7,9-15", 10, Options{SpreadNodes: true}, "1-6,9-10,12-13"},
		{"no need to spread", two, "0-15", 4, Options{SpreadNodes: true}, "0-1,8-9"},
		{"the cache that it fills", four, "0-31", 4, Options{ByCache: true}, "0-1,16-17"},
		{"rather one cache than the lowest cores", four, "1-31", 4, Options{ByCache: true}, "2-3,18-19"},
	} {
		got, err := c.m.Take(c.n, c.options, set(c.free))
		text := got.String()
		if err != nil {
			text = "!" + err.Error()
		}
		if want := c.want; text != want && (want[0] == '!' || !set(want).Equal(got)) {
			t.Errorf("%s: %s, want %s", c.what, text, want)
		}
	}
	if got, err := two.Take(4, Options{}, set("5,13"), set("0-3,8-11")); err != nil || got.String() != "0,5,8,13" {
		t.Errorf("the first pool first: %v, %v", got, err)
	}
	var smt *SMTError
	if _, err := one.Take(1, Options{FullCores: true}, set("0-7")); !errors.As(err, &smt) {
		t.Error(err)
	}
}

// FuzzTake: what is taken is free, as many as asked for, and of whole cores if so
// asked; it is always the same; and it fails only if there are too few.
func FuzzTake(f *testing.F) {
	f.Add(uint8(2), uint8(1), uint8(4), uint8(2), uint64(0xffff), uint8(3), uint8(0))
	f.Add(uint8(2), uint8(2), uint8(4), uint8(2), uint64(0xff00ff), uint8(10), uint8(0x1f))
	f.Fuzz(func(t *testing.T, sockets, nodes, cores, threads uint8, free uint64, n, options uint8) {
		m := machine(int(sockets%3)+1, int(nodes%3)+1, int(cores%4)+1, int(threads%2)+1)
		o := Options{FullCores: options&1 != 0, ByCache: options&2 != 0, SpreadNodes: options&4 != 0, SpreadCores: options&9 == 8} // they exclude each other
		var pool CPUs
		for _, c := range m.CPUs {
			if free>>(c.ID%64)&1 == 1 {
				pool = append(pool, c.ID)
			}
		}
		want := int(n)%len(m.CPUs) + 1
		got, err := m.Take(want, o, pool)
		again, _ := m.Take(want, o, pool)
		enough := len(pool) >= want
		if o.FullCores {
			enough = want%m.ThreadsPerCore() == 0 && len(m.wholeCores(pool)) >= want
		}
		switch {
		case (err == nil) != enough:
			t.Errorf("%d of %v: %v", want, pool, err)
		case err == nil && (len(got) != want || len(got.Minus(pool)) > 0 || !got.Equal(NewCPUs(got...))):
			t.Errorf("%d of %v: %v", want, pool, got)
		case err == nil && o.FullCores && len(m.wholeCores(got)) != want:
			t.Errorf("%d of %v: %v are no whole cores", want, pool, got)
		case !got.Equal(again):
			t.Errorf("%v, then %v", got, again)
		}
	})
}

// TestRead reads a machine of two nodes with a processor that is off, and the real one.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"cpu/online": "0-2", "node/online": "0,2",
		"cpu/cpu0/topology/thread_siblings_list": "0,2", "cpu/cpu2/topology/thread_siblings_list": "0,2", "cpu/cpu1/topology/thread_siblings_list": "1",
		"cpu/cpu0/topology/physical_package_id": "0", "cpu/cpu1/topology/physical_package_id": "1", "cpu/cpu2/topology/physical_package_id": "0",
		"cpu/cpu0/cache/index0/level": "1", "cpu/cpu0/cache/index0/shared_cpu_list": "0", "cpu/cpu0/cache/index3/level": "3", "cpu/cpu0/cache/index3/shared_cpu_list": "0,2",
		"node/node0/cpulist": "0,2-3", "node/node2/cpulist": "1",
		"node/node0/meminfo": "Node 0 MemTotal:  8192 kB\nNode 0 MemFree: 1 kB\n", "node/node2/meminfo": "Node 2 MemTotal: 4096 kB\n",
		"node/node0/hugepages/hugepages-2048kB/nr_hugepages": "2", "node/node0/distance": "10 20", "node/node2/distance": "20 10",
	} {
		file := filepath.Join(dir, "devices/system", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Read(dir)
	if got := fmt.Sprint(m, err); got != "{[{0 0 0 0 0} {1 1 1 1 1} {2 0 0 0 0}] [{0 map[hugepages-2Mi:4194304 memory:4194304] [10 20]} {2 map[memory:4194304] [20 10]}]} <nil>" {
		t.Error(got)
	}
	if got := fmt.Sprint(m.In(2), m.NodeIDs(2), m.MaskOf(2, 7), m.Sockets()); got != "1 2 2 2" {
		t.Error(got)
	}
	if err := os.Remove(filepath.Join(dir, "devices/system/node/node2/cpulist")); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), "node2/cpulist") {
		t.Error(err)
	}
	real, err := Read("/sys")
	if err != nil || len(real.CPUs) == 0 || len(real.Nodes) == 0 || real.Nodes[0].Memory["memory"] == 0 {
		t.Errorf("%+v, %v", real, err)
	}
}
