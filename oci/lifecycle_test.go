package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestLifecycle(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Annotations = map[string]string{"a": "b"}
		b.script("touch /started; sleep 1000")
		pidFile := filepath.Join(t.TempDir(), "pid")
		b.create("--pid-file", pidFile)
		s := b.state()
		if s.Status != specs.StateCreated || s.ID != b.id || s.Bundle != b.bundle || s.Annotations["a"] != "b" || s.Pid == 0 {
			b.Errorf("state is %+v", s)
		}
		if pid, err := os.ReadFile(pidFile); string(pid) != fmt.Sprint(s.Pid) {
			b.Errorf("pid file has %q (%v), want %d", pid, err, s.Pid)
		}
		if b.has("started") {
			b.Error("the process runs before start")
		}
		b.start()
		b.eventually("the process", func() bool { return b.has("started") })
		b.isStatus(specs.StateRunning)
		b.fails([]string{"running"}, "start", b.id)
		b.fails([]string{"not stopped"}, "delete", b.id)
		b.must("kill", b.id, "KILL")
		b.stopped()
		if pid := b.state().Pid; pid != 0 {
			b.Errorf("pid of a stopped container is %d", pid)
		}
		b.fails([]string{"not running"}, "kill", b.id, "KILL")
		b.fails([]string{"stopped"}, "start", b.id)
		b.fails([]string{"stopped"}, "exec", b.id, "true")
		b.must("delete", b.id)
		b.fails([]string{b.id, "does not exist"}, "state", b.id)
		b.fails([]string{"does not exist"}, "delete", b.id)
		b.must("delete", "--force", b.id)
	})
}

func TestDeleteCreatedAndRunning(t *testing.T) {
	onBoth(t, func(b *box) {
		b.create()
		b.must("delete", b.id)
		b.up()
		b.must("delete", "-f", b.id)
		b.fails(nil, "state", b.id)
	})
}

func TestConfigIsReadOnce(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("touch /old; sleep 1000")
		b.create()
		b.script("touch /new")
		b.write()
		b.start()
		b.eventually("the old process", func() bool { return b.has("old") })
		if b.has("new") {
			b.Error("the new one ran")
		}
	})
}

func TestIDIsTaken(t *testing.T) {
	onBoth(t, func(b *box) {
		b.create()
		b.fails([]string{"exists"}, "create", "-b", b.bundle, b.id)
		b.isStatus(specs.StateCreated)
		b.start()
		b.isStatus(specs.StateRunning)
	})
}

func TestBadIDs(t *testing.T) {
	onBoth(t, func(b *box) {
		b.write()
		for _, id := range []string{"", ".", "..", "a/b", "a b", "ä", "../x", "a\nb"} {
			b.fails([]string{"ID"}, "create", "-b", b.bundle, id)
			b.fails(nil, "state", id)
		}
	})
}

// A create that fails leaves neither directory, nor cgroup, nor process.
func TestFailedCreateLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		want []string // in our error
		mess func(b *box)
	}{
		{"no version", []string{"ociVersion"}, func(b *box) { b.notRunc("does not check it"); b.spec.Version = "" }},
		{"future version", []string{"ociVersion", "2.0.0"}, func(b *box) { b.notRunc("does not check it"); b.spec.Version = "2.0.0" }},
		{"no process", []string{"process"}, func(b *box) { b.spec.Process = nil }},
		{"no args", []string{"process.args"}, func(b *box) { b.spec.Process.Args = nil }},
		{"no root", []string{"root.path"}, func(b *box) { b.spec.Root = nil }},
		{"missing root", []string{"root.path", "no-such"}, func(b *box) { b.spec.Root.Path = "no-such" }},
		{"missing executable", []string{"no-such"}, func(b *box) { b.spec.Process.Args = []string{"no-such"} }},
		{"missing mount source", []string{"/no/such/source"}, func(b *box) {
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/mnt", Source: "/no/such/source", Options: []string{"bind"}})
		}},
		{"relative cwd", []string{"process.cwd"}, func(b *box) { b.spec.Process.Cwd = "x" }},
		{"limit without controller", []string{"linux.resources.cpu.cpus"}, func(b *box) {
			b.spec.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "4000"}
		}},
		{"terminal without socket", []string{"--console-socket"}, func(b *box) { b.spec.Process.Terminal = true }},
		{"failing hook", []string{"hooks.createRuntime[0]", "exit status 1", "oh no"}, func(b *box) {
			b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{shellHook("echo oh no >&2; exit 1")}}
		}},
		{"slow hook", []string{"hooks.createRuntime[0]", "timed out"}, func(b *box) {
			b.notRunc("waits for what the hook has started")
			h := shellHook("sleep 1000")
			h.Timeout = ptr(1)
			b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{h}}
		}},
		{"failing hook inside", []string{"hooks.createContainer[0]", "exit status 3"}, func(b *box) {
			b.spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{shellHook("exit 3")}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBoth(t, func(b *box) {
				path := b.spec.Linux.CgroupsPath
				c.mess(b)
				b.write()
				b.fails(c.want, "create", "-b", b.bundle, b.id)
				if b.spec.Linux.CgroupsPath = path; b.ours && b.group().Exists() {
					b.Errorf("cgroup is left")
				}
				if list, _ := os.ReadDir(b.root); len(list) > 0 {
					b.Errorf("left in the root: %v", list)
				}
			})
		})
	}
}

func TestBrokenBundles(t *testing.T) {
	onBoth(t, func(b *box) {
		b.fails([]string{"config.json"}, "create", "-b", b.bundle, b.id)
		b.fails(nil, "create", "-b", "/no/such/bundle", b.id)
		if err := os.WriteFile(b.bundle+"/config.json", []byte(`{"ociVersion": 1`), 0o600); err != nil {
			b.Fatal(err)
		}
		b.fails([]string{"config.json"}, "create", "-b", b.bundle, b.id)
	})
}

func TestRunReturnsExitCode(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("echo out; echo err >&2; cat; exit 5")
		b.write()
		cmd := b.cmd("run", "-b", b.bundle, b.id)
		cmd.Stdin = strings.NewReader("from stdin\n")
		if r := b.runWith(cmd); r.code != 5 || r.stdout != "out\nfrom stdin\n" || r.stderr != "err\n" {
			b.Errorf("%+v", r)
		}
		b.fails(nil, "state", b.id)
		b.script("kill -9 $$")
		b.without(specs.PIDNamespace)
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); r.code != 128+9 {
			b.Errorf("%+v", r)
		}
	})
}

const endsWith42 = "trap 'exit 42' TERM; touch /ready; while :; do sleep 0.05; done"

// forwards signals a command whose process is endsWith42.
func (b *box) forwards(args ...string) {
	b.Helper()
	cmd := b.cmd(args...)
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
}

func TestRunForwardsSignals(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script(endsWith42)
		b.write()
		b.forwards("run", "-b", b.bundle, b.id)
	})
}

func TestRunDetachedAndKeep(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("sleep 1000")
		b.write()
		b.must("run", "-d", "-b", b.bundle, b.id)
		b.isStatus(specs.StateRunning)
		b.must("delete", "-f", b.id)
		b.script("exit 0")
		b.write()
		b.must("run", "--keep", "-b", b.bundle, b.id)
		b.isStatus(specs.StateStopped)
	})
}

func TestKillWithoutPidNamespace(t *testing.T) {
	onBoth(t, func(b *box) {
		b.without(specs.PIDNamespace)
		b.script("sleep 1000 & sleep 1000 & wait")
		b.up()
		b.eventually("three processes", func() bool { p, _ := b.group().Procs(); return len(p) == 3 })
		if b.ours {
			b.must("kill", b.id, "SIGKILL")
		} else {
			b.must("kill", "--all", b.id, "SIGKILL") // runc 1.1 wants to be told
		}
		b.stopped()
		b.eventually("no process", func() bool { p, _ := b.group().Procs(); return len(p) == 0 })
	})
}

func TestKillSignals(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("trap 'echo usr1 >> /got' USR1; trap 'echo term >> /got' TERM; trap 'echo hup >> /got' HUP; touch /ready; while :; do sleep 0.02; done")
		b.up()
		b.eventually("the process", func() bool { return b.has("ready") })
		for _, c := range [][2]string{{"USR1", "usr1"}, {"", "term"}, {"1", "hup"}, {"sigterm", "term"}} {
			os.Remove(b.inside("got"))
			args := []string{"kill", b.id}
			if c[0] != "" {
				args = append(args, c[0])
			}
			b.must(args...)
			b.eventually("signal "+c[1], func() bool { return b.content("got") == c[1] })
		}
		b.fails([]string{"NOSUCH"}, "kill", b.id, "NOSUCH")
		b.must("kill", "--all", b.id, "KILL")
		b.stopped()
	})
}

func TestPauseAndResume(t *testing.T) {
	onBoth(t, func(b *box) {
		b.script("while :; do echo tick >> /ticks; sleep 0.02; done")
		b.up()
		ticks := func() int { return len(b.content("ticks")) }
		b.eventually("the first tick", func() bool { return ticks() > 0 })
		b.must("pause", b.id)
		b.isStatus(statusPaused)
		b.fails([]string{"paused"}, "exec", b.id, "true")
		b.fails(nil, "pause", b.id)
		before := ticks()
		b.must("resume", b.id)
		b.isStatus(specs.StateRunning)
		b.eventually("the process to go on", func() bool { return ticks() > before })
		b.must("pause", b.id)
		b.must("kill", b.id, "KILL")
		if !b.ours {
			b.must("delete", "-f", b.id)
			return
		}
		b.stopped()
	})
}

func TestListAndPs(t *testing.T) {
	onBoth(t, func(b *box) {
		if got := b.must("list", "-q"); got != "" {
			b.Errorf("list of nothing: %q", got)
		}
		b.up()
		if got := strings.TrimSpace(b.must("list", "-q")); got != b.id {
			b.Errorf("list -q: %q", got)
		}
		if got := b.must("list"); !strings.Contains(got, b.id) || !strings.Contains(got, "running") {
			b.Errorf("list: %q", got)
		}
		var list []State
		if err := json.Unmarshal([]byte(b.must("list", "--format", "json")), &list); err != nil || len(list) != 1 || list[0].ID != b.id {
			b.Errorf("list --format json: %+v, %v", list, err)
		}
		var pids []int
		pid := b.state().Pid
		if err := json.Unmarshal([]byte(b.must("ps", "--format", "json", b.id)), &pids); err != nil || !slices.Equal(pids, []int{pid}) {
			b.Errorf("ps --format json: %v, %v, want %d", pids, err, pid)
		}
		if got := b.must("ps", b.id); !strings.Contains(got, fmt.Sprint(pid)) || !strings.HasPrefix(got, "UID") || strings.Count(got, "\n") != 2 {
			b.Errorf("ps: %q", got)
		}
	})
}

func TestLogAsJSON(t *testing.T) {
	onBoth(t, func(b *box) {
		log := filepath.Join(t.TempDir(), "log")
		b.fails(nil, "--log", log, "--log-format", "json", "state", "nobody")
		data, err := os.ReadFile(log)
		if err != nil {
			b.Fatal(err)
		}
		var line struct{ Level, Msg, Time string }
		if err := json.Unmarshal(data, &line); err != nil || line.Level != "error" || !strings.Contains(line.Msg, "does not exist") {
			b.Errorf("%s: %+v, %v", data, line, err)
		}
		if _, err := time.Parse(time.RFC3339Nano, line.Time); err != nil {
			b.Error(err)
		}
	})
}

func TestRefusedByName(t *testing.T) {
	b := newBox(t, "")
	b.write()
	for _, c := range []struct{ want, args []string }{
		{[]string{"linux.cgroupsPath", "slice:prefix:name"}, []string{"--systemd-cgroup", "create", "-b", b.bundle, b.id}},
		{[]string{"--rootless"}, []string{"--rootless", "maybe", "list"}},
		{[]string{"--manage-cgroups-mode"}, []string{"checkpoint", "--manage-cgroups-mode", "x", b.id}},
		{[]string{"--empty-ns"}, []string{"restore", "--empty-ns", "ipc", "-b", b.bundle, b.id}},
		{[]string{"--log-format"}, []string{"--log-format", "xml", "list"}},
		{[]string{"no-such"}, []string{"no-such"}},
	} {
		b.fails(c.want, c.args...)
	}
	b.spec.Linux.CgroupsPath = "a.slice:b:c"
	b.write()
	b.fails([]string{"linux.cgroupsPath", "systemd"}, "create", "-b", b.bundle, b.id)
	b.spec.Linux.CgroupsPath = "/podstead-test-oci-" + b.id
}

// Of many who create or start the same container, one does.
func TestRaces(t *testing.T) {
	b := newBox(t, "")
	b.write()
	for _, args := range [][]string{{"create", "-b", b.bundle, b.id}, {"start", b.id}} {
		codes := make(chan int, 8)
		for range cap(codes) {
			cmd := b.cmd(args...)
			go func() {
				cmd.Run()
				codes <- cmd.ProcessState.ExitCode()
			}()
		}
		won := 0
		for range cap(codes) {
			if <-codes == 0 {
				won++
			}
		}
		if won != 1 {
			t.Errorf("%s succeeded %d times", args[0], won)
		}
	}
	b.isStatus(specs.StateRunning)
	done := make(chan int, 8)
	for range cap(done) {
		cmd := b.cmd("delete", "-f", b.id)
		go func() {
			cmd.Run()
			done <- cmd.ProcessState.ExitCode()
		}()
	}
	for range cap(done) {
		if code := <-done; code != 0 {
			t.Errorf("delete -f: exit code %d", code)
		}
	}
}

// Containers beside each other do not get in each other's way.
func TestManyAtOnce(t *testing.T) {
	for i := range 10 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			b := newBox(t, "")
			b.script("exit 7")
			b.write()
			for range 3 {
				if r := b.run("run", "-b", b.bundle, b.id); r.code != 7 {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// A create that was killed half way leaves what delete --force removes.
func TestKilledCreate(t *testing.T) {
	b := newBox(t, "")
	mark := filepath.Join(t.TempDir(), "hook")
	b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{shellHook("echo $$ > " + mark + "; exec sleep 1000")}}
	b.write()
	cmd := b.cmd("create", "-b", b.bundle, b.id)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.eventually("the hook", func() bool { _, err := os.Stat(mark); return err == nil })
	b.isStatus(specs.StateCreating)
	cmd.Process.Kill()
	cmd.Wait()
	hook, _ := os.ReadFile(mark)
	b.eventually("the hook's end", func() bool {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(hook)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	b.isStatus(specs.StateStopped)
	b.must("delete", "--force", b.id)
	if b.group().Exists() {
		t.Error("the cgroup is left")
	}
}
