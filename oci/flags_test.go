package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestNoPivot runs a container in a root that was not switched to, with a hook
// (for which the root is attached at its path) and without.
func TestNoPivot(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("ls -d /bin /proc/self /dev/null; ls /usr /host; readlink /proc/self/root; echo $(cat /proc/self/mountinfo | head -n 1 | tr ' ' '\\n' | head -n 5 | tail -n 1)")
		for _, hooks := range []*specs.Hooks{nil, {CreateRuntime: []specs.Hook{{Path: "/bin/true"}}}} {
			b.spec.Hooks = hooks
			b.write()
			r := b.run("run", "--no-pivot", "-b", b.bundle, b.id)
			if !strings.HasPrefix(r.stdout, "/bin\n/dev/null\n/proc/self\n/\n") {
				b.Errorf("%+v", r)
			}
		}
	})
}

// TestKeyring: a container has a session keyring of its own, unless the caller's
// is to be kept.
func TestKeyring(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.MaskedPaths = nil
		b.script("cat /proc/keys")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); !strings.Contains(r.stdout, "_ses") {
			b.Errorf("%+v", r)
		}
		b.must("run", "--no-new-keyring", "-b", b.bundle, b.id)
	})
}

// TestHookAllowsDevice: what a hook of a device's vendor allows stays allowed.
func TestHookAllowsDevice(t *testing.T) {
	onBoth(t, func(b *box) {
		dir := "/sys/fs/cgroup/devices"
		if _, err := os.Stat(dir + "/devices.allow"); err != nil {
			b.Skip("needs cgroup v1")
		}
		//nolint:staticcheck // what vendors use
		b.spec.Hooks = &specs.Hooks{Prestart: []specs.Hook{shellHook("echo 'c 1:10 rw' > " + dir + b.spec.Linux.CgroupsPath + "/devices.allow")}}
		b.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/nothing", Type: "c", Major: 1, Minor: 10}}
		b.script("exec 3</dev/nothing")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); !strings.Contains(r.stderr, "No such device") {
			b.Errorf("%+v", r)
		}
	})
}

// TestGlobalFlags: the log says more with --debug, and goes to its file.
func TestGlobalFlags(t *testing.T) {
	onBoth(t, func(b *box) {
		b.write()
		log := filepath.Join(b.TempDir(), "log")
		b.must("--debug", "--log", log, "--rootless", "false", "create", "-b", b.bundle, b.id)
		b.fails(nil, "--log", log, "state", "nobody")
		if data, err := os.ReadFile(log); err != nil || !strings.Contains(string(data), "level=error") {
			b.Errorf("log %q, %v", data, err)
		}
		if got := b.must("ps", b.id, "-o", "pid,comm"); b.ours && !strings.Contains(got, "COMMAND") {
			b.Errorf("ps with options: %q", got)
		}
		if got := b.must("--criu", "/usr/sbin/criu", "list", "-q"); b.ours && strings.TrimSpace(got) != b.id {
			b.Errorf("list: %q", got)
		}
	})
}

// TestRunDetached shows what create does for run -d, too.
func TestRunDetached(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Process.Terminal = true
		b.script("stty size; exec sleep 1000")
		b.write()
		socket, master := b.console()
		pidFile := filepath.Join(b.TempDir(), "pid")
		b.must("run", "-d", "-b", b.bundle, "--console-socket", socket, "--pid-file", pidFile, "--no-subreaper", b.id)
		master()
		if pid, err := os.ReadFile(pidFile); err != nil || string(pid) != fmt.Sprint(b.state().Pid) {
			b.Errorf("pid file has %q, %v", pid, err)
		}
	})
}

func TestRunPidfdSocket(t *testing.T) {
	onBoth(t, func(b *box) {
		b.needs("1.2", "")
		b.write()
		socket, received := b.console()
		b.must("run", "-d", "-b", b.bundle, "--pidfd-socket", socket, b.id)
		if err := unix.PidfdSendSignal(int(received().Fd()), unix.SIGKILL, nil, 0); err != nil {
			b.Error(err)
		}
		b.stopped()
	})
}

func TestNames(t *testing.T) {
	onBoth(t, func(b *box) {
		b.notRunc("has no domainname")
		b.spec.Hostname, b.spec.Domainname = "host", "example.org"
		b.script("cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname")
		b.write()
		if got := b.must("run", "-b", b.bundle, b.id); got != "host\nexample.org\n" {
			b.Errorf("%q", got)
		}
	})
}
