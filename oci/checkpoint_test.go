package oci

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/criu"
)

// needCRIU skips where CRIU is not there or cannot work with the kernel.
func needCRIU(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := criu.Usable(ctx); err != nil {
		t.Skip("needs a CRIU that works on this kernel: ", err)
	}
}

// counting is a process whose memory is a number, which it writes down.
const counting = `i=0; while :; do i=$((i+1)); echo $i >/new; busybox mv /new /count; sleep 0.05; done`

func (b *box) count() int {
	n, _ := strconv.Atoi(b.content("count"))
	return n
}

// countsFrom waits until the process counts on from at least n.
func (b *box) countsFrom(n int) {
	b.Helper()
	b.eventually("the process to count on", func() bool { return b.count() > n+2 })
	if now := b.count(); now > n+1000 {
		b.Errorf("counts at %d, not a little more than %d", now, n)
	}
}

// hostFiles is what all commands of these tests give to their containers.
const hostFiles = "does not dump a process whose stdio are files of the host"

// checkpointed is a container that has counted, and its images.
func (b *box) checkpointed() (images string, count int) {
	b.Helper()
	b.script(counting)
	b.up()
	b.countsFrom(0)
	images = filepath.Join(b.TempDir(), "images")
	b.checkpoint(images)
	return images, b.count()
}

// checkpoint dumps the container and deletes it. (runc deletes it itself.)
func (b *box) checkpoint(images string, flags ...string) {
	b.Helper()
	b.must(append(append([]string{"checkpoint", "--image-path", images}, flags...), b.id)...)
	if b.ours {
		b.isStatus(specs.StateStopped)
		b.must("delete", b.id)
	}
}

func TestCheckpointAndRestore(t *testing.T) {
	needCRIU(t)
	onBoth(t, func(b *box) {
		b.notRunc(hostFiles)
		volume := b.TempDir()
		if err := os.WriteFile(volume+"/file", []byte("host"), 0o600); err != nil {
			b.Fatal(err)
		}
		b.spec.Mounts = append(b.spec.Mounts,
			specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind", "ro"}},
			specs.Mount{Destination: "/volume-file", Type: "bind", Source: volume + "/file", Options: []string{"bind"}})
		images, n := b.checkpointed()
		pidFile := b.TempDir() + "/pid"
		b.must("restore", "--detach", "--image-path", images, "--bundle", b.bundle, "--pid-file", pidFile, b.id)
		b.isStatus(specs.StateRunning)
		b.countsFrom(n)
		if pid, err := os.ReadFile(pidFile); err != nil || string(pid) != strconv.Itoa(b.state().Pid) {
			b.Errorf("pid file has %q, %v; the container's process is %d", pid, err, b.state().Pid)
		}
		b.fails(nil, "exec", b.id, "sh", "-c", "echo x >/volume/file")
		if got := b.must("exec", b.id, "cat", "/volume-file"); got != "host" {
			b.Errorf("the volume holds %q", got)
		}
		b.must("pause", b.id)
		b.isStatus(statusPaused)
		b.must("resume", b.id)
		b.must("kill", b.id, "KILL")
		b.stopped()
	})
}

func TestCheckpointLeavesRunning(t *testing.T) {
	needCRIU(t)
	onBoth(t, func(b *box) {
		b.notRunc(hostFiles)
		b.script(counting)
		b.up()
		b.countsFrom(0)
		images := filepath.Join(b.TempDir(), "images")
		b.must("checkpoint", "--image-path", images, "--leave-running", "--work-path", b.TempDir(), b.id)
		n := b.count()
		b.isStatus(specs.StateRunning)
		b.countsFrom(n)
		if info, err := os.Stat(images); err != nil || info.Mode().Perm() != 0o700 {
			b.Errorf("the images' directory: %v, %v", info.Mode(), err)
		}
		// A paused one stays paused.
		b.must("pause", b.id)
		b.must("checkpoint", "--leave-running", "--image-path", images+"2", b.id)
		b.isStatus(statusPaused)
		b.must("resume", b.id)
		b.countsFrom(b.count())
	})
}

func TestFailedCheckpointLeavesRunning(t *testing.T) {
	needCRIU(t)
	onBoth(t, func(b *box) {
		b.script("exec 9>/big; busybox dd if=/dev/zero bs=1M count=3 >&9; busybox rm /big; " + counting) // CRIU takes at most 1 MiB along
		b.up()
		b.countsFrom(0)
		b.fails([]string{"checkpoint container", "criu dump", "ghost"}, "checkpoint", "--image-path", b.TempDir(), b.id)
		b.isStatus(specs.StateRunning)
		b.countsFrom(b.count())
	})
}

func TestFailedRestoreLeavesNothing(t *testing.T) {
	needCRIU(t)
	onBoth(t, func(b *box) {
		b.notRunc(hostFiles)
		images, _ := b.checkpointed()
		if err := os.Truncate(filepath.Join(images, "pstree.img"), 20); err != nil {
			b.Fatal(err)
		}
		b.fails([]string{"restore container", "criu restore"}, "restore", "-d", "--image-path", images, "-b", b.bundle, b.id)
		b.fails([]string{"does not exist"}, "state", b.id)
	})
}

// What images hold must be what the bundle allows: whoever wrote them may not
// have more than a container that was started.
func TestRestoreObeysTheSpecification(t *testing.T) {
	needCRIU(t)
	b := newBox(t, "")
	volume := t.TempDir()
	b.spec.Process.NoNewPrivileges = false
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind", "rw"}})
	images, n := b.checkpointed()
	for name, c := range map[string]struct {
		change func(*specs.Spec)
		want   string
	}{
		"capability": {func(s *specs.Spec) { s.Process.Capabilities.Bounding = nil }, "CapBnd"},
		"user": {func(s *specs.Spec) {
			s.Process.NoNewPrivileges, s.Process.User.UID, s.Process.Capabilities = true, 1000, nil
		}, "Cap"},
		"seccomp": {func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"reboot"}, Action: specs.ActErrno}}}
		}, "seccomp"},
		"read-only volume": {func(s *specs.Spec) { s.Mounts[len(s.Mounts)-1].Options = []string{"rbind", "ro"} }, "/volume"},
		"read-only root":   {func(s *specs.Spec) { s.Root.Readonly = true }, "read-only"},
		"masked path":      {func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/proc/version") }, "/proc/version"},
		"read-only path":   {func(s *specs.Spec) { s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/proc/tty") }, "/proc/tty"},
		"no sysfs": {func(s *specs.Spec) {
			var kept []specs.Mount
			for _, m := range s.Mounts {
				if m.Type != "sysfs" && m.Type != "cgroup" {
					kept = append(kept, m)
				}
			}
			s.Mounts = kept
		}, "sysfs"},
		"shared ipc": {func(s *specs.Spec) {
			var kept []specs.LinuxNamespace
			for _, ns := range s.Linux.Namespaces {
				if ns.Type != specs.IPCNamespace {
					kept = append(kept, ns)
				}
			}
			s.Linux.Namespaces = kept
		}, "ipc namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			strict := *b
			strict.TB = t
			spec := *b.spec
			linux, process, root, capabilities := *spec.Linux, *spec.Process, *spec.Root, *spec.Process.Capabilities
			spec.Linux, spec.Process, spec.Root = &linux, &process, &root
			spec.Process.Capabilities = &capabilities
			spec.Mounts = append([]specs.Mount(nil), spec.Mounts...)
			c.change(&spec)
			strict.spec = &spec
			strict.write()
			strict.fails([]string{criu.ErrForbidden.Error(), c.want}, "restore", "-d", "--image-path", images, "-b", b.bundle, b.id)
			strict.fails([]string{"does not exist"}, "state", b.id)
			if b.group().Exists() {
				t.Error("its cgroup is left")
			}
			if b.count() != n {
				t.Error("it has run")
			}
		})
	}
	// This is given to it, whatever it had.
	b.spec.Process.NoNewPrivileges = true
	b.write()
	b.must("restore", "-d", "--image-path", images, "-b", b.bundle, b.id)
	b.countsFrom(n)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.state().Pid))
	if err != nil || !strings.Contains(string(status), "NoNewPrivs:\t1") {
		t.Errorf("no_new_privs is not set: %v", err)
	}
}

// A process that has ended, and whose parent has not asked how, is dumped and
// restored as that.
func TestRestoreEnded(t *testing.T) {
	needCRIU(t)
	onBoth(t, func(b *box) {
		b.notRunc(hostFiles)
		b.script("sleep 0.1 & exec sleep 1000")
		b.up()
		ended := func() bool {
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", b.state().Pid))
			if err != nil {
				b.Fatal(err)
			}
			stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(children)) + "/stat")
			return err == nil && strings.Contains(string(stat), ") Z ")
		}
		b.eventually("the child's end", ended)
		images := b.TempDir() + "/images"
		b.checkpoint(images)
		b.must("restore", "-d", "--image-path", images, "-b", b.bundle, b.id)
		b.isStatus(specs.StateRunning)
		if !ended() {
			b.Error("it is not there as it was")
		}
	})
}

func TestRestoreTerminal(t *testing.T) {
	needCRIU(t)
	onBoth(t, func(b *box) {
		b.spec.Process.Terminal = true
		b.script("read line; echo got $line; sleep 1000")
		b.write()
		socket, master := b.console()
		b.create("--console-socket", socket)
		console := master()
		b.start()
		images := b.TempDir() + "/images"
		b.checkpoint(images)
		console.Close()
		socket, master = b.console()
		b.must("restore", "-d", "--console-socket", socket, "--image-path", images, "-b", b.bundle, b.id)
		console = master()
		defer console.Close()
		if _, err := console.WriteString("hello\n"); err != nil {
			b.Fatal(err)
		}
		b.reads(console, "got hello")
	})
}

func TestRestoreInTheForeground(t *testing.T) {
	needCRIU(t)
	onBoth(t, func(b *box) {
		b.script("trap 'echo ends; exit 7' TERM; echo starts; while :; do sleep 0.05; done")
		b.write()
		// A pipe's place another can take; a file's only the same file.
		run, from := b.piped("run", "-d", "-b", b.bundle, b.id)
		if err := run.Run(); err != nil {
			b.Fatal(err)
		}
		b.reads(from, "starts")
		images := b.TempDir() + "/images"
		b.checkpoint(images)
		restore, from := b.piped("restore", "--image-path", images, "-b", b.bundle, b.id)
		if err := restore.Start(); err != nil {
			b.Fatal(err)
		}
		b.eventually("the restored process", func() bool {
			r := b.run("state", b.id)
			return r.code == 0 && strings.Contains(r.stdout, `"running"`)
		})
		b.must("kill", b.id, "TERM")
		b.reads(from, "ends")
		if err := restore.Wait(); restore.ProcessState.ExitCode() != 7 {
			b.Errorf("restore ended with %v, want exit code 7", err)
		}
	})
}

// TestCheckpointFlags dumps in two steps, with an open file that has lost the name by
// which it was opened, which CRIU dumps and restores only if told to.
func TestCheckpointFlags(t *testing.T) {
	needCRIU(t)
	onBoth(t, func(b *box) {
		b.needs("1.3", "")
		b.script("echo kept >/file; busybox ln /file /other; exec 8</file; busybox rm /file; " + counting)
		b.up()
		b.countsFrom(0)
		dir := b.TempDir()
		b.fails(nil, "checkpoint", "--leave-running", "--image-path", dir+"/none", b.id)
		b.must("checkpoint", "--pre-dump", "--image-path", dir+"/first", b.id)
		b.isStatus(specs.StateRunning)
		b.checkpoint(dir+"/second", "--link-remap", "--parent-path", "../first")
		n := b.count()
		if link, err := os.Readlink(dir + "/second/parent"); err != nil || link != "../first" {
			b.Errorf("the images of the first step are at %q, %v", link, err)
		}
		b.must("restore", "-d", "--link-remap", "--image-path", dir+"/second", "-b", b.bundle, b.id)
		b.countsFrom(n)
		if got := b.must("exec", b.id, "cat", "/proc/1/fd/8"); got != "kept\n" {
			b.Errorf("the file has %q", got)
		}
	})
}

// piped is a command with a pipe for its output.
func (b *box) piped(args ...string) (cmd *exec.Cmd, from *os.File) {
	b.Helper()
	from, to, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { from.Close(); to.Close() })
	cmd = b.cmd(args...)
	cmd.Stdout, cmd.Stderr = to, to
	return cmd, from
}

// reads waits until something has been written to a terminal or pipe.
func (b *box) reads(from *os.File, want string) {
	b.Helper()
	from.SetReadDeadline(time.Now().Add(time.Minute)) // where the kernel has it
	var seen string
	buf := make([]byte, 1024)
	for !strings.Contains(seen, want) {
		n, err := from.Read(buf)
		if err != nil {
			b.Fatalf("waited in vain for %q: %v after %q", want, err, seen)
		}
		seen += string(buf[:n])
	}
}
