package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestExec(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Process.Env = append(b.spec.Process.Env, "A=1")
		b.up()
		cmd := b.cmd("exec", b.id, "sh", "-c", "hostname; echo $A; cat; echo err >&2; exit 7")
		cmd.Stdin = strings.NewReader("in\n")
		if r := b.runWith(cmd); r.code != 7 || r.stdout != "podstead\n1\nin\n" || r.stderr != "err\n" {
			b.Errorf("%+v", r)
		}
		if got := b.must("exec", "-e", "B=2", "--cwd", "/bin", "-u", "5:6", b.id, "sh", "-c", "echo $A$B; pwd; id -u; id -g"); got != "12\n/bin\n5\n6\n" {
			b.Errorf("%q", got)
		}
		if r := b.run("exec", b.id, "sh", "-c", "kill -9 $$"); r.code != 128+9 {
			b.Errorf("%+v", r)
		}
		if r := b.run("exec", b.id, "no-such-program"); r.code != 255 && r.code != 1 || !strings.Contains(r.stderr, "no-such-program") {
			b.Errorf("%+v", r)
		}
		b.fails([]string{"--user"}, "exec", "-u", "nobody", b.id, "true")
		if b.ours { // a group that is no part of the container's, by path or by prefix
			b.fails([]string{"no such group"}, "exec", "--cgroup", "/../podstead", b.id, "true")
			b.fails([]string{"no such group"}, "exec", "--cgroup", b.id, b.id, "true")
		}
		b.fails(nil, "exec", "no-such-container", "true")
	})
}

func TestHome(t *testing.T) {
	onBoth(t, func(b *box) {
		if err := os.Mkdir(b.inside("etc"), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(b.inside("etc/passwd"), []byte("root:x:0:0:r:/root:/bin/sh\nuser:x:7:7::/home/user:\n"), 0o644); err != nil {
			b.Fatal(err)
		}
		b.script("echo $HOME")
		b.write()
		if got := b.must("run", "-b", b.bundle, b.id); got != "/root\n" {
			b.Errorf("HOME is %q", got)
		}
		b.script("sleep 1000")
		b.up()
		if got := b.must("exec", "-u", "7", b.id, "sh", "-c", "echo $HOME"); got != "/home/user\n" {
			b.Errorf("HOME is %q", got)
		}
		if got := b.must("exec", "-u", "8", b.id, "sh", "-c", "echo $HOME"); got != "/\n" {
			b.Errorf("HOME is %q", got)
		}
		if got := b.must("exec", "-e", "HOME=/x", b.id, "sh", "-c", "echo $HOME"); got != "/x\n" {
			b.Errorf("HOME is %q", got)
		}
	})
}

// The image's passwd is no reason to read the host's, or to hang.
func TestHomeFromHostilePasswd(t *testing.T) {
	for name, mess := range map[string]func(etc string) error{
		"link": func(etc string) error { return os.Symlink("/proc/self/root/etc/passwd", etc+"/passwd") },
		"fifo": func(etc string) error { return unix.Mkfifo(etc+"/passwd", 0o644) },
		"dir":  func(etc string) error { return os.Mkdir(etc+"/passwd", 0o755) },
	} {
		root := t.TempDir()
		if err := os.Mkdir(root+"/etc", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := mess(root + "/etc"); err != nil {
			t.Fatal(err)
		}
		if got := homeOf(0, root); got != "/" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func FuzzHomeIn(f *testing.F) {
	f.Add("root:x:0:0:r:/root:/bin/sh\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := homeIn(strings.NewReader(s), 0); !strings.HasPrefix(got, "/") {
			t.Errorf("home is %q", got)
		}
	})
}

func TestExecDetached(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		dir := t.TempDir()
		p := specs.Process{
			Args: []string{"sh", "-c", "echo $X > /x; sleep 1000"}, Env: []string{"PATH=/bin", "X=y"}, Cwd: "/",
			Capabilities: b.spec.Process.Capabilities,
		}
		data, _ := json.Marshal(p)
		if err := os.WriteFile(dir+"/process.json", data, 0o600); err != nil {
			b.Fatal(err)
		}
		b.must("exec", "-d", "--pid-file", dir+"/pid", "--process", dir+"/process.json", b.id)
		b.eventually("the process", func() bool { return b.content("x") == "y" })
		data, err := os.ReadFile(dir + "/pid")
		if err != nil {
			b.Fatal(err)
		}
		var pids []int
		if err := json.Unmarshal([]byte(b.must("ps", "-f", "json", b.id)), &pids); err != nil {
			b.Fatal(err)
		}
		var pid int
		fmt.Sscan(string(data), &pid)
		if !slices.Contains(pids, pid) {
			b.Errorf("pid %q is not among %v", data, pids)
		}
	})
}

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
			b.giveFiles(cmd, "three\n")
			got := b.runWith(cmd)
			if out := strings.Join(strings.Fields(got.stdout), " "); out != c.want {
				b.Errorf("exec %s: %q, %s; want %q", flags, out, got.stderr, c.want)
			}
		}
	})
}

func TestExecPidfdSocket(t *testing.T) {
	onBoth(t, func(b *box) {
		b.needs("1.2", "")
		b.up()
		socket, received := b.console()
		b.must("exec", "-d", "--pidfd-socket", socket, b.id, "sleep", "1001")
		b.eventually("two processes", func() bool { p, _ := b.group().Procs(); return len(p) == 2 })
		if err := unix.PidfdSendSignal(int(received().Fd()), unix.SIGKILL, nil, 0); err != nil {
			b.Error(err)
		}
		b.eventually("one process", func() bool { p, _ := b.group().Procs(); return len(p) == 1 })
		b.fails([]string{"console"}, "exec", "-d", "-t", b.id, "true")
	})
}

// TestExecLabels: a label is an error where the kernel has nobody to heed it.
func TestExecLabels(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
			b.fails([]string{"process.selinuxLabel"}, "exec", "--process-label", "system_u:system_r:container_t:s0", b.id, "true")
		}
		if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
			b.fails([]string{"process.apparmorProfile"}, "exec", "--apparmor", "no-such-profile", b.id, "true")
		}
	})
}

func TestExecForwardsSignals(t *testing.T) {
	onBoth(t, func(b *box) {
		b.up()
		b.forwards("exec", b.id, "sh", "-c", endsWith42)
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

func TestExecInSubgroups(t *testing.T) {
	b := newBox(t, "")
	b.up()
	memory := b.group().JoinFile("memory")
	if memory == "" { // cgroup v2
		if err := os.Mkdir(filepath.Join(b.group().Dir(), "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := b.must("exec", "--cgroup", "sub", b.id, "cat", "/proc/self/cgroup"); got != "0::/sub\n" {
			t.Error(got)
		}
		b.fails([]string{"--cgroup memory:sub", "memory"}, "exec", "--cgroup", "memory:sub", b.id, "true")
		b.fails([]string{"--cgroup nosuch", "no such group"}, "exec", "--cgroup", "nosuch", b.id, "true")
		return
	}
	sub := filepath.Join(filepath.Dir(memory), "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	out := b.must("exec", "--cgroup", "memory:sub", b.id, "cat", "/proc/self/cgroup")
	if !strings.Contains(out, ":memory:/sub\n") || strings.Contains(out, ":pids:/sub\n") {
		t.Error(out) // seen from the container's own cgroup namespace
	}
	b.fails([]string{"--cgroup pids:sub", "no such group"}, "exec", "--cgroup", "pids:sub", b.id, "true")
	b.fails([]string{"--cgroup nosuch:sub", "nosuch"}, "exec", "--cgroup", "nosuch:sub", b.id, "true")
	b.fails([]string{"memory:/../x"}, "exec", "--cgroup", "memory:/../x", b.id, "true")
}

// TestExecCPUAffinity: what is exec'd runs on the processors that the container's
// specification has for it.
func TestExecCPUAffinity(t *testing.T) {
	onBoth(t, func(b *box) {
		b.needs("1.3", "1.19")
		b.spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"}
		b.up()
		const show = `while read n v; do [ $n != Cpus_allowed_list: ] || echo $v; done </proc/self/status`
		if got := b.must("exec", b.id, "sh", "-c", show); got != "0\n" {
			b.Errorf("runs on %q", got)
		}
	})
}
