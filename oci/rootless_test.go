package oci

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// daemonUser is who runs rootless containers in tests: Debian's "daemon", who has a
// name, as newuidmap wants it.
const daemonUser = 1

// asUser makes a box for a user who is not root: with a program, a bundle and a
// runtime directory of their own.
func asUser(t *testing.T) *box {
	b := newBox(t, "")
	dir := filepath.Dir(b.bundle)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	b.runtime = dir + "/podstead-oci"
	if err := os.WriteFile(b.runtime, program, 0o755); err != nil {
		t.Fatal(err)
	}
	b.root = dir + "/run/podstead-oci"
	if err := os.Mkdir(dir+"/run", 0o700); err != nil {
		t.Fatal(err)
	}
	b.user = dir + "/run"
	b.spec.Linux.CgroupsPath, b.groupPath = "", "/podstead-test-none"
	makeRootless(b.spec)
	for _, maps := range [][]specs.LinuxIDMapping{b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings} {
		maps[0].HostID = daemonUser
	}
	b.own()
	return b
}

// own gives the box's files to the user.
func (b *box) own() {
	b.Helper()
	err := filepath.WalkDir(filepath.Dir(b.bundle), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, daemonUser, daemonUser)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}

func TestRootless(t *testing.T) {
	b := asUser(t)
	b.spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](9)}}
	b.spec.Process.Rlimits[0].Soft = 512
	b.script("echo started > /started; exec sleep 1000")
	b.write()
	b.own()
	r := b.run("create", "-b", b.bundle, b.id)
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	if !strings.Contains(r.stderr, "linux.resources.pids") { // no group is delegated here
		t.Errorf("nothing says that it is not limited: %s", r.stderr)
	}
	b.isStatus(specs.StateCreated)
	b.start()
	b.isStatus(specs.StateRunning)
	got := b.must("exec", b.id, "sh", "-c", "id -u; cat /proc/self/uid_map /proc/self/setgroups; echo $$; head -c 3 /dev/zero | wc -c; ulimit -n; hostname; ls -d /sys/kernel")
	if f := strings.Fields(got); strings.Join(f, " ") != fmt.Sprintf("0 0 %d 1 deny %s 3 512 podstead /sys/kernel", daemonUser, f[min(5, len(f)-1)]) {
		t.Errorf("%q", got)
	}
	b.eventually("the first process", func() bool { return b.content("started") == "started" })
	if info, err := os.Stat(b.inside("started")); err != nil || info.Sys() == nil {
		t.Error(err)
	}
	if r := b.run("exec", b.id, "sh", "-c", "exit 7"); r.code != 7 {
		t.Errorf("%+v", r)
	}
	b.fails([]string{"cgroup"}, "pause", b.id)
	b.must("kill", b.id, "KILL")
	b.stopped()
	b.must("delete", b.id)
}

// TestRootlessRun runs to an end in the foreground, with hooks of all kinds.
func TestRootlessRun(t *testing.T) {
	b := asUser(t)
	log := filepath.Join(b.user, "log")
	note := func(kind string) []specs.Hook { return []specs.Hook{shellHook("echo " + kind + " >> " + log)} }
	b.spec.Hooks = &specs.Hooks{
		CreateRuntime: note("createRuntime"), CreateContainer: note("createContainer"), Poststart: note("poststart"), Poststop: note("poststop"),
		StartContainer: []specs.Hook{shellHook("echo startContainer > /log")},
	}
	b.script("cat /log; exit 3")
	b.write()
	b.own()
	if r := b.run("run", "-b", b.bundle, b.id); r.code != 3 || r.stdout != "startContainer\n" {
		t.Errorf("%+v", r)
	}
	if got := strings.Join(strings.Fields(b.file(log)), " "); got != "createRuntime createContainer poststart poststop" {
		t.Errorf("hooks: %s", got)
	}
}

// TestRootlessMaps runs as a user other than root, whom newuidmap lets in.
func TestRootlessMaps(t *testing.T) {
	if _, err := exec.LookPath("newuidmap"); err != nil {
		t.Skip("uidmap is not installed")
	}
	b := asUser(t)
	dir := t.TempDir()
	b.spec.Linux.UIDMappings = append(b.spec.Linux.UIDMappings, specs.LinuxIDMapping{ContainerID: 1, HostID: 300000, Size: 1000})
	b.spec.Linux.GIDMappings = append(b.spec.Linux.GIDMappings, specs.LinuxIDMapping{ContainerID: 1, HostID: 300000, Size: 1000})
	b.spec.Process.User = specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}}
	b.script("id -u; id -g; id -G")
	b.write()
	b.own()
	b.fails([]string{"linux.uidMappings: newuidmap"}, "run", "-b", b.bundle, b.id) // no such ids are theirs
	if err := os.WriteFile(dir+"/subuid", []byte("daemon:300000:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The host's files stay as they are.
	err := sys.OnDisposableThread(func() error {
		if err := privateMounts(map[string]string{"/etc/subuid": dir + "/subuid", "/etc/subgid": dir + "/subuid"}); err != nil {
			return err
		}
		if r := b.run("run", "-b", b.bundle, b.id); r.code != 0 || r.stdout != "7\n8\n8 9\n" {
			t.Errorf("%+v", r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// privateMounts binds files over others in a mount namespace of the thread's.
func privateMounts(over map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for to, from := range over {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", to, err)
		}
	}
	return nil
}

// TestRootlessRefused: what only root can do is refused by name, and leaves nothing.
func TestRootlessRefused(t *testing.T) {
	b := asUser(t)
	refused := func(want string, change func(s *specs.Spec)) {
		t.Helper()
		spec := *b.spec
		linux := *b.spec.Linux
		process := *b.spec.Process
		spec.Linux, spec.Process = &linux, &process
		change(&spec)
		saved := b.spec
		b.spec = &spec
		b.write()
		b.own()
		b.fails([]string{want}, "create", "-b", b.bundle, b.id)
		b.spec = saved
		if _, err := os.Stat(filepath.Join(b.root, b.id)); err == nil {
			t.Errorf("%s: the container's directory is left", want)
		}
	}
	refused("linux.namespaces", func(s *specs.Spec) {
		s.Linux.Namespaces, s.Linux.UIDMappings, s.Linux.GIDMappings = s.Linux.Namespaces[:4], nil, nil
	})
	refused("linux.netDevices", func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"lo": {}} })
	refused("process.user.additionalGids", func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{5} })
	refused("idmap", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts[:len(s.Mounts):len(s.Mounts)], specs.Mount{Destination: "/x", Type: "bind", Source: "/usr", Options: []string{"bind", "idmap"}})
	})
	refused("mount /x: /root", func(s *specs.Spec) { // not theirs to see
		s.Mounts = append(s.Mounts[:len(s.Mounts):len(s.Mounts)], specs.Mount{Destination: "/x", Type: "bind", Source: "/root/x", Options: []string{"bind"}})
	})
	refused("process.args", func(s *specs.Spec) { s.Process.Args = nil })
	b.fails([]string{"--rootless"}, "--rootless", "false", "list")
	b.fails([]string{"--rootless", "maybe"}, "--rootless", "maybe", "list")
}

// TestRootlessProgram: the program that a container could reach cannot be written,
// though its user owns it.
func TestRootlessProgram(t *testing.T) {
	b := asUser(t)
	b.write()
	b.own()
	b.must("create", "-b", b.bundle, b.id)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", b.state().Pid))
	if err != nil || !strings.HasPrefix(exe, "/memfd:") {
		t.Errorf("it executes %s, %v", exe, err)
	}
}
