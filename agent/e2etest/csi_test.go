package e2etest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/csi/csitest"
)

const csiPods = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: disks
  csi: {driver: test.csi.local, volumeHandle: vol-1}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: disks
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {token: hidden}
---
apiVersion: v1
kind: Pod
metadata: {name: first}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: test.local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "echo more >/data/more; cat /data/file; exec sleep 100000"]
    volumeMounts: [{name: data, mountPath: /data}, {name: own, mountPath: /own}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: own, csi: {driver: test.csi.local, readOnly: true, volumeAttributes: {color: blue}, nodePublishSecretRef: {name: key}}}
---
apiVersion: v1
kind: Pod
metadata: {name: second}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: test.local/busybox:1
    imagePullPolicy: Never
    command: [sleep, "100000"]
    volumeMounts: [{name: data, mountPath: /data, subPath: sub}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
`

// TestCSI: pods wait for their driver, share what it stages, and leave nothing
// staged or published, also when the agent was another one meanwhile.
func TestCSI(t *testing.T) {
	onEach(t, func(n *node) {
		n.stop()
		n.rootDir = n.TempDir()
		n.start()
		d := &csitest.Driver{Name: "test.csi.local", Data: n.TempDir(), Stages: true}
		volume := filepath.Join(d.Data, "vol-1")
		if err := os.MkdirAll(filepath.Join(volume, "sub"), 0o755); err != nil {
			n.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(volume, "file"), []byte("content\n"), 0o644); err != nil {
			n.Fatal(err)
		}
		n.apply(csiPods)
		n.until("first", "waiting", func(p *corev1.Pod) bool {
			return p != nil && strings.Contains(n.events("first"), "driver name test.csi.local not found in the list of registered CSI drivers")
		})
		d.Start(n, n.rootDir)
		if s := <-d.Notified; !s.PluginRegistered {
			n.Fatal(s.Error)
		}
		n.until("first", "ready", ready)
		n.until("second", "ready", ready)
		if line := n.line("first", "c"); line != "content\n" {
			n.Errorf("read: %q", line)
		}
		if data, err := os.ReadFile(filepath.Join(volume, "more")); string(data) != "more\n" {
			n.Errorf("written: %q, %v", data, err)
		}
		own := n.exec("first", "c", "cat", "/own/context.json")
		for _, part := range []string{`"color":"blue"`, `"csi.storage.k8s.io/pod.name":"first"`, `"csi.storage.k8s.io/ephemeral":"true"`, `"token":"hidden"`} {
			if !strings.Contains(own, part) {
				n.Errorf("no %s in %s", part, own)
			}
		}
		n.stop()
		n.start()
		for _, name := range []string{"first", "second"} {
			if err := n.client.DeletePod(n.Context(), "default", name, nil); err != nil {
				n.Fatal(err)
			}
			n.until(name, "gone", gone)
		}
		calls := d.Calls()
		for call, want := range map[string]int{"NodePublishVolume": 3, "NodeUnpublishVolume": 3, "NodeUnstageVolume": 1} {
			got := len(slices.DeleteFunc(slices.Clone(calls), func(c string) bool { return c != call }))
			if got != want {
				n.Errorf("%d times %s, want %d: %v", got, call, want, calls)
			}
		}
		if calls[len(calls)-1] != "NodeUnstageVolume" {
			n.Errorf("calls: %v", calls)
		}
		if left, _ := os.ReadDir(filepath.Join(n.rootDir, "plugins", "kubernetes.io", "csi", d.Name)); len(left) > 0 {
			n.Errorf("left staged: %v", left)
		}
		n.clean()
	})
}
