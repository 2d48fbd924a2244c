package request

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// HugePageSize is the size of the pages that a resource ("hugepages-2Mi") or a
// medium of an emptyDir ("HugePages-2Mi") names, in bytes.
func HugePageSize(name string) (int64, bool) {
	text, ok := strings.CutPrefix(name, corev1.ResourceHugePagesPrefix)
	if !ok {
		text, ok = strings.CutPrefix(name, string(corev1.StorageMediumHugePagesPrefix))
	}
	if !ok {
		return 0, false
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() <= 0 || q.Value()&(q.Value()-1) != 0 {
		return 0, false
	}
	return q.Value(), true
}

// hugePages are a container's limits of huge pages, by size in the kernel's words.
// If it has some it may use none of the other sizes of the machine.
func hugePages(limits corev1.ResourceList, sizes []int64) (out []*runtimeapi.HugepageLimit) {
	has := map[int64]uint64{}
	for name, q := range limits {
		if size, ok := HugePageSize(string(name)); ok && q.Sign() > 0 {
			has[size] = uint64(q.Value())
		}
	}
	if len(has) == 0 {
		return nil
	}
	all := slices.Clone(sizes)
	for size := range has {
		if !slices.Contains(all, size) {
			all = append(all, size)
		}
	}
	slices.Sort(all)
	for _, size := range all {
		out = append(out, &runtimeapi.HugepageLimit{PageSize: kernelSize(size), Limit: has[size]})
	}
	return out
}

// kernelSize writes a size as the files of cgroups do: 64KB, 2MB, 1GB.
func kernelSize(n int64) string {
	units := []string{"B", "KB", "MB", "GB", "TB", "PB"}
	i := 0
	for n >= 1024 && i < len(units)-1 {
		n, i = n/1024, i+1
	}
	return fmt.Sprintf("%d%s", n, units[i])
}

// HugePageSizes are those that a pod's containers may use.
func HugePageSizes(pod *corev1.Pod) (sizes []int64) {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for name, q := range list[i].Resources.Limits {
				if size, ok := HugePageSize(string(name)); ok && q.Sign() > 0 && !slices.Contains(sizes, size) {
					sizes = append(sizes, size)
				}
			}
		}
	}
	slices.Sort(sizes)
	return sizes
}
