package env

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Facts is what is known of a pod only once it is there.
type Facts struct {
	NodeName string
	HostIPs  []string
	PodIPs   []string
	// What the node can give, where a container has no limit of its own.
	CPU, Memory, Storage resource.Quantity
}

// Field returns the value of a field of the downward API.
func Field(pod *corev1.Pod, facts Facts, path string) (string, error) {
	if key, ok := subscript(path, "metadata.labels"); ok {
		return pod.Labels[key], nil
	}
	if key, ok := subscript(path, "metadata.annotations"); ok {
		return pod.Annotations[key], nil
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return quotedLines(pod.Labels), nil
	case "metadata.annotations":
		return quotedLines(pod.Annotations), nil
	case "spec.nodeName":
		return facts.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(facts.HostIPs), nil
	case "status.hostIPs":
		return strings.Join(facts.HostIPs, ","), nil
	case "status.podIP":
		return first(facts.PodIPs), nil
	case "status.podIPs":
		return strings.Join(facts.PodIPs, ","), nil
	}
	return "", fmt.Errorf("fieldPath %q is not supported", path)
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func subscript(path, base string) (string, bool) {
	rest, ok := strings.CutPrefix(path, base+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

// quotedLines is the form of maps in files of the downward API: key="value".
func quotedLines(m map[string]string) string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, k+"="+strconv.Quote(m[k]))
	}
	return strings.Join(lines, "\n")
}

// Resource returns a limit or request of a container in units of the divisor,
// rounded up; self is the container that asks, for a selector without a name.
// Where a container has no limit it is the pod's, or what the node has if that is
// less or there is none.
func Resource(pod *corev1.Pod, facts Facts, self string, r *corev1.ResourceFieldSelector) (string, error) {
	name := r.ContainerName
	if name == "" {
		name = self
	}
	c := find(pod, name)
	if c == nil {
		return "", fmt.Errorf("resourceFieldRef: no container %q", name)
	}
	kind, what, _ := strings.Cut(r.Resource, ".")
	list := c.Resources.Limits
	if kind == "requests" {
		list = c.Resources.Requests
	}
	q := list[corev1.ResourceName(what)]
	if q.IsZero() && kind == "limits" {
		q = facts.limit(pod, corev1.ResourceName(what))
	}
	divisor := r.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if what == "cpu" {
		return strconv.FormatInt(ceil(q.MilliValue(), divisor.MilliValue()), 10), nil
	}
	return strconv.FormatInt(ceil(q.Value(), divisor.Value()), 10), nil
}

// limit is what holds for a container of the pod that has no limit of its own.
func (f Facts) limit(pod *corev1.Pod, name corev1.ResourceName) resource.Quantity {
	q := map[corev1.ResourceName]resource.Quantity{
		corev1.ResourceCPU: f.CPU, corev1.ResourceMemory: f.Memory, corev1.ResourceEphemeralStorage: f.Storage,
	}[name]
	if r := pod.Spec.Resources; r != nil {
		if ofPod, ok := r.Limits[name]; ok && !ofPod.IsZero() && (q.IsZero() || ofPod.Cmp(q) < 0) {
			return ofPod
		}
	}
	return q
}

func ceil(a, b int64) int64 {
	if b <= 0 {
		b = 1
	}
	return int64(math.Ceil(float64(a) / float64(b)))
}

func find(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
