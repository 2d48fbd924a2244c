package numa

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Machine is a topology: processors and NUMA nodes, each in order of their IDs.
type Machine struct {
	CPUs  []CPU
	Nodes []Node
}

// CPU is one processor (a hardware thread). What it shares with others is named by
// numbers that are unique in the machine.
type CPU struct {
	ID     int
	Core   int
	Cache  int // the last level's
	Node   int // in Machine.Nodes
	Socket int
}

// Node is a NUMA node.
type Node struct {
	ID int
	// Memory in bytes, by resource: "memory" is all but huge pages.
	Memory    map[string]uint64
	Distances []int // to each node
}

// Read reads the topology of the running machine from a sysfs ("/sys").
func Read(sysfs string) (m Machine, err error) {
	system := filepath.Join(sysfs, "devices/system")
	online, err := readCPUs(filepath.Join(system, "cpu/online"))
	if err != nil {
		return m, err
	}
	byNode, err := m.readNodes(filepath.Join(system, "node"), online)
	if err != nil {
		return m, err
	}
	for _, id := range online {
		dir := filepath.Join(system, "cpu/cpu"+strconv.Itoa(id))
		c := CPU{ID: id, Core: id}
		if siblings, err := readCPUs(filepath.Join(dir, "topology/thread_siblings_list")); err == nil && len(siblings) > 0 {
			c.Core = siblings[0]
		}
		if c.Socket, err = readInt(filepath.Join(dir, "topology/physical_package_id")); err != nil || c.Socket < 0 {
			c.Socket = 0 // not every machine knows
		}
		c.Node = slices.IndexFunc(byNode, func(cpus CPUs) bool { return cpus.Has(id) })
		if c.Node < 0 {
			return m, fmt.Errorf("processor %d is in no NUMA node", id)
		}
		c.Cache = lastCache(dir, byNode[c.Node])
		m.CPUs = append(m.CPUs, c)
	}
	return m, nil
}

// lastCache is that of the highest level, by the first processor that shares it;
// without one it is the node's.
func lastCache(dir string, node CPUs) int {
	level, first := -1, node[0]
	entries, _ := filepath.Glob(filepath.Join(dir, "cache/index*"))
	for _, e := range entries {
		n, err := readInt(filepath.Join(e, "level"))
		shared, sharedErr := readCPUs(filepath.Join(e, "shared_cpu_list"))
		if err == nil && sharedErr == nil && n > level && len(shared) > 0 {
			level, first = n, shared[0]
		}
	}
	return first
}

// readNodes returns the processors of each node. A kernel that knows of no nodes has
// one.
func (m *Machine) readNodes(dir string, online CPUs) (byNode []CPUs, err error) {
	ids, err := readCPUs(filepath.Join(dir, "online"))
	if os.IsNotExist(err) {
		m.Nodes = []Node{{Memory: map[string]uint64{}, Distances: []int{10}}}
		return []CPUs{online}, nil
	}
	if err != nil {
		return nil, err
	}
	if len(ids) > MaxNodes {
		return nil, fmt.Errorf("%d NUMA nodes are more than %d", len(ids), MaxNodes)
	}
	for _, id := range ids {
		at := filepath.Join(dir, "node"+strconv.Itoa(id))
		cpus, err := readCPUs(filepath.Join(at, "cpulist"))
		if err != nil {
			return nil, err
		}
		n := Node{ID: id}
		if n.Memory, err = nodeMemory(at); err != nil {
			return nil, err
		}
		text, err := os.ReadFile(filepath.Join(at, "distance"))
		if err != nil {
			return nil, err
		}
		for _, f := range strings.Fields(string(text)) {
			d, err := strconv.Atoi(f)
			if err != nil {
				return nil, fmt.Errorf("%s/distance: %w", at, err)
			}
			n.Distances = append(n.Distances, d)
		}
		m.Nodes, byNode = append(m.Nodes, n), append(byNode, cpus)
	}
	return byNode, nil
}

// nodeMemory is what a node has: huge pages are nothing else.
func nodeMemory(dir string) (map[string]uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "meminfo"))
	if err != nil {
		return nil, err
	}
	out, huge := map[string]uint64{}, uint64(0)
	pages, _ := filepath.Glob(filepath.Join(dir, "hugepages/hugepages-*kB"))
	for _, p := range pages {
		size, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(p), "hugepages-"), "kB"), 10, 64)
		n, countErr := readInt(filepath.Join(p, "nr_hugepages"))
		if err != nil || countErr != nil {
			continue
		}
		out["hugepages-"+binary(size<<10)] = uint64(n) * size << 10
		huge += uint64(n) * size << 10
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // Node 0 MemTotal: 1 kB
		if len(f) >= 4 && f[2] == "MemTotal:" {
			kib, err := strconv.ParseUint(f[3], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s/meminfo: %w", dir, err)
			}
			out["memory"] = kib<<10 - min(huge, kib<<10)
		}
	}
	return out, nil
}

// binary writes a size as resources are named: 2Mi.
func binary(n uint64) string {
	units := []string{"", "Ki", "Mi", "Gi", "Ti"}
	i := 0
	for n != 0 && n%1024 == 0 && i < len(units)-1 {
		n, i = n/1024, i+1
	}
	return strconv.FormatUint(n, 10) + units[i]
}

func readCPUs(file string) (CPUs, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	cpus, err := Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return cpus, nil
}

func readInt(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// All are the machine's processors.
func (m Machine) All() CPUs { return m.where(func(CPU) bool { return true }) }

// In are the processors of some nodes.
func (m Machine) In(nodes Mask) CPUs { return m.where(func(c CPU) bool { return nodes.Has(c.Node) }) }

// AllNodes is the mask of all.
func (m Machine) AllNodes() Mask { return Mask(1)<<len(m.Nodes) - 1 }

func (m Machine) where(f func(CPU) bool) (out CPUs) {
	for _, c := range m.CPUs {
		if f(c) {
			out = append(out, c.ID)
		}
	}
	return out
}

// ThreadsPerCore is how many processors a core has.
func (m Machine) ThreadsPerCore() int {
	cores := map[int]bool{}
	for _, c := range m.CPUs {
		cores[c.Core] = true
	}
	return len(m.CPUs) / max(len(cores), 1)
}

// Sockets is how many there are.
func (m Machine) Sockets() int {
	sockets := map[int]bool{}
	for _, c := range m.CPUs {
		sockets[c.Socket] = true
	}
	return len(sockets)
}

// NodeIDs translates a mask for the kernel ("0-1").
func (m Machine) NodeIDs(nodes Mask) CPUs {
	var ids CPUs
	for i, n := range m.Nodes {
		if nodes.Has(i) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// MaskOf translates IDs of nodes; those that are not there are left out.
func (m Machine) MaskOf(ids ...int) (nodes Mask) {
	for i, n := range m.Nodes {
		if slices.Contains(ids, n.ID) {
			nodes |= 1 << i
		}
	}
	return nodes
}
