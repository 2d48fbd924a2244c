package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// evictPod is a pod whose container runs a command and then waits.
func evictPod(name, command, container, pod string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  %s
  containers:
  - name: c
    image: %s
    imagePullPolicy: Never
    command: [sh, -c, "%s; touch /done; exec sleep 100000"]
    readinessProbe: {timeoutSeconds: 300, periodSeconds: 1, exec: {command: [test, -e, /done]}}
    %s
`, name, pod, busybox, command, container)
}

// Pods that the node cannot afford go, in the kubelet's order and with its
// words, and nothing of what they used is left.
func TestEviction(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	pods := map[string]string{
		// Two that use more of the disk than they said they would.
		"scratch": evictPod("scratch", "dd if=/dev/zero of=/v/x bs=1M count=8", "volumeMounts: [{name: v, mountPath: /v}]",
			"volumes: [{name: v, emptyDir: {sizeLimit: 2Mi}}]"),
		"layer": evictPod("layer", "dd if=/dev/zero of=/x bs=1M count=8", "resources: {limits: {ephemeral-storage: 2Mi}}", ""),
		// And some of which none did anything wrong.
		"hog": evictPod("hog", "dd if=/dev/zero of=/v/x bs=1M count=64", "volumeMounts: [{name: v, mountPath: /v}]",
			"volumes: [{name: v, emptyDir: {medium: Memory}}]"),
		"modest":   evictPod("modest", "true", "resources: {requests: {memory: 64Mi}}", ""),
		"critical": evictPod("critical", "true", "", "priority: 2000001000"),
	}
	for name, manifest := range pods {
		n.write(name+".yaml", manifest)
	}
	for _, name := range []string{"hog", "modest", "critical"} {
		n.await(name, "ready", ready)
	}
	n.evicted("scratch", `Usage of EmptyDir volume "v" exceeds the limit "2Mi". `)
	n.evicted("layer", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ")
	if out := n.do("logs", "scratch"); !strings.Contains(out, "8+0 records") {
		t.Errorf("the log of an evicted pod: %q", out)
	}
	if left, _ := filepath.Glob(filepath.Join(n.state, "agent/pods/*/volumes/kubernetes.io~empty-dir/v/x")); len(left) != 1 {
		t.Errorf("of emptyDirs, the one in memory should be there: %v", left)
	}
	if pod, err := n.pod("modest"); err != nil || !ready(pod) {
		t.Errorf("a pod that has no limits is gone: %v", err)
	}

	// Another start of the node finds that memory is short whatever is done.
	n.stop()
	n.start("--config", writeFile(t, "config.yaml", `
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
evictionHard: {memory.available: 1Pi}
`))
	low := "The node was low on resource: memory. Threshold quantity: 1Pi, available: "
	hog := n.evicted("hog", low)
	if !strings.Contains(hog.Status.Message, "Container c was using 6") || !strings.Contains(hog.Status.Message, "request is 0, has larger consumption of memory. ") {
		t.Errorf("the hog's message: %s", hog.Status.Message)
	}
	modest := n.evicted("modest", low)
	if disrupted(modest).Before(disrupted(hog)) {
		t.Error("a pod that uses less than it requested goes before one that uses more")
	}
	if pod, err := n.pod("critical"); err != nil || !ready(pod) {
		t.Errorf("a critical pod is gone: %v", err)
	}
	if out := n.do("describe", "pod", "hog"); !strings.Contains(out, "Evicted") {
		t.Errorf("no event of the eviction:\n%s", out)
	}
	if out, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(out), string(hog.UID)+"/volumes") {
		t.Errorf("the hog's memory is still mounted: %v", err)
	}
}

// A pod that fills the disk, in its own file system, goes, and with it what it
// wrote; who wrote less stays.
func TestEvictionForTheDisk(t *testing.T) {
	n := newNode(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	n.state, n.manifests = filepath.Join(disk, "state"), filepath.Join(disk, "manifests")
	if err := os.Mkdir(n.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	n.start("--config", writeFile(t, "config.yaml", `
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
evictionHard: {nodefs.available: 100Mi}
evictionMinimumReclaim: {nodefs.available: 10Mi}
`))
	n.loadBusybox()
	n.write("small.yaml", evictPod("small", "dd if=/dev/zero of=/x bs=1M count=1", "", ""))
	n.await("small", "ready", ready)
	n.write("big.yaml", evictPod("big", "dd if=/dev/zero of=/x bs=1M count=180", "", ""))
	big := n.evicted("big", "The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: ")
	if !strings.Contains(big.Status.Message, "has larger consumption of ephemeral-storage") {
		t.Error(big.Status.Message)
	}
	n.eventually("there is room again", func() error {
		var st unix.Statfs_t
		if err := unix.Statfs(disk, &st); err != nil {
			return err
		}
		if free := st.Bavail * uint64(st.Bsize) >> 20; free < 150 {
			return fmt.Errorf("%d MiB are free", free)
		}
		return nil
	})
	if pod, err := n.pod("small"); err != nil || !ready(pod) {
		t.Errorf("the pod that wrote little is gone: %v", err)
	}
}

func (n *node) evicted(name, message string) *corev1.Pod {
	n.Helper()
	return n.await(name, "evicted: "+message, func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted" && strings.HasPrefix(p.Status.Message, message) &&
			!disrupted(p).IsZero() && p.Status.ContainerStatuses[0].State.Terminated != nil
	})
}

// disrupted is since when the pod has the condition.
func disrupted(p *corev1.Pod) time.Time {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Reason == corev1.PodReasonTerminationByKubelet {
			return c.LastTransitionTime.Time
		}
	}
	return time.Time{}
}
