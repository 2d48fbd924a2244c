package launch

import "slices"

// MountOptions are the options of mounts that are understood here; others are
// left to the file system.
func MountOptions() []string {
	list := []string{"bind", "rbind", "idmap", "ridmap", "defaults", "remount", "tmpcopyup"}
	for o := range attrOptions {
		list = append(list, o, "r"+o)
	}
	for o := range propagationOptions {
		list = append(list, o, "r"+o)
	}
	slices.Sort(list)
	return list
}

// Namespaces are the kinds of namespaces that can be made or joined.
func Namespaces() []string {
	var list []string
	for n := range namespaceFlag {
		list = append(list, string(n))
	}
	slices.Sort(list)
	return list
}

// MemoryModes and MemoryFlags are what linux.memoryPolicy may have.
func MemoryModes() []string { return names(memoryModes) }
func MemoryFlags() []string { return names(memoryFlags) }

func names[K ~string](m map[K]int) []string {
	var list []string
	for n := range m {
		list = append(list, string(n))
	}
	slices.Sort(list)
	return list
}
