package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// describe writes a file that describes CDI devices.
func (n *node) describe(name, text string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.cdi, name), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func device(name string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: name}} }
}

// TestCDIRefusedByName is about what a file may say that the built-in handler
// cannot do.
func TestCDIRefusedByName(t *testing.T) {
	n := newNode(t)
	n.describe("x.yaml", `
cdiVersion: 1.1.0
kind: v.com/c
devices:
- {name: hook, containerEdits: {hooks: [{hookName: poststop, path: /bin/true}]}}
- {name: net, containerEdits: {netDevices: [{hostInterfaceName: none0, name: eth1}]}}
- {name: rdt, containerEdits: {intelRdt: {closID: gold}}}
`)
	pod := n.run(n.pod())
	for name, field := range map[string]string{"hook": "hooks.poststop", "net": "linux.netDevices", "rdt": "linux.intelRdt"} {
		_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", device("v.com/c="+name))})
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("error is %v, want one that names %s", err, field)
		}
	}
	if left := n.containersOf(pod); len(left) > 0 {
		t.Errorf("%d containers are left", len(left))
	}
}

func TestCDIInStatus(t *testing.T) {
	n := newNode(t)
	n.describe("good.yaml", "cdiVersion: 0.6.0\nkind: v.com/c\ndevices: [{name: good, containerEdits: {env: [A=1]}}]\n")
	n.describe("broken.yaml", "cdiVersion: [")
	st, err := n.Status(context.Background(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if info := st.Info["cdi"]; !strings.Contains(info, "v.com/c=good") || !strings.Contains(info, "broken.yaml") {
		t.Errorf("status says %s", info)
	}
	if _, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: n.run(n.pod()), Config: n.script("true", device("v.com/c=none")),
	}); cri.Code(err) != codes.FailedPrecondition {
		t.Errorf("a device that nobody describes: %v", err)
	}
}

// TestCDIDeviceNodes looks at what a container may do with a node.
func TestCDIDeviceNodes(t *testing.T) {
	n := newNode(t)
	n.describe("x.yaml", `
cdiVersion: 0.6.0
kind: v.com/c
devices:
- {name: zero, containerEdits: {deviceNodes: [{path: /dev/nothing, hostPath: /dev/zero, fileMode: 0o600, uid: 1000, gid: 2000}]}}
`)
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"plain":      func(*runtimeapi.ContainerConfig) {},
		"privileged": func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true },
	} {
		pod := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = name == "privileged" }))
		id := n.begin(pod, n.script("sleep 1000", device("v.com/c=zero"), change))
		got := n.sh(id, "stat -c '%a %u %g %t %T' /dev/nothing; head -c 4 /dev/nothing | od -An -tx1")
		if want := "600 1000 2000 1 5\n 00 00 00 00\n"; string(got.Stdout) != want {
			t.Errorf("%s: %q %s, want %q", name, got.Stdout, got.Stderr, want)
		}
	}
}
