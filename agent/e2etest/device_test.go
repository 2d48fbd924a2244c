package e2etest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	plain "google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	pods "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"podstead/agent/internal/device/devicetest"
)

// TestDevicePlugin: a pod waits for a plugin and gets its device, another one
// waits until the device is free.
func TestDevicePlugin(t *testing.T) {
	onEach(t, func(n *node) {
		n.stop()
		n.rootDir = n.TempDir()
		n.start()
		pod := func(name string) string {
			return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: test.local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'echo $DEVICES; stat -c %%F /dev/gizmo; exec sleep 100000']
    resources: {limits: {example.com/gizmo: 1}}
`, name)
		}
		n.apply(pod("first"))
		n.until("first", "waiting", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodPending })
		why, err := n.client.Why(n.Context(), "default", "first")
		if err != nil || len(why.Waiting) != 1 || why.Waiting[0].Message != "Container c asks for 1 of example.com/gizmo, 0 are free" {
			n.Errorf("why: %+v, %v", why, err)
		}
		p := &devicetest.Plugin{Resource: "example.com/gizmo", Answer: func(ids []string) *plugin.ContainerAllocateResponse {
			return &plugin.ContainerAllocateResponse{Envs: map[string]string{"DEVICES": strings.Join(ids, ",")},
				Devices: []*plugin.DeviceSpec{{HostPath: "/dev/null", ContainerPath: "/dev/gizmo", Permissions: "rw"}}}
		}}
		p.Start(n, filepath.Join(n.rootDir, "device-plugins"), "g1")
		n.until("first", "ready", ready)
		if line := n.line("first", "c"); line != "g1\n" {
			n.Errorf("environment: %q", line)
		}
		if got := n.exec("first", "c", "stat", "-c", "%F", "/dev/gizmo"); got != "character special file\n" {
			n.Errorf("device: %q", got)
		}
		is := func(health corev1.ResourceHealthStatus) func(*corev1.Pod) bool {
			return func(p *corev1.Pod) bool {
				s := p.Status.ContainerStatuses[0].AllocatedResourcesStatus
				return len(s) == 1 && len(s[0].Resources) == 1 && s[0].Resources[0].ResourceID == "g1" && s[0].Resources[0].Health == health
			}
		}
		n.until("first", "with a device that is well", is(corev1.ResourceHealthStatusHealthy))
		conn, err := grpc.NewClient("unix://"+filepath.Join(n.rootDir, "pods-api", "pods-api.sock"), grpc.WithTransportCredentials(plain.NewCredentials()))
		if err != nil {
			n.Fatal(err)
		}
		defer conn.Close()
		if list, err := pods.NewPodsClient(conn).ListPods(n.Context(), &pods.ListPodsRequest{}); err != nil || len(list.Pods) != 1 {
			n.Errorf("pods API: %v, %v", list, err)
		}
		p.Set("-g1")
		n.until("first", "with a device that is not well", is(corev1.ResourceHealthStatusUnhealthy))
		p.Set("g1")
		n.apply(pod("second"))
		n.until("second", "waiting", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodPending })
		if err := n.client.DeletePod(n.Context(), "default", "first", nil); err != nil {
			n.Fatal(err)
		}
		n.until("first", "gone", gone)
		n.until("second", "ready", ready)
		if err := n.client.DeletePod(n.Context(), "default", "second", nil); err != nil {
			n.Fatal(err)
		}
		n.until("second", "gone", gone)
		n.clean()
	})
}
