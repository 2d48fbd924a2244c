package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/engine/handler"
	"podstead/oci"
	"podstead/oci/launch"
	"podstead/supervisor"
	"podstead/sys"
	"podstead/test/host"
)

// specification is that of a container with a root file system below dir.
func specification(dir, id string, args ...string) *specs.Spec {
	s := oci.ExampleSpec()
	s.Version = "1.0.2" // what crun 1.8 knows
	s.Root.Path, s.Process.Terminal, s.Process.Args = filepath.Join(dir, "rootfs"), false, args
	s.Linux.CgroupsPath = filepath.Join(host.Cgroup(), id)
	return s
}

// bundle makes a directory with busybox as root file system, and a specification.
func bundle(dir, id string, args ...string) (*specs.Spec, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(dir, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(bin+"/busybox", busybox, 0o755); err != nil {
		return nil, err
	}
	for _, applet := range []string{"true", "sleep"} {
		if err := os.Symlink("busybox", filepath.Join(bin, applet)); err != nil {
			return nil, err
		}
	}
	s := specification(dir, id, args...)
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return s, os.WriteFile(dir+"/config.json", b, 0o600)
}

// commandLine is a runtime that is called by its command line.
type commandLine struct{ path, dir string }

func newCommandLine(dir, path string) (*commandLine, error) {
	c := &commandLine{path: path, dir: dir}
	if _, err := bundle(dir+"/short", c.name()+"-short", "/bin/true"); err != nil {
		return nil, err
	}
	if _, err := bundle(dir+"/long", c.name()+"-long", "/bin/sleep", "1000"); err != nil {
		return nil, err
	}
	_, err := c.call("run", "--detach", "--bundle", dir+"/long", "long")
	return c, err
}

func (c *commandLine) name() string { return filepath.Base(c.path) }

func (c *commandLine) call(args ...string) (sample, error) {
	cmd := exec.Command(c.path, append([]string{"--root", c.dir + "/root"}, args...)...)
	cmd.Stderr = os.Stderr
	begin := time.Now()
	err := cmd.Run()
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", args[0], err)
	}
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return sample{time.Since(begin), time.Duration(unix.TimevalToNsec(unix.Timeval(u.Utime)) + unix.TimevalToNsec(unix.Timeval(u.Stime)))}, nil
}

func (c *commandLine) life() (sample, error) {
	begin := time.Now()
	pidFile := c.dir + "/pid"
	var all sample
	for _, args := range [][]string{
		{"create", "--bundle", c.dir + "/short", "--pid-file", pidFile, "short"}, {"start", "short"}, {"delete", "short"},
	} {
		if args[0] == "delete" {
			if err := waitFor(pidFile); err != nil {
				return all, err
			}
		}
		s, err := c.call(args...)
		if err != nil {
			return all, err
		}
		all.cpu += s.cpu
	}
	all.wall = time.Since(begin)
	return all, nil
}

// waitFor waits for the end of the process that a pid file names: until nobody
// sees it any more, or it is a zombie.
func waitFor(pidFile string) error {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
			return err
		}
	}
}

func (c *commandLine) exec() (sample, error) { return c.call("exec", "long", "/bin/true") }

// memory: nobody stays beside a container that runs.
func (c *commandLine) memory(int) (each, created int64, err error) {
	pidFile := c.dir + "/pid"
	if _, err := c.call("create", "--bundle", c.dir+"/short", "--pid-file", pidFile, "short"); err != nil {
		return 0, 0, err
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, 0, err
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return 0, 0, err
	}
	created = pss(pid)
	_, err = c.call("delete", "--force", "short")
	return 0, created, err
}

func (c *commandLine) close() error {
	_, err := c.call("delete", "--force", "long")
	return err
}

// pss is the proportional set size of a process.
func pss(pid int) (n int64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(b)) {
		if k, _ := fmt.Sscanf(line, "Pss: %d kB", &n); k == 1 {
			return n << 10
		}
	}
	return 0
}

// supervised is our supervisor, driven as the engine does.
type supervised struct {
	ctx     context.Context
	dir     string
	cmd     *exec.Cmd
	client  *supervisor.Client
	events  <-chan supervisor.Event
	cgroups *cgroup.Hierarchy
	// Of the container that runs.
	long  supervisor.Process
	spec  *specs.Spec
	execs handler.Execs
}

func newSupervised(ctx context.Context, dir, program string) (*supervised, error) {
	s := &supervised{ctx: ctx, dir: dir, spec: specification(dir+"/long", "long", "/bin/sleep", "1000")}
	var err error
	if s.cgroups, err = cgroup.Detect(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir+"/run", 0o700); err != nil {
		return nil, err
	}
	s.cmd = exec.Command(program, "daemon", "--run", dir+"/run")
	s.cmd.Env = append(os.Environ(), "GODEBUG=disablethp=1")
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for {
		if s.client, err = supervisor.Connect(ctx, dir+"/run"); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s.events, err = s.client.Events(ctx); err != nil {
		return nil, err
	}
	if _, err := bundle(dir+"/short", "short"); err != nil {
		return nil, err
	}
	s.long, err = s.launch("long", "/bin/sleep", "1000")
	return s, err
}

func (s *supervised) name() string { return "our supervisor" }

// launch makes and starts a container.
func (s *supervised) launch(id string, args ...string) (supervisor.Process, error) {
	spec, err := bundle(filepath.Join(s.dir, id), id, args...)
	if err != nil {
		return supervisor.Process{}, err
	}
	p, err := s.create(id, spec)
	if err != nil {
		return p, err
	}
	return s.client.Start(s.ctx, id)
}

func (s *supervised) create(id string, spec *specs.Spec) (p supervisor.Process, err error) {
	g := s.cgroups.Group(spec.Linux.CgroupsPath)
	if err := g.Create(); err != nil {
		return p, err
	}
	early, late := cgroup.Split(spec.Linux.Resources)
	if err := g.Set(early); err != nil {
		return p, err
	}
	program, err := launch.Compile(spec, launch.Options{ID: id, CgroupJoin: g.JoinFiles(), CgroupDir: g.Dir()})
	if err != nil {
		return p, err
	}
	files, err := program.Open()
	if err != nil {
		return p, err
	}
	defer sys.CloseAll(files)
	p, _, err = s.client.Launch(s.ctx, supervisor.Launch{ID: id, Program: program, Files: files})
	if err != nil {
		return p, err
	}
	return p, g.Set(late)
}

// ended waits for the exit of a process, and has it forgotten.
func (s *supervised) ended(id string, forget func(context.Context, string) error) error {
	for e := range s.events {
		if e.Process.ID == id {
			return forget(s.ctx, id)
		}
	}
	return fmt.Errorf("the supervisor is gone")
}

// told is for processes that are dropped when their exit was told.
func told(context.Context, string) error { return nil }

func (s *supervised) life() (sample, error) {
	spec := specification(s.dir+"/short", "short", "/bin/true")
	return s.timed(func() error {
		if _, err := s.create("short", spec); err != nil {
			return err
		}
		if _, err := s.client.Start(s.ctx, "short"); err != nil {
			return err
		}
		if err := s.ended("short", s.client.Forget); err != nil {
			return err
		}
		return s.cgroups.Group(spec.Linux.CgroupsPath).Remove(s.ctx)
	})
}

func (s *supervised) exec() (sample, error) {
	return s.timed(func() error {
		g := s.cgroups.Group(s.spec.Linux.CgroupsPath)
		proc := *s.spec.Process
		proc.Args = []string{"/bin/true"}
		x := handler.Exec{ID: "long/x", Spec: s.spec, Process: &proc, Pid: s.long.Pid, CgroupJoin: g.JoinFiles(), CgroupDir: g.Dir()}
		program, err := s.execs.Program(&x, func() (*launch.Program, error) {
			return launch.CompileExec(x.Spec, x.Process, launch.ExecOptions{ID: "long", Pid: x.Pid, CgroupJoin: x.CgroupJoin, CgroupDir: x.CgroupDir})
		})
		if err != nil {
			return err
		}
		files, err := program.Open()
		if err != nil {
			return err
		}
		defer sys.CloseAll(files)
		p, _, err := s.client.Launch(s.ctx, supervisor.Launch{ID: x.ID, Program: program, Files: files, Start: true, Once: true})
		if err != nil || p.State == supervisor.Exited {
			return err
		}
		return s.ended(x.ID, told)
	})
}

// timed adds the processor time of this process, of the supervisor and of the
// processes that it has reaped.
func (s *supervised) timed(f func() error) (sample, error) {
	cpu := s.cpu()
	begin := time.Now()
	err := f()
	wall := time.Since(begin)
	return sample{wall, s.cpu() - cpu}, err
}

// cpu is the processor time of this process and of the supervisor; the kernel
// counts theirs by the tick.
func (s *supervised) cpu() time.Duration {
	var own unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &own)
	total := unix.TimevalToNsec(own.Utime) + unix.TimevalToNsec(own.Stime)
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid)); err == nil {
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		for _, field := range f[11:15] { // utime, stime, cutime, cstime
			ticks, _ := strconv.ParseInt(field, 10, 64)
			total += ticks * 10_000_000
		}
	}
	return time.Duration(total)
}

func (s *supervised) memory(n int) (each, created int64, err error) {
	before := pss(s.cmd.Process.Pid)
	for i := range n {
		if _, err := s.launch(fmt.Sprint("m", i), "/bin/sleep", "1000"); err != nil {
			return 0, 0, err
		}
	}
	each = (pss(s.cmd.Process.Pid) - before) / int64(n)
	spec := specification(s.dir+"/short", "short", "/bin/true")
	p, err := s.create("short", spec)
	if err != nil {
		return 0, 0, err
	}
	created = pss(p.Pid)
	for id, path := range map[string]string{"short": spec.Linux.CgroupsPath} {
		if err := s.end(id, path); err != nil {
			return 0, 0, err
		}
	}
	for i := range n {
		id := fmt.Sprint("m", i)
		if err := s.end(id, filepath.Join(host.Cgroup(), id)); err != nil {
			return 0, 0, err
		}
	}
	return each, created, nil
}

func (s *supervised) end(id, path string) error {
	if err := s.client.Signal(s.ctx, id, int(unix.SIGKILL)); err != nil {
		return err
	}
	if err := s.ended(id, s.client.Forget); err != nil {
		return err
	}
	return s.cgroups.Group(path).Remove(s.ctx)
}

func (s *supervised) close() error {
	if err := s.end("long", filepath.Join(host.Cgroup(), "long")); err != nil {
		return err
	}
	s.client.Close()
	s.cmd.Process.Kill()
	s.cmd.Wait()
	return nil
}
