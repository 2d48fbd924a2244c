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
- {name: hook, containerEdits: {hooks: [{hookName: poststop, path: bin/true}]}}
- {name: net, containerEdits: {netDevices: [{hostInterfaceName: none0, name: eth1}]}}
- {name: rdt, containerEdits: {intelRdt: {closID: gold}}}
`)
	pod := n.run(n.pod())
	for name, field := range map[string]string{"hook": "hooks.poststop[0].path", "net": `linux.netDevices["none0"]`, "rdt": "linux.intelRdt"} {
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

// TestDevicesInUserNamespace: a node cannot be made there, and the host's of the
// same path is not what was asked for.
func TestDevicesInUserNamespace(t *testing.T) {
	n := newNode(t)
	n.describe("x.yaml", `
cdiVersion: 0.6.0
kind: v.com/c
devices:
- {name: same, containerEdits: {deviceNodes: [{path: /dev/kmsg}]}}
- {name: other, containerEdits: {deviceNodes: [{path: /dev/kmsg, hostPath: /dev/zero}]}}
- {name: nowhere, containerEdits: {deviceNodes: [{path: /dev/podstead-none, hostPath: /dev/zero}]}}
`)
	mapping := []*runtimeapi.IDMapping{{HostId: 300000, Length: 65536}}
	users := &runtimeapi.UserNamespace{Uids: mapping, Gids: mapping}
	pod := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users }))
	for name, want := range map[string]string{"same": "", "other": "/dev/kmsg", "nowhere": "/dev/podstead-none"} {
		config := n.script("test -c /dev/kmsg", device("v.com/c="+name), func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
		})
		_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
		if want == "" && err != nil || want != "" && (cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHooks is about the hooks of a container's creation, as drivers of GPUs
// use them: on the host with the container's pid, and in its mount namespace
// with the root at the bundle's root path, before anything of it runs.
func TestHooks(t *testing.T) {
	n := newNode(t)
	out := t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "hook"), []byte(`#!/bin/sh
# hook WHICH: notes the state and leaves something in the root, if it can.
state=$(cat)
bundle=$(echo "$state" | sed 's/.*"bundle":"\([^"]*\)".*/\1/')
pid=$(echo "$state" | sed 's/.*"pid":\([0-9]*\).*/\1/')
echo "$1 $ENVIRONMENT status=$(echo "$state" | grep -c creating) config=$(test -f "$bundle/config.json" && echo yes)" >> `+out+`/log
if test "$1" = inside; then
	test "$pid" = 1 && mkdir -p "$bundle/rootfs/made" && echo by the hook > "$bundle/rootfs/made/file"
	ls "$bundle/rootfs/proc/self" > /dev/null && echo mounted >> `+out+`/log
fi
`), 0o755); err != nil {
		t.Fatal(err)
	}
	hook := func(kind, which string) string {
		return `{hookName: ` + kind + `, path: ` + out + `/hook, args: [hook, ` + which + `], env: [ENVIRONMENT=own, PATH=/usr/bin:/bin]}`
	}
	n.describe("x.yaml", `
cdiVersion: 0.6.0
kind: v.com/c
devices:
- {name: all, containerEdits: {hooks: [`+hook("createContainer", "inside")+`, `+hook("createRuntime", "runtime")+`, `+hook("prestart", "before")+`]}}
- {name: host, containerEdits: {hooks: [`+hook("createRuntime", "runtime")+`, `+hook("prestart", "before")+`]}}
- {name: bad, containerEdits: {hooks: [{hookName: createContainer, path: /bin/sh, args: [sh, -c, "echo no such card >&2; exit 7"]}]}}
- {name: slow, containerEdits: {hooks: [{hookName: createRuntime, path: /bin/sleep, args: [sleep, "1000"], timeout: 1}]}}
`)
	said := func(want string) {
		t.Helper()
		log, _ := os.ReadFile(filepath.Join(out, "log"))
		if string(log) != want {
			t.Errorf("the hooks said\n%swant\n%s", log, want)
		}
		os.Remove(filepath.Join(out, "log"))
	}
	id := n.begin(n.run(n.pod()), n.script("sleep 1000", device("v.com/c=all")))
	if got := n.sh(id, "cat /made/file"); string(got.Stdout) != "by the hook\n" {
		t.Errorf("in the container: %q %s", got.Stdout, got.Stderr)
	}
	said("before own status=1 config=yes\nruntime own status=1 config=yes\ninside own status=1 config=yes\nmounted\n")
	if entries, err := os.ReadDir(n.containerFile(id, "rootfs")); err != nil || len(entries) > 0 {
		t.Errorf("on the host the root's mount point has %v (%v)", entries, err)
	}
	mapping := []*runtimeapi.IDMapping{{HostId: 300000, Length: 65536}}
	users := &runtimeapi.UserNamespace{Uids: mapping, Gids: mapping}
	mapped := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users }))
	inMapped := func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users }
	n.exited(n.begin(mapped, n.script("true", device("v.com/c=host"), inMapped)))
	said("before own status=1 config=yes\nruntime own status=1 config=yes\n")
	_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: mapped, Config: n.script("true", device("v.com/c=all"), inMapped)})
	if err == nil || !strings.Contains(err.Error(), "hooks.createContainer: not supported in a pod with a user namespace") {
		t.Errorf("in a user namespace: %v", err)
	}
	pod := n.run(n.pod())
	for name, want := range map[string]string{
		"bad": "hooks.createContainer[0] /bin/sh: exit status 7: no such card", "slow": "hooks.createRuntime[0] /bin/sleep: timed out",
	} {
		_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", device("v.com/c="+name))})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
	if left := n.containersOf(pod); len(left) > 0 {
		t.Errorf("%d containers are left", len(left))
	}
}
