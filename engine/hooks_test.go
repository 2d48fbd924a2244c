package engine

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// hookLab describes CDI devices whose hooks note when they run, and with what.
type hookLab struct {
	*node
	out string
}

func newHookLab(t *testing.T) *hookLab {
	l := &hookLab{newNode(t), t.TempDir()}
	// note KIND notes the state's status and how much there is of the container.
	note := `#!/bin/sh
state=$(cat)
get() { echo "$state" | sed "s/.*\"$1\":\"*\([^\",}]*\).*/\1/"; }
pid=$(get pid)
test -d /proc/$pid/ns && there=yes || there=no
echo "$1 $(get status) process=$there" >> ` + l.out + "/log\n"
	if err := os.WriteFile(l.out+"/note", []byte(note), 0o755); err != nil {
		t.Fatal(err)
	}
	hook := func(kind string, command ...string) string {
		return `{hookName: ` + kind + `, path: ` + command[0] + `, args: ["` + strings.Join(command, `", "`) + `"], env: [PATH=/usr/bin:/bin]}`
	}
	l.describe("hooks.yaml", `
cdiVersion: 0.6.0
kind: v.com/hooks
devices:
- {name: all, containerEdits: {hooks: [`+strings.Join([]string{
		hook("poststart", l.out+"/note", "poststart"), hook("poststop", l.out+"/note", "poststop"),
		// In the container: its own program, its root, its pid.
		hook("startContainer", "/bin/sh", "-c", "read state; echo $state > /state; readlink /proc/self/ns/pid > /namespace"),
	}, ", ")+`]}}
- {name: nostart, containerEdits: {hooks: [`+hook("startContainer", "/bin/sh", "-c", "echo not today >&2; exit 3")+`, `+hook("poststop", l.out+"/note", "poststop")+`]}}
- {name: nopoststart, containerEdits: {hooks: [`+hook("poststart", "/bin/sh", "-c", "exit 4")+`]}}
- {name: nopoststop, containerEdits: {hooks: [`+hook("poststop", "/bin/sh", "-c", "exit 5")+`, `+hook("poststop", l.out+"/note", "second")+`]}}
- {name: endless, containerEdits: {hooks: [`+hook("startContainer", "/bin/sleep", "1000")+`, `+hook("poststop", l.out+"/note", "poststop")+`]}}
- {name: slow, containerEdits: {hooks: [{hookName: poststart, path: /bin/sleep, args: [sleep, "1000"], timeout: 1}]}}
- {name: waiting, containerEdits: {hooks: [`+hook("poststart", "/bin/sh", "-c", "touch "+l.out+"/begun; exec sleep 1000")+`]}}
- {name: nocreate, containerEdits: {hooks: [`+hook("createRuntime", "/bin/false")+`, `+hook("poststop", l.out+"/note", "poststop")+`]}}
`)
	return l
}

// says waits until the hooks have noted what is wanted.
func (l *hookLab) says(want string) {
	l.t.Helper()
	var got string
	eventually(l.t, "the hooks note "+want, func() bool {
		b, _ := os.ReadFile(l.out + "/log")
		got = string(b)
		return len(got) >= len(want)
	})
	if got != want {
		l.t.Errorf("the hooks noted\n%swant\n%s", got, want)
	}
	os.Remove(l.out + "/log")
}

func (l *hookLab) startFails(pod, name string) (string, error) {
	l.t.Helper()
	c := l.create(pod, l.script(forever, device("v.com/hooks="+name)))
	_, err := l.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: c})
	if err == nil {
		l.t.Errorf("%s: the start succeeded", name)
	}
	if st := l.status(c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != reasonStartError || st.ExitCode != exitStartError {
		l.t.Errorf("%s: status is %v", name, st)
	}
	return c, err
}

// TestLateHooks runs hooks of the start and the end at their moments, over
// restarts of the engine.
func TestLateHooks(t *testing.T) {
	l := newHookLab(t)
	ctx := context.Background()
	pod := l.run(l.pod())
	all := device("v.com/hooks=all")
	c := l.create(pod, l.script(forever, all))
	l.restart() // which is when the start's hooks are not the creator's any more
	if _, err := l.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	l.says("poststart running process=yes\n")
	l.ready(c)
	out := l.sh(c, `grep -o '"status":"created","pid":1' /state; test "$(readlink /proc/self/ns/pid)" = "$(cat /namespace)" && echo inside`)
	if string(out.Stdout) != "\"status\":\"created\",\"pid\":1\ninside\n" {
		t.Errorf("the hook in the container found %q%q", out.Stdout, out.Stderr)
	}
	if _, err := l.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 60}); err != nil {
		t.Fatal(err)
	}
	l.says("poststop stopped process=no\n")
	if _, err := l.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	// One that is removed without a stop, and one that never starts.
	for _, c := range []string{l.begin(pod, l.script(forever, all)), l.create(pod, l.script(forever, all))} {
		started := l.status(c).StartedAt > 0
		if _, err := l.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
			t.Fatal(err)
		}
		want := "poststop stopped process=no\n"
		if started {
			want = "poststart running process=yes\n" + want
		}
		l.says(want)
	}
	// In a user namespace.
	users := &runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{{HostId: 300000, Length: 65536}}, Gids: []*runtimeapi.IDMapping{{HostId: 300000, Length: 65536}}}
	mapped := l.run(l.pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users }))
	c = l.ready(l.begin(mapped, l.script(forever, all, func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users })))
	if got := l.sh(c, "cat /state"); !strings.Contains(string(got.Stdout), `"pid":1`) {
		t.Errorf("in a user namespace the hook left %q%q", got.Stdout, got.Stderr)
	}
}

// TestHooksOfFiles gives containers hooks by annotation, from the configuration.
func TestHooksOfFiles(t *testing.T) {
	l := newHookLab(t)
	ctx := context.Background()
	dir := t.TempDir()
	settings := l.cfg.Settings
	settings.Hooks.Dirs = []string{dir}
	if err := l.Reload(settings); err != nil {
		t.Fatal(err)
	}
	file := `{"version": "1.0.0", "hook": {"path": "` + l.out + `/note", "args": ["note", "by file"], "env": ["PATH=/usr/bin:/bin"]},
		"when": {"annotations": {"^noted$": "^yes$"}}, "stages": ["poststart", "poststop"]}`
	if err := os.WriteFile(dir+"/note.json", []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	noted := func(c *runtimeapi.ContainerConfig) { c.Annotations = map[string]string{"noted": "yes"} }
	pod := l.run(l.pod())
	l.exited(l.begin(pod, l.script("true")))
	c := l.ready(l.begin(pod, l.script(forever, noted)))
	l.says("by file running process=yes\n")
	if _, err := l.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	l.says("by file stopped process=no\n")
	if err := os.WriteFile(dir+"/bad.json", []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := l.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: l.script("true")})
	if err == nil || !strings.Contains(err.Error(), "bad.json") {
		t.Errorf("with a bad file: %v", err)
	}
}

// TestLateHooksThatFail: a start whose hook fails has failed, and nothing of the
// container runs; a hook of the end is only told of.
func TestLateHooksThatFail(t *testing.T) {
	l := newHookLab(t)
	ctx := context.Background()
	pod := l.run(l.pod())
	for name, want := range map[string]string{
		"nostart":     "hooks.startContainer[0] /bin/sh: exit status 3: not today",
		"nopoststart": "hooks.poststart[0] /bin/sh: exit status 4",
		"slow":        "hooks.poststart[0] /bin/sleep: timed out",
	} {
		c, err := l.startFails(pod, name)
		if err != nil && !strings.Contains(err.Error(), want) || !strings.Contains(l.status(c).Message, want) {
			t.Errorf("%s: error is %v, want %q", name, err, want)
		}
	}
	l.says("poststop stopped process=no\n") // nostart's
	c := l.begin(pod, l.script("true", device("v.com/hooks=nopoststop")))
	l.exited(c)
	l.says("second stopped process=no\n")
	eventually(t, "the failed hook is in the status", func() bool {
		r, err := l.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
		return err == nil && strings.Contains(r.Info["warnings"], "hooks.poststop[0] /bin/sh: exit status 5")
	})
	_, err := l.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: l.script("true", device("v.com/hooks=nocreate"))})
	if err == nil || !strings.Contains(err.Error(), "hooks.createRuntime[0] /bin/false") {
		t.Errorf("a hook of the creation that fails: %v", err)
	}
	l.says("poststop stopped process=no\n")
}

// TestStartHooksGivenUp ends a start's hooks by a stop of the container, and by
// the end of the engine.
func TestStartHooksGivenUp(t *testing.T) {
	l := newHookLab(t)
	ctx := context.Background()
	pod := l.run(l.pod())
	start := func(name string) (string, chan error) {
		c := l.create(pod, l.script(forever, device("v.com/hooks="+name)))
		started := make(chan error, 1)
		go func() {
			_, err := l.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c})
			started <- err
		}()
		return c, started
	}
	c, started := start("endless")
	if _, err := l.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 1}); err != nil {
		t.Error(err)
	}
	if err := <-started; cri.Code(err) != codes.FailedPrecondition {
		t.Errorf("the start that was given up: %v", err)
	}
	if st := l.exited(c); st.ExitCode != exitKilled {
		t.Errorf("status is %v", st)
	}
	l.says("poststop stopped process=no\n")
	c, started = start("waiting")
	eventually(t, "the hook runs", func() bool { _, err := os.Stat(l.out + "/begun"); return err == nil })
	if err := l.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err == nil {
		t.Error("a start succeeded although its hook did not end")
	}
	l.start()
	if st := l.exited(c); st.Reason != reasonStartError {
		t.Errorf("status is %v", st)
	}
}

// TestNetDevices moves a device of the host into a pod, by a CDI device.
func TestNetDevices(t *testing.T) {
	n := newNode(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "ptestnd0"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "ptestnd1"
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("ptestnd0"); err == nil {
			netlink.LinkDel(link)
		}
	})
	n.describe("net.yaml", `
cdiVersion: 1.1.0
kind: v.com/net
devices: [{name: d, containerEdits: {netDevices: [{hostInterfaceName: ptestnd1, name: fast0}]}}]
`)
	pod := n.run(n.pod())
	c := n.ready(n.begin(pod, n.script(forever, device("v.com/net=d"))))
	if out := n.sh(c, "ls /sys/class/net"); !strings.Contains(string(out.Stdout), "fast0\n") {
		t.Errorf("the pod has %q", out.Stdout)
	}
	if _, err := netlink.LinkByName("ptestnd1"); err == nil {
		t.Error("the device is still on the host")
	}
	host := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	}))
	config := n.script("true", device("v.com/net=d"))
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: host, Config: config})
	if err == nil || !strings.Contains(err.Error(), "linux.netDevices") {
		t.Errorf("in the host's network: %v", err)
	}
}
