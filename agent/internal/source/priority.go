package source

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/eviction"
)

// setPriority gives a pod the priority of its class, which a cluster's API
// server does. Only the two that every cluster has are known here.
func setPriority(s *corev1.PodSpec) (warnings []string) {
	class, known := map[string]int32{"system-cluster-critical": eviction.SystemCritical, "system-node-critical": eviction.SystemCritical + 1000}[s.PriorityClassName]
	switch {
	case s.PriorityClassName == "":
	case !known && s.Priority == nil:
		return []string{fmt.Sprintf("spec.priorityClassName has no effect: there are no classes here but system-cluster-critical and system-node-critical, %q is none; set spec.priority", s.PriorityClassName)}
	case s.Priority == nil:
		s.Priority = &class
	}
	return nil
}
