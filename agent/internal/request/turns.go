package request

import corev1 "k8s.io/api/core/v1"

// InTurn are the containers of a pod in the order in which they are given devices,
// processors and memory of their own. What those that pass have, init containers but
// for sidecars, is free again for those after them.
func InTurn(pod *corev1.Pod) (list []*corev1.Container, passing map[string]bool) {
	passing = map[string]bool{}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		list = append(list, c)
		passing[c.Name] = c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways
	}
	for i := range pod.Spec.Containers {
		list = append(list, &pod.Spec.Containers[i])
	}
	return list, passing
}
