package e2etest

import (
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	plain "google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"podstead/agent"
	"podstead/agent/internal/numa"
)

// TestProcessors: a pod has a processor for itself, another pod sees the rest, over a
// restart of the agent, and all of them again when it has gone.
func TestProcessors(t *testing.T) { onEach(t, processors) }

func processors(n *node) {
	all, err := numa.Read("/sys")
	if err != nil || runtime.NumCPU() < 2 || len(all.CPUs) != runtime.NumCPU() {
		n.Skipf("it takes two processors, and no others: %v, %v", all.All(), err)
	}
	last := all.All()[len(all.CPUs)-1:]
	rest := all.All().Minus(last)
	n.stop()
	policy := agent.DefaultPolicy()
	policy.Pinning.Static, policy.Pinning.Reserved = true, rest
	policy.Node.Kube = corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(int64(len(rest)), resource.DecimalSI)}
	policy.Pinning.Topology.Policy, policy.Pinning.StaticMemory = numa.SingleNode, true
	policy.Pinning.ReservedMemory = map[int]map[string]uint64{all.Nodes[0].ID: {"memory": 100 << 20}} // as eviction keeps
	n.policy, n.rootDir = &policy, n.TempDir()
	n.start()
	pod := func(name, resources string) string {
		return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: c, image: "test.local/busybox:1", imagePullPolicy: Never, command: [sleep, "12345"], resources: ` + resources + `}]}}`
	}
	sees := func(what, name string, cpus numa.CPUs) {
		n.Helper()
		text := n.exec(name, "c", "grep", "Cpus_allowed_list", "/proc/1/status")
		if _, list, _ := strings.Cut(text, ":"); strings.TrimSpace(list) != cpus.String() {
			n.Errorf("%s: %s sees %q, want %s", what, name, text, cpus)
		}
	}
	n.apply(pod("shares", "{requests: {memory: 16Mi}}"))
	n.until("shares", "ready", ready)
	sees("alone", "shares", all.All())
	n.apply(pod("own", "{limits: {cpu: 1, memory: 64Mi}}"))
	p := n.until("own", "ready", ready)
	if p.Status.QOSClass != corev1.PodQOSGuaranteed {
		n.Errorf("it is %s", p.Status.QOSClass)
	}
	sees("alone", "own", last)
	sees("beside it", "shares", rest)
	if got := strings.TrimSpace(n.exec("own", "c", "busybox", "nproc")); got != "1" {
		n.Errorf("nproc: %s", got)
	}
	if got := n.exec("own", "c", "grep", "Mems_allowed_list", "/proc/1/status"); strings.TrimSpace(got) != "Mems_allowed_list:\t"+strconv.Itoa(all.Nodes[0].ID) {
		n.Errorf("memory: %q", got)
	}
	n.listed("own", last)
	n.apply(pod("later", "{}"))
	n.until("later", "ready", ready)
	sees("later", "later", rest)
	n.apply(pod("waits", "{limits: {cpu: 1, memory: 64Mi}}"))
	n.until("waits", "without room", func(p *corev1.Pod) bool { return p != nil && p.Status.Reason == "OutOfcpu" })

	n.stop()
	n.start()
	for _, name := range []string{"shares", "own", "later"} {
		if now := n.until(name, "ready", ready); now.Status.ContainerStatuses[0].RestartCount != 0 {
			n.Errorf("%s was restarted", name)
		}
	}
	sees("after a restart", "own", last)
	sees("after a restart", "shares", rest)
	for _, name := range []string{"waits", "own"} {
		if err := n.client.DeletePod(n.Context(), "default", name, nil); err != nil {
			n.Fatal(err)
		}
		n.until(name, "gone", gone)
	}
	// It is told to those that run when the pod has gone, and to this one before it starts.
	n.apply(pod("last", "{}"))
	n.until("last", "ready", ready)
	sees("when it has gone", "last", all.All())
	whole := `until grep -q "Cpus_allowed_list:.` + all.All().String() + `$" /proc/1/status; do sleep 0.01; done`
	n.exec("shares", "c", "busybox", "timeout", "60", "sh", "-c", whole)
	for _, name := range []string{"shares", "later", "last"} {
		if err := n.client.DeletePod(n.Context(), "default", name, nil); err != nil {
			n.Fatal(err)
		}
		n.until(name, "gone", gone)
	}
	n.clean()
}

// listed checks what PodResources tells of a pod.
func (n *node) listed(name string, cpus numa.CPUs) {
	n.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(n.rootDir, "pod-resources", "kubelet.sock"), grpc.WithTransportCredentials(plain.NewCredentials()))
	if err != nil {
		n.Fatal(err)
	}
	defer conn.Close()
	got, err := api.NewPodResourcesListerClient(conn).Get(n.Context(), &api.GetPodResourcesRequest{PodName: name, PodNamespace: "default"})
	if err != nil {
		n.Fatal(err)
	}
	c := got.PodResources.Containers[0]
	if !slices.Equal(c.CpuIds, []int64{int64(cpus[0])}) || len(c.Memory) != 1 || c.Memory[0].Size != 64<<20 || len(c.Memory[0].Topology.Nodes) != 1 {
		n.Errorf("PodResources: %v", c)
	}
}
