package e2etest

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent"
	"podstead/agent/internal/csi/csitest"
	"podstead/test/host"
)

const measuredVolumes = `
{kind: PersistentVolume, apiVersion: v1, metadata: {name: small}, spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: small, local: {path: %[1]q}}}
---
{kind: PersistentVolume, apiVersion: v1, metadata: {name: remote}, spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: remote, local: {path: %[2]q}}}
---
{kind: PersistentVolume, apiVersion: v1, metadata: {name: disk}, spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: disks, csi: {driver: test.csi.local, volumeHandle: vol-1}}}
---
{kind: PersistentVolumeClaim, apiVersion: v1, metadata: {name: small}, spec: {accessModes: [ReadWriteOnce], storageClassName: small, resources: {requests: {storage: 1Mi}}}}
---
{kind: PersistentVolumeClaim, apiVersion: v1, metadata: {name: remote}, spec: {accessModes: [ReadWriteOnce], storageClassName: remote, resources: {requests: {storage: 1Mi}}}}
---
{kind: PersistentVolumeClaim, apiVersion: v1, metadata: {name: disk}, spec: {accessModes: [ReadWriteOnce], storageClassName: disks, resources: {requests: {storage: 1Mi}}}}
---
{kind: PersistentVolumeClaim, apiVersion: v1, metadata: {name: own}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}
---
{kind: ConfigMap, apiVersion: v1, metadata: {name: settings}, data: {a: b}}
---
{kind: Pod, apiVersion: v1, metadata: {name: p}, spec: {
  terminationGracePeriodSeconds: 1,
  containers: [{name: c, image: "test.local/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"], volumeMounts: [
    {name: small, mountPath: /small}, {name: memory, mountPath: /memory}, {name: own, mountPath: /own}, {name: disk, mountPath: /disk}]}],
  volumes: [
    {name: small, persistentVolumeClaim: {claimName: small}}, {name: remote, persistentVolumeClaim: {claimName: remote}},
    {name: disk, persistentVolumeClaim: {claimName: disk}}, {name: own, persistentVolumeClaim: {claimName: own}},
    {name: memory, emptyDir: {medium: Memory, sizeLimit: 4Mi}}, {name: settings, configMap: {name: settings}}]}}
`

// TestVolumeStats: how full volumes are is told of file systems of the machine,
// of those that programs serve, and by CSI drivers. One that does not answer any
// more holds up neither those who ask nor the agent: the one process that waits
// for it is another.
func TestVolumeStats(t *testing.T) {
	host.Require(t)
	n := onPodstead(t)
	n.stop()
	n.rootDir = n.TempDir()
	policy := agent.DefaultPolicy()
	policy.VolumeStatsPeriod = time.Nanosecond
	n.policy = &policy
	n.kubelet = &agent.KubeletAPI{ReadOnlyPort: 10255, Address: "127.0.0.1", MinVersion: tls.VersionTLS12}
	n.start()
	small := mkdir(t)
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	remote, letGo := mountHungFS(t, mkdir(t))
	released := false
	t.Cleanup(func() {
		if !released {
			letGo()
		}
	})
	d := &csitest.Driver{Name: "test.csi.local", Data: t.TempDir(), Size: 1 << 30}
	d.Start(t, n.rootDir)
	if s := <-d.Notified; !s.PluginRegistered {
		t.Fatal(s.Error)
	}
	n.apply(fmt.Sprintf(measuredVolumes, small, remote.dir))
	n.until("p", "ready", ready)
	n.exec("p", "c", "dd", "if=/dev/zero", "of=/small/file", "bs=1M", "count=2")
	n.exec("p", "c", "dd", "if=/dev/zero", "of=/memory/file", "bs=1M", "count=1")
	const url = "http://127.0.0.1:10255"
	of := func(what, claim string, value any) string {
		return fmt.Sprintf("kubelet_volume_stats_%s{namespace=\"default\",persistentvolumeclaim=\"%s\"} %v\n", what, claim, value)
	}
	well := []string{of("capacity_bytes", "small", 8.388608e+06), of("used_bytes", "small", 2.097152e+06), of("available_bytes", "small", 6.291456e+06),
		of("capacity_bytes", "disk", 1.073741824e+09), of("used_bytes", "disk", 5.36870912e+08), of("inodes_used", "disk", 4),
		of("capacity_bytes", "own", "")[:len(of("capacity_bytes", "own", ""))-1]}
	n.fetched(url+"/metrics", append(well, of("capacity_bytes", "remote", 4.096e+06), of("available_bytes", "remote", 2.4576e+06), of("inodes", "remote", 100))...)
	var seen map[string]string
	want := map[string]string{"small": "true 2097152", "disk": "true 536870912", "remote": "true 1638400", "memory": "false 1048576"}
	for deadline := time.Now().Add(patience); ; {
		var sum stats.Summary
		if err := json.Unmarshal([]byte(n.fetched(url+"/stats/summary")), &sum); err != nil || len(sum.Pods) != 1 {
			t.Fatalf("%v, %+v", err, sum.Pods)
		}
		seen = map[string]string{}
		for _, v := range sum.Pods[0].VolumeStats {
			seen[v.Name] = fmt.Sprint(v.PVCRef != nil, " ", *v.UsedBytes)
		}
		right := true
		for name := range want {
			right = right && seen[name] == want[name]
		}
		if right {
			break
		}
		if time.Now().After(deadline) { // an answer that is late is an older one
			t.Fatalf("volumes: %v, want %v", seen, want)
		}
	}
	if seen["settings"] == "" || seen["own"] == "" {
		t.Errorf("volumes: %v", seen)
	}

	remote.hung.Store(true)
	for range 3 {
		n.fetched(url+"/metrics", well...)
		n.fetched(url+"/stats/summary", `"name":"small"`)
	}
	if threads := inStatfs("self"); threads != 0 {
		t.Errorf("%d threads of the agent wait for a file system", threads)
	}
	// One that did not get as far as to wait was killed in time: another is next.
	waiting := children(t, "file-system-usage")
	for deadline := time.Now().Add(patience); len(waiting) < 1 || inStatfs(strconv.Itoa(waiting[0])) != 1; waiting = children(t, "file-system-usage") {
		if time.Now().After(deadline) {
			t.Fatalf("processes %v wait", waiting)
		}
		n.fetched(url+"/metrics", well...)
	}
	if len(waiting) != 1 {
		t.Errorf("processes %v wait", waiting)
	}
	letGo()
	released = true
	n.fetched(url+"/metrics", well...)
	if err := n.client.DeletePod(t.Context(), "default", "p", nil); err != nil {
		t.Fatal(err)
	}
	n.until("p", "gone", gone)
	if body := n.fetched(url + "/metrics"); strings.Contains(body, "kubelet_volume_stats_") {
		t.Errorf("of a pod that is gone:\n%s", body)
	}
	n.clean()
}

// children are the processes of ours that were started with an argument.
func children(t *testing.T, argument string) (pids []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if strings.Contains(string(command), "\x00"+argument+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// inStatfs counts the threads of a process that ask for a file system's usage.
func inStatfs(pid string) (n int) {
	calls, _ := filepath.Glob("/proc/" + pid + "/task/[0-9]*/syscall")
	for _, name := range calls {
		text, _ := os.ReadFile(name)
		number, _, _ := strings.Cut(string(text), " ")
		if number == strconv.Itoa(unix.SYS_STATFS) || number == strconv.Itoa(unix.SYS_FSTATFS) {
			n++
		}
	}
	return n
}

const onHungHost = `
{apiVersion: v1, kind: Pod, metadata: {name: hung}, spec: {terminationGracePeriodSeconds: 1,
  containers: [{name: c, image: "test.local/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"], volumeMounts: [{name: data, mountPath: /data}]}],
  volumes: [{name: data, hostPath: {path: %[1]s, type: Directory}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: well}, spec: {terminationGracePeriodSeconds: 1,
  containers: [{name: c, image: "test.local/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"], volumeMounts: [{name: data, mountPath: /data}]}],
  volumes: [{name: data, hostPath: {path: %[2]s, type: Directory}}]}}
`

// TestHostPathThatDoesNotAnswer: a process of its own waits for it. The pod waits
// and may be deleted meanwhile, and the agent ends when it is told to.
func TestHostPathThatDoesNotAnswer(t *testing.T) {
	host.Require(t)
	n := onPodstead(t)
	remote, letGo := mountHungFS(t, mkdir(t))
	letGo = sync.OnceFunc(letGo)
	t.Cleanup(letGo)
	near := mkdir(t)
	n.apply(fmt.Sprintf(strings.NewReplacer("name: hung}", "name: answers}", "name: well}", "name: there}").Replace(onHungHost), remote.dir, near))
	n.until("answers", "ready", ready)
	remote.hung.Store(true)
	n.apply(fmt.Sprintf(onHungHost, remote.dir, near))
	n.until("well", "ready", ready)
	n.until("hung", "there", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodPending })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); len(children(t, "host-path-check")) != 1; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("the processes %v look at the path", children(t, "host-path-check"))
		}
	}
	why, err := n.client.Why(t.Context(), "default", "hung")
	if err != nil || len(why.Waiting) != 1 || !strings.Contains(why.Waiting[0].Message, remote.dir) {
		t.Errorf("%v: %+v", err, why)
	}
	n.stop() // which it does: nothing of it is in the kernel
	n.start()
	for _, name := range []string{"hung", "well"} {
		if err := n.client.DeletePod(t.Context(), "default", name, nil); err != nil {
			t.Fatal(err)
		}
		n.until(name, "gone", gone)
	}
	remote.hung.Store(false)
	letGo()
	for _, name := range []string{"answers", "there"} {
		if err := n.client.DeletePod(t.Context(), "default", name, nil); err != nil {
			t.Fatal(err)
		}
		n.until(name, "gone", gone)
	}
	n.clean()
}
