package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/sys"
	"podstead/test/host"
)

// The test binary doubles as the runtime's command line.
func TestMain(m *testing.M) {
	if os.Getenv("PODSTEAD_OCI_MAIN") != "" {
		os.Exit(testMain(os.Args[1:]))
	}
	if os.Getenv(victimVariable) != "" {
		_ = unix.Pause() // the runtime's program, executed in a container
	}
	if os.Getenv(readyVariable) != "" {
		os.Exit(sayReady())
	}
	os.Exit(m.Run())
}

// testMain is Main with a resctrl file system and a systemd of the test's, if it
// has them.
func testMain(args []string) int {
	c := &cli{protect: sys.ReadOnlySelf}
	if os.Getenv(unprotectedVariable) != "" {
		c.protect = func([]string) error { return nil }
	}
	if dir := os.Getenv("PODSTEAD_TEST_RESCTRL"); dir != "" {
		c.resctrl = fakeResctrl(dir)
	}
	if bus := os.Getenv("PODSTEAD_TEST_BUS"); bus != "" {
		c.bus = []string{bus}
	}
	return c.main(args)
}

// box is a bundle and a runtime to run it with: ours, or runc where it is
// installed, so that the suite itself is checked by a reference.
type box struct {
	testing.TB
	runtime string
	ours    bool
	root    string // --root
	bundle  string
	spec    *specs.Spec
	id      string
	// groupPath is where the control group is, if not at cgroupsPath.
	groupPath string
	// user is the runtime directory of a user who is not root, "" for root.
	user string
	// within is the group that the runtime's command runs in, if not in ours, and
	// through a command that runs it.
	within  *os.File
	through []string
}

// onBoth runs a test on our runtime and on runc, and on crun if all is asked for.
func onBoth(t *testing.T, f func(b *box)) {
	t.Run("podstead", func(t *testing.T) { f(newBox(t, "")) })
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath(name)
			if err != nil {
				t.Skip(name, " is not installed")
			}
			if testing.Short() || name == "crun" && !host.Whole() {
				t.Skip("checks the suite, not us")
			}
			if how := crunDiffers[strings.TrimSuffix(t.Name(), "/crun")]; how != "" && name == "crun" {
				t.Skip("crun 1.8 ", how)
			}
			f(newBox(t, path))
		})
	}
}

// crunDiffers names the tests in which crun 1.8 is known to differ.
var crunDiffers = map[string]string{
	"TestBadIDs":                        "takes whatever can be a file's name",
	"TestCheckpointAndRestore":          "is built without CRIU",
	"TestCheckpointLeavesRunning":       "is built without CRIU",
	"TestFailedCheckpointLeavesRunning": "is built without CRIU",
	"TestFailedRestoreLeavesNothing":    "is built without CRIU",
	"TestRestoreEnded":                  "is built without CRIU",
	"TestRestoreTerminal":               "is built without CRIU",
	"TestRestoreInTheForeground":        "is built without CRIU",
	"TestEventsForm":                    "has no events",
	"TestEventsInterval":                "has no events",
	"TestExec":                          "gives an exec'd process nothing of the container's environment besides --env",
	"TestExecFlags":                     "has no exec --additional-gids",
	"TestExecWhenPaused":                "has no exec --ignore-paused",
	"TestFailedCreateLeavesNothing/limit_without_controller": "leaves the group on cgroup v2",
	"TestFailedCreateLeavesNothing/no_args":                  "makes a container without arguments",
	"TestFailedCreateLeavesNothing/relative_cwd":             "takes a relative working directory",
	"TestGlobalFlags":          "passes no options to ps, and no level into a text log",
	"TestHome":                 "does not set HOME",
	"TestKillSignals":          "sends nothing for a signal in small letters",
	"TestLabelsWithoutSELinux": "passes labels over",
	"TestLimits":               "has no events",
	"TestListAndPs":            "has a ps of its own",
	"TestListenFds":            "does not set LISTEN_PID",
	"TestLogAsJSON":            "has another text for a missing container",
	"TestNotifySocket":         "does not return from start here",
	"TestPauseAndResume":       "pauses what is paused",
	"TestPropertiesInside/linux.resources.memory.useHierarchy": "refuses it on cgroup v2, and leaves the group",
	"TestPropertiesInside/linux.maskedPaths":                   "lets files be made in a masked directory",
	"TestPropertiesRefused/blockIO.leafWeight":                 "leaves the group",
	"TestPropertiesRefused/blockIO.weightDevice[0].leafWeight": "leaves the group",
	"TestPropertiesRefused/network.classID":                    "leaves the group",
	"TestPropertiesRefused/network.priorities":                 "leaves the group",
	"TestPropertiesRefused/rdma":                               "passes limits over on cgroup v1",
	"TestRealSystemd":                                          "sets limits that systemd does not know of",
	"TestRunDetachedAndKeep":                                   "has no run --keep",
	"TestSeccompListener":                                      "does not tell the listener the pid of an exec'd process",
	"TestSeccompListenerRefused":                               "does not refuse what cannot work",
	"TestUpdateIfThere":                                        "knows the weight of the disk by an older name",
	"TestSpec":                                                 "writes no mappings for spec --rootless",
	"TestExecLabels":                                           "passes SELinux labels over",
	"TestTmpCopyUp":                                            "does not copy the attributes of the directory itself",
}

// notRunc ends a test where runc 1.1, the reference at hand, is known to differ.
func (b *box) notRunc(how string) {
	b.Helper()
	if !b.ours {
		b.Skip("runc 1.1 ", how)
	}
}

// needs ends a test where the reference is older than its first version that has
// what the test is about; "" if none has.
func (b *box) needs(runc, crun string) {
	b.Helper()
	if b.ours {
		return
	}
	name := filepath.Base(b.runtime)
	want := map[string]string{"runc": runc, "crun": crun}[name]
	if want == "" {
		b.Skip("no version of ", name, " has it")
	}
	out, err := exec.Command(b.runtime, "--version").Output()
	if err != nil {
		b.Fatal(err)
	}
	if have := versionOf(string(out)); slices.Compare(have, versionOf("version "+want)) < 0 {
		b.Skip(name, " ", have, " does not have it: ", want, " does")
	}
}

// versionOf reads "runc version 1.1.5+ds1".
func versionOf(text string) []int {
	v := make([]int, 3)
	_, text, _ = strings.Cut(text, "version ")
	fmt.Sscanf(text, "%d.%d.%d", &v[0], &v[1], &v[2])
	return v
}

func newBox(t *testing.T, peer string) *box {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	b := &box{TB: t, runtime: peer, ours: peer == "", root: dir + "/root", bundle: dir + "/bundle"}
	if b.ours {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		b.runtime = exe
	}
	b.id = fmt.Sprintf("t%d-%s", os.Getpid(), strings.NewReplacer("/", "-", "#", "-").Replace(t.Name()))
	makeRootfs(t, b.bundle+"/rootfs")
	b.spec = ExampleSpec()
	b.spec.Version = "1.0.2"
	b.spec.Process.Terminal = false
	b.spec.Root.Readonly = false
	b.spec.Linux.CgroupsPath = "/podstead-test-oci-" + b.id
	b.script("sleep 1000")
	t.Cleanup(b.clean)
	return b
}

func makeRootfs(t testing.TB, dir string) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	if err := os.MkdirAll(dir+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/bin/busybox", busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat id ls true false sleep hostname readlink head mkdir mknod tty stty trap kill env touch pwd wc") {
		if err := os.Symlink("busybox", dir+"/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
}

// clean removes the container and checks that nothing is left of it.
func (b *box) clean() {
	b.Helper()
	b.run("delete", "--force", b.id)
	if _, err := os.Lstat(filepath.Join(b.root, b.id)); err == nil {
		b.Errorf("%s is left", filepath.Join(b.root, b.id))
	}
	if b.group().Exists() {
		b.Errorf("cgroup %s is left", b.group().Path())
	}
}

func (b *box) group() *cgroup.Group {
	b.Helper()
	h, err := cgroup.Detect()
	if err != nil {
		b.Fatal(err)
	}
	if b.groupPath != "" {
		return h.Group(b.groupPath)
	}
	return h.Group(b.spec.Linux.CgroupsPath)
}

// without leaves the container in the host's namespace of a kind.
func (b *box) without(kind specs.LinuxNamespaceType) {
	b.spec.Linux.Namespaces = slices.DeleteFunc(b.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

// script makes the container's process a shell script.
func (b *box) script(s string) { b.spec.Process.Args = []string{"sh", "-c", s} }

// write writes config.json.
func (b *box) write() {
	b.Helper()
	data, err := json.Marshal(b.spec)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(b.bundle+"/config.json", data, 0o600); err != nil {
		b.Fatal(err)
	}
}

// result is what a command came to.
type result struct {
	stdout, stderr string
	code           int
}

// cmd is a command of the runtime, not started.
func (b *box) cmd(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // emulated, on a busy machine
	b.Cleanup(cancel)
	args = append([]string{b.runtime, "--root", b.root}, args...)
	if filepath.Base(b.runtime) == "crun" { // refuses hybrid cgroups
		const unmounted = `if grep -q " /sys/fs/cgroup/unified " /proc/mounts; then umount /sys/fs/cgroup/unified; fi; exec "$@"`
		args = append([]string{"unshare", "-m", "sh", "-c", unmounted, "sh"}, args...)
	}
	args = append(slices.Clone(b.through), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PODSTEAD_OCI_MAIN=1")
	if b.user != "" {
		b.asUser(cmd)
		cmd.Dir = b.bundle
		if b.within != nil {
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(b.within.Fd())
		}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // then it says where it is
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// asUser has a command run as the box's user.
func (b *box) asUser(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: daemonUser, Gid: daemonUser}}
	cmd.Env = append(cmd.Environ(), "XDG_RUNTIME_DIR="+b.user)
}

// run runs a command whose stdio the container may inherit: files, not pipes,
// whose end nobody needs to wait for.
func (b *box) run(args ...string) result {
	b.Helper()
	return b.runWith(b.cmd(args...))
}

func (b *box) runWith(cmd *exec.Cmd) result {
	b.Helper()
	var out [2]*os.File
	for i := range out {
		f, err := os.CreateTemp(b.TempDir(), "out")
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		out[i] = f
	}
	cmd.Stdout, cmd.Stderr = out[0], out[1]
	if err := cmd.Run(); cmd.ProcessState == nil {
		b.Fatal(err)
	}
	r := result{code: cmd.ProcessState.ExitCode()}
	for i, to := range []*string{&r.stdout, &r.stderr} {
		data, err := os.ReadFile(out[i].Name())
		if err != nil {
			b.Fatal(err)
		}
		*to = string(data)
	}
	return r
}

// must runs a command that has to succeed.
func (b *box) must(args ...string) string {
	b.Helper()
	r := b.run(args...)
	if r.code != 0 {
		b.Fatalf("%v: exit code %d: %s", args, r.code, r.stderr)
	}
	return r.stdout
}

// fails runs a command that has to fail, and checks that the error of ours
// names all of want.
func (b *box) fails(want []string, args ...string) {
	b.Helper()
	r := b.run(args...)
	if r.code == 0 {
		b.Fatalf("%v: succeeded", args)
	}
	for _, w := range want {
		if b.ours && !strings.Contains(r.stderr, w) {
			b.Errorf("%v: error %q does not name %q", args, r.stderr, w)
		}
	}
}

func (b *box) create(more ...string) {
	b.Helper()
	b.write()
	b.must(append(append([]string{"create", "--bundle", b.bundle}, more...), b.id)...)
}

func (b *box) start() {
	b.Helper()
	b.must("start", b.id)
}

// up creates and starts.
func (b *box) up() {
	b.Helper()
	b.create()
	b.start()
}

func (b *box) state() State {
	b.Helper()
	var s State
	if err := json.Unmarshal([]byte(b.must("state", b.id)), &s); err != nil {
		b.Fatal(err)
	}
	return s
}

func (b *box) isStatus(want specs.ContainerState) {
	b.Helper()
	if got := b.state().Status; got != want {
		b.Errorf("status is %s, want %s", got, want)
	}
}

// eventually waits until the kernel has done what it was asked for.
func (b *box) eventually(what string, ok func() bool) {
	b.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			b.Fatalf("waited in vain for %s", what)
		}
	}
}

func (b *box) stopped() {
	b.Helper()
	b.eventually("the container to stop", func() bool { return b.state().Status == specs.StateStopped })
}

// inside is a file of the container's root.
func (b *box) inside(name string) string { return filepath.Join(b.bundle, "rootfs", name) }

func (b *box) has(name string) bool {
	_, err := os.Stat(b.inside(name))
	return err == nil
}

func (b *box) content(name string) string {
	data, _ := os.ReadFile(b.inside(name))
	return string(bytes.TrimSpace(data))
}

func ptr[T any](v T) *T { return &v }
