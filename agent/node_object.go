package agent

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node describes the node as the Kubernetes API does.
func (b backend) Node(ctx context.Context) *corev1.Node {
	n := b.a.node
	node := &corev1.Node{
		TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: b.a.cfg.NodeName, CreationTimestamp: metav1.NewTime(b.a.began), Labels: map[string]string{
			corev1.LabelHostname: b.a.cfg.NodeName, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
		}},
	}
	st := &node.Status
	st.Capacity, st.Allocatable = n.capacity, n.allocatable
	for _, ip := range n.hostIPs {
		st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: b.a.cfg.NodeName})
	st.NodeInfo = corev1.NodeSystemInfo{
		MachineID: firstLine("/etc/machine-id"), BootID: bootID(),
		OSImage: osImage(), KernelVersion: kernel(), OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
		ContainerRuntimeVersion: n.runtimeName + "://" + n.runtimeVersion, KubeletVersion: b.a.cfg.Version,
	}
	st.Conditions = append(b.pressures(), b.ready(ctx))
	return node
}

func (b backend) NodeEvents() []corev1.Event { return b.a.node.events.OfNode() }

// pressures are the conditions that eviction knows, in the kubelet's words.
func (b backend) pressures() (list []corev1.NodeCondition) {
	have, since := b.a.node.pressure.get()
	if since.IsZero() {
		since = b.a.began
	}
	for _, c := range []struct {
		kind              corev1.NodeConditionType
		yes, no           string
		pressure, without string
	}{
		{corev1.NodeMemoryPressure, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", "kubelet has insufficient memory available", "kubelet has sufficient memory available"},
		{corev1.NodeDiskPressure, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure", "kubelet has disk pressure", "kubelet has no disk pressure"},
		{corev1.NodePIDPressure, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "kubelet has insufficient PID available", "kubelet has sufficient PID available"},
	} {
		out := nodeCondition(c.kind, corev1.ConditionFalse, c.no, c.without, since)
		if slices.Contains(have, c.kind) {
			out = nodeCondition(c.kind, corev1.ConditionTrue, c.yes, c.pressure, since)
		}
		list = append(list, out)
	}
	return list
}

// ready tells whether pods can run: the runtime and its network are ready, and
// the node is not about to go.
func (b backend) ready(ctx context.Context) corev1.NodeCondition {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	var why []string
	st, err := b.a.cfg.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		why = append(why, "container runtime is down: "+err.Error())
	}
	for _, c := range st.GetStatus().GetConditions() {
		if !c.Status {
			what := map[string]string{runtimeapi.RuntimeReady: "container runtime", runtimeapi.NetworkReady: "container runtime network"}[c.Type]
			why = append(why, cmp.Or(what, c.Type)+" not ready: "+strings.TrimSpace(c.Reason+" "+c.Message))
		}
	}
	if b.a.node.down.Load() {
		why = append(why, "node is shutting down")
	}
	if len(why) > 0 {
		return nodeCondition(corev1.NodeReady, corev1.ConditionFalse, "KubeletNotReady", strings.Join(why, ", "), b.a.began)
	}
	return nodeCondition(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status", b.a.began)
}

func nodeCondition(kind corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string, since time.Time) corev1.NodeCondition {
	return corev1.NodeCondition{Type: kind, Status: status, Reason: reason, Message: message,
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.NewTime(since)}
}

func firstLine(file string) string {
	data, _ := os.ReadFile(file)
	line, _, _ := strings.Cut(string(data), "\n")
	return line
}

func osImage() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return ""
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// tellPressure makes an event of the node, in the kubelet's words, of each condition
// that it has got or lost.
func (n *node) tellPressure(before, now []corev1.NodeConditionType) {
	for _, c := range []struct {
		kind    corev1.NodeConditionType
		yes, no string
	}{
		{corev1.NodeMemoryPressure, "NodeHasInsufficientMemory", "NodeHasSufficientMemory"},
		{corev1.NodeDiskPressure, "NodeHasDiskPressure", "NodeHasNoDiskPressure"},
		{corev1.NodePIDPressure, "NodeHasInsufficientPID", "NodeHasSufficientPID"},
	} {
		reason := c.no
		if slices.Contains(now, c.kind) {
			reason = c.yes
		}
		if slices.Contains(before, c.kind) != slices.Contains(now, c.kind) {
			n.events.AddNode(corev1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", n.facts.NodeName, reason))
		}
	}
}
