package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podstead/image/imagetest"
)

func TestTwoInstancesSideBySide(t *testing.T) {
	one, two := newNode(t), newNode(t)
	for i, n := range []*node{one, two} {
		n.start()
		n.loadBusybox()
		n.write("pod.yaml", strings.Replace(upPod, "18081", fmt.Sprint(18081+i), 1))
	}
	a, b := one.await("app", "ready", ready), two.await("app", "ready", ready)
	if a.Status.PodIP == b.Status.PodIP {
		t.Errorf("both pods have the address %s", a.Status.PodIP)
	}
	os.Remove(filepath.Join(one.manifests, "pod.yaml"))
	one.awaitGone("app")
	one.stop()
	if body, err := get("http://127.0.0.1:18082/"); err != nil || body != "hi\n" {
		t.Errorf("after the end of one instance the other answers %q, %v", body, err)
	}
}

func TestImages(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	address := imagetest.Registry(t, map[string]imagetest.Image{"team/app:1": imagetest.Busybox(t)})
	ref := address + "/team/app:1"
	n.do("image", "pull", ref)
	out := n.do("image", "ls")
	for _, want := range []string{ref, busybox} {
		if !strings.Contains(out, want) {
			t.Errorf("image ls lacks %s:\n%s", want, out)
		}
	}
	file := filepath.Join(t.TempDir(), "saved.tar")
	n.do("image", "save", ref, "-o", file)
	n.do("image", "rm", ref)
	if out := n.do("image", "ls"); strings.Contains(out, ref) {
		t.Errorf("image rm left it:\n%s", out)
	}
	n.do("image", "load", file)
	if out := n.do("image", "ls"); !strings.Contains(out, ref) {
		t.Errorf("image load did not bring it back:\n%s", out)
	}
	if _, err := n.try("image", "pull", address+"/team/none:1"); err == nil || !strings.Contains(err.Error(), "team/none") {
		t.Errorf("pull of what is not there: %v", err)
	}
}

func TestPodsReachEachOther(t *testing.T) {
	n := newNode(t)
	n.start()
	n.loadBusybox()
	n.write("server.yaml", upPod)
	server := n.await("app", "ready", ready)
	n.write("client.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: client}, spec: {containers: [{name: a, image: "localhost/busybox:latest", imagePullPolicy: Never, command: [sleep, "1000"]}]}}`)
	client := n.await("client", "ready", ready)
	out := n.do("exec", "client", "--", "sh", "-c", "printf 'GET / HTTP/1.0\r\n\r\n' | nc "+server.Status.PodIP+" 80")
	if !strings.Contains(out, "hi") {
		t.Errorf("the other pod answers %q", out)
	}
	if out := n.do("exec", "client", "--", "cat", "/etc/hosts"); !strings.Contains(out, client.Status.PodIP+"\tclient") {
		t.Errorf("/etc/hosts is\n%s", out)
	}
	if out, err := exec.Command("/bin/busybox", "ping", "-c", "1", "-W", "5", client.Status.PodIP).CombinedOutput(); err != nil {
		t.Errorf("the host cannot reach the pod: %v\n%s", err, out)
	}
}
