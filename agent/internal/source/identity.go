package source

import (
	"crypto/sha256"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// podUID derives a UID in the form of a UUID (version 8, RFC 9562) from what
// identifies a pod on a node.
func podUID(node, namespace, name string) types.UID {
	sum := sha256.Sum256([]byte("podstead pod\x00" + node + "\x00" + namespace + "\x00" + name))
	b := sum[:16]
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16]))
}

// PodKey is "namespace/name".
func PodKey(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }
