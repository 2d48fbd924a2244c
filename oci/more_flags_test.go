package oci

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestExecFlags shows the flags of exec that change what the process is.
func TestExecFlags(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Process.NoNewPrivileges = false
		b.up()
		for flags, c := range map[string]struct{ script, want string }{
			"":                   {"grep -E '^(NoNewPrivs|CapEff):' /proc/self/status; id -G", "CapEff: 0000000020000420 NoNewPrivs: 0 0"},
			"-g 5 -g 6":          {"id -G", "0 5 6"},
			"--no-new-privs":     {"grep NoNewPrivs /proc/self/status", "NoNewPrivs: 1"},
			"--cap CAP_NET_RAW":  {"grep -E '^Cap(Eff|Prm|Inh|Amb):' /proc/self/status | cut -f2", "0000000000000000 0000000020002420 0000000020002420 0000000000000000"},
			"--preserve-fds 1":   {"cat <&3", "three"},
			"--env A=x --env B=": {"echo $A$B", "x"},
		} {
			cmd := b.cmd(append(append([]string{"exec"}, strings.Fields(flags)...), b.id, "sh", "-c", c.script)...)
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			io.WriteString(w, "three\n")
			w.Close()
			cmd.ExtraFiles = []*os.File{r}
			got := b.runWith(cmd)
			r.Close()
			if out := strings.Join(strings.Fields(got.stdout), " "); out != c.want {
				b.Errorf("exec %s: %q, %s; want %q", flags, out, got.stderr, c.want)
			}
		}
	})
}

func TestExecPidfdSocket(t *testing.T) {
	b := newBox(t, "")
	b.up()
	socket, received := b.console()
	b.must("exec", "-d", "--pidfd-socket", socket, b.id, "sleep", "1001")
	b.eventually("two processes", func() bool { p, _ := b.group().Procs(); return len(p) == 2 })
	if err := unix.PidfdSendSignal(int(received().Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
	b.eventually("one process", func() bool { p, _ := b.group().Procs(); return len(p) == 1 })
	b.fails([]string{"console"}, "exec", "-d", "-t", b.id, "true")
}

// TestExecLabels: a label is an error where the kernel has nobody to heed it.
func TestExecLabels(t *testing.T) {
	b := newBox(t, "")
	b.up()
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		b.fails([]string{"process.selinuxLabel"}, "exec", "--process-label", "system_u:system_r:container_t:s0", b.id, "true")
	}
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		b.fails([]string{"process.apparmorProfile"}, "exec", "--apparmor", "no-such-profile", b.id, "true")
	}
}

func TestExecForwardsSignals(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		cmd := b.cmd("exec", b.id, "sh", "-c", "trap 'exit 42' TERM; touch /ready; while :; do sleep 0.05; done")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.eventually("the process", func() bool { return b.has("ready") })
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			b.Fatal(err)
		}
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 42 {
			b.Errorf("exit code %d", code)
		}
	})
}

// TestExecWhenPaused: an exec would hang.
func TestExecWhenPaused(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		b.must("pause", b.id)
		b.fails([]string{"paused"}, "exec", b.id, "true")
		cmd := b.cmd("exec", "--ignore-paused", b.id, "touch", "/ran") // frozen as soon as it has joined
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.must("resume", b.id)
		if err := cmd.Wait(); err != nil || !b.has("ran") {
			b.Errorf("exec in a paused container: %v", err)
		}
	})
}

// TestUpdateFlags changes each limit of a running container by its flag.
func TestUpdateFlags(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](64 << 20), Swap: ptr[int64](64 << 20)}
		b.up()
		v1 := b.group().JoinFile("memory") != ""
		// In this order: a cgroup that is idle takes no shares.
		for _, c := range []struct{ flag, value, v1, want1, v2, want2 string }{
			{"--memory-reservation", "33554432", "memory/memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432"},
			{"--memory-swap", "134217728", "memory/memory.memsw.limit_in_bytes", "134217728", "memory.swap.max", "67108864"},
			{"--cpu-share", "2048", "cpu/cpu.shares", "2048", "cpu.weight", "174"},
			{"--cpu-quota", "50000", "cpu/cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000"},
			{"--cpu-period", "50000", "cpu/cpu.cfs_period_us", "50000", "", ""},
			{"--cpu-burst", "1000", "cpu/cpu.cfs_burst_us", "1000", "cpu.max.burst", "1000"},
			{"--cpuset-cpus", "0", "cpuset/cpuset.cpus", "0", "cpuset.cpus", "0"},
			{"--cpuset-mems", "0", "cpuset/cpuset.mems", "0", "cpuset.mems", "0"},
			{"--pids-limit", "33", "pids/pids.max", "33", "pids.max", "33"},
			{"--kernel-memory-tcp", "1048576", "memory/memory.kmem.tcp.limit_in_bytes", "1048576", "", ""},
			{"--cpu-idle", "1", "cpu/cpu.idle", "1", "cpu.idle", "1"},
		} {
			if !v1 && !b.ours && (c.flag == "--memory-swap" || c.flag == "--cpu-share") {
				continue // they want the memory limit again, and compute another weight
			}
			if c.flag == "--cpu-burst" || c.flag == "--cpu-idle" || c.flag == "--kernel-memory-tcp" {
				if !b.ours {
					continue // came later, or is ignored
				}
			}
			file, want := "/sys/fs/cgroup/"+c.v2, c.want2
			if v1 {
				dir, name, _ := strings.Cut(c.v1, "/")
				file, want = filepath.Join("/sys/fs/cgroup", dir, b.spec.Linux.CgroupsPath, name), c.want1
			} else if file = filepath.Join("/sys/fs/cgroup", b.spec.Linux.CgroupsPath, c.v2); c.v2 == "" {
				continue
			}
			b.must("update", c.flag, c.value, b.id)
			if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != want {
				b.Errorf("%s %s: %s has %q, %v; want %q", c.flag, c.value, file, got, err, want)
			}
		}
		if !b.ours {
			return
		}
		b.fails([]string{"memory.kernel"}, "update", "--kernel-memory", "1048576", b.id)
		b.fails(nil, "update", "--pids-limit", "many", b.id)
	})
}

// TestUpdateRefused: what this kernel lacks is named.
func TestUpdateRefused(t *testing.T) {
	b := newBox(t, "")
	b.up()
	dir := filepath.Join("/sys/fs/cgroup/cpu", b.spec.Linux.CgroupsPath)
	if _, err := os.Stat(dir + "/cpu.rt_runtime_us"); err != nil {
		b.fails([]string{"cpu.realtime"}, "update", "--cpu-rt-period", "1000000", "--cpu-rt-runtime", "1000", b.id)
	}
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup/blkio", b.spec.Linux.CgroupsPath, "blkio.bfq.weight")); err != nil && b.group().JoinFile("memory") != "" {
		b.fails([]string{"blockIO.weight"}, "update", "--blkio-weight", "100", b.id)
	}
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
	b := newBox(t, "")
	b.write()
	socket, received := b.console()
	b.must("run", "-d", "-b", b.bundle, "--pidfd-socket", socket, b.id)
	if err := unix.PidfdSendSignal(int(received().Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
	b.stopped()
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

// TestEventsInterval writes a line at each interval, until the container ends.
func TestEventsInterval(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		out, in, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd := b.cmd("events", "--interval", "20ms", b.id)
		cmd.Stdout = in
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		in.Close()
		buf := make([]byte, 1<<16)
		for lines := 0; lines < 3; {
			n, err := out.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			lines += strings.Count(string(buf[:n]), "\n")
		}
		b.must("kill", b.id, "KILL")
		b.stopped()
		b.must("delete", b.id)
		go io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil && b.ours {
			b.Error(err)
		}
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
