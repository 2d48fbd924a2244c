package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/test/host"
)

// limited is a container with a script and limits.
func limited(script string, r *runtimeapi.LinuxContainerResources) *runtimeapi.ContainerConfig {
	c := sh(script)
	c.Linux = &runtimeapi.LinuxContainerConfig{Resources: r}
	return c
}

func (p *pod) stop(id string, grace int64) {
	p.Helper()
	if _, err := p.rt.StopContainer(p.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		p.Error(err)
	}
	if state := p.status(id).GetState(); state != runtimeapi.ContainerState_CONTAINER_EXITED {
		p.Errorf("after stop the container is %s", state)
	}
}

// prints waits until a container's log has text.
func (p *pod) prints(c *runtimeapi.ContainerConfig, text string) {
	p.Helper()
	p.eventually("the log has "+text, func() error {
		if log := p.log(c); !strings.Contains(log, text) {
			return os.ErrNotExist
		}
		return nil
	})
}

func TestForkBomb(t *testing.T) {
	n := start(t)
	p := n.pod()
	limitProcesses(t, p.config.Linux.CgroupParent)
	c := sh("echo begin; bomb() { bomb | bomb & }; while :; do bomb 2>/dev/null; done")
	id := p.start(c)
	p.prints(c, "begin")
	n.works()
	p.stop(id, 0)
	p.remove()
}

// limitProcesses sets the limit of a pod's cgroup, as the kubelet does.
func limitProcesses(t *testing.T, cgroup string) {
	t.Helper()
	for _, hierarchy := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if err := os.WriteFile(hierarchy+cgroup+"/pids.max", []byte("64"), 0o644); err == nil {
			return
		}
	}
	t.Skip("needs the pids controller")
}

func TestMemoryHog(t *testing.T) {
	n := start(t)
	p := n.pod()
	id := p.start(limited("cat /dev/zero | tail", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}))
	p.eventually("it has been killed", func() error {
		if status := p.status(id); status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			return os.ErrNotExist
		}
		return nil
	})
	if status := p.status(id); status.GetReason() != "OOMKilled" {
		t.Errorf("it ended as %s: %s (%d)", status.GetReason(), status.GetMessage(), status.GetExitCode())
	}
	shm := p.start(limited("dd if=/dev/zero of=/dev/shm/fill bs=1M 2>&1; echo still here; sleep 1000", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 256 << 20}))
	p.eventually("/dev/shm is full", func() error {
		if out, err := p.exec(shm, "df", "/dev/shm"); err != nil || !strings.Contains(string(out.GetStdout()), "100%") {
			return os.ErrNotExist
		}
		return nil
	})
	p.remove()
}

func TestLogFlood(t *testing.T) {
	const size, files = 1 << 20, 3
	n := start(t, "--log-max-bytes", "1048576", "--log-max-files", "3")
	p := n.pod()
	// Lines, a line without an end, and bytes that are no text.
	c := sh("yes 'a line of some length that is repeated again and again' | head -c 30000000; head -c 3000000 /dev/zero; head -c 3000000 /dev/urandom; echo; echo the end")
	id := p.start(c)
	stop := make(chan struct{})
	done := make(chan int64)
	go func() {
		var most int64
		for {
			most = max(most, bytesIn(p.config.LogDirectory))
			select {
			case <-stop:
				done <- most
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	p.exited(id)
	close(stop)
	// Compression of a rotated file has both for a moment; a line may go beyond.
	if most := <-done; most > (files+1)*size+(64<<10) {
		t.Errorf("the log had %d bytes on disk", most)
	}
	if log := p.log(c); !strings.HasSuffix(log, "the end\n") {
		t.Errorf("the log does not have the end: %q", log[max(0, len(log)-100):])
	}
	p.remove()
}

func bytesIn(dir string) (total int64) {
	filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return nil
	})
	return total
}

func TestRudeProcesses(t *testing.T) {
	n := start(t)
	p := n.pod()
	for name, test := range map[string]struct {
		script string
		grace  int64
	}{
		"ignores TERM":            {"trap '' TERM HUP INT; echo ready; while :; do sleep 1000; done", 1},
		"stops itself":            {"echo ready; kill -STOP $$; sleep 1000", 1},
		"stops its children":      {"sleep 1000 & kill -STOP $!; (sleep 1000 & kill -STOP $!; kill -STOP $$) & echo ready; wait", 1},
		"leaves daemons":          {"(setsid sleep 1001 >/dev/null 2>&1 </dev/null &) ; (setsid sh -c 'trap \"\" TERM; sleep 1002' &) ; echo ready; sleep 1000", 0},
		"closes its outputs":      {"echo ready; exec >&- 2>&- <&-; sleep 1000", 0},
		"kills all it sees":       {"echo ready; kill -9 -1; sleep 1000", 0},
		"writes to its log's end": {"echo ready; while :; do echo x > /proc/1/fd/1; done", 0},
	} {
		t.Run(name, func(t *testing.T) {
			outer := p
			p := *p
			p.node = n.within(t)
			defer func() { outer.count = p.count }()
			c := sh(test.script)
			id := p.start(c)
			p.prints(c, "ready")
			p.stop(id, test.grace)
		})
	}
	p.remove()
}

func TestDaemonOutlivesMain(t *testing.T) {
	n := start(t)
	p := n.pod()
	c := sh("(setsid sh -c 'echo daemon; sleep 1003' &); sleep 0.1; echo main; exit 3")
	id := p.start(c)
	if code := p.exited(id).GetExitCode(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	p.remove()
	if left := processes("\x001003\x00"); len(left) > 0 {
		t.Errorf("daemons are left: %v", left)
	}
}

// processes lists those whose command line has part.
func processes(part string) (found []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), part) {
			found = append(found, file)
		}
	}
	return found
}

func TestSharedPIDNamespace(t *testing.T) {
	n := start(t)
	p := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	victim := p.start(sh("sleep 1000"))
	killer := sh("kill -9 -1; kill -9 1; echo done")
	p.start(killer)
	if code := p.exited(victim).GetExitCode(); code != 137 {
		t.Errorf("the victim ended with %d", code)
	}
	// The pod goes on, as its first process cannot be killed from inside.
	if out, code := p.run(sh("echo again")); code != 0 || out != "again\n" {
		t.Errorf("a later container ended with %d and printed %q", code, out)
	}
	p.remove()
}

func TestExecInTrouble(t *testing.T) {
	n := start(t)
	p := n.pod()
	id := p.start(sh("sleep 1000"))
	_, err := p.exec(id, "/no/such/program")
	wantError(t, "exec of what is not there", err, "/no/such/program")
	_, err = p.exec(id, "/etc/passwd")
	wantError(t, "exec of what is no program", err, "/etc/passwd")
	out, err := p.exec(id, "sh", "-c", "(sleep 1000 &); echo said")
	if err != nil || string(out.GetStdout()) != "said\n" {
		t.Errorf("exec that leaves a process with its output: %v, %v", out, err)
	}
	flood := fmt.Sprintf("head -c %d000000 /dev/zero", host.Rounds(40))
	out, err = p.exec(id, "sh", "-c", flood+"; "+flood+" >&2; exit 5")
	if err != nil || out.GetExitCode() != 5 || len(out.GetStdout()) < 1<<20 {
		t.Errorf("exec that floods its outputs: %v, %d, %d bytes", err, out.GetExitCode(), len(out.GetStdout()))
	}
	ended := p.start(sh("exit 0"))
	p.exited(ended)
	_, err = p.exec(ended, "true")
	wantError(t, "exec in what has ended", err, ended[:12])
	// A container that has the runtime executed in its place (CVE-2019-5736).
	c := sh("ln -sf /proc/self/exe /bin/trap; echo ready; sleep 1000")
	trap := p.start(c)
	p.prints(c, "ready")
	if out, err := p.exec(trap, "/bin/trap", "--version"); err == nil && strings.Contains(string(out.GetStdout()), "podstead") {
		t.Errorf("the runtime's own program could be executed: %q", out.GetStdout())
	}
	p.remove()
}
