package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/oci/internal/lazyjson"
	"podstead/oci/launch"
	"podstead/sys"
)

// ExecOptions is what an additional process is made of.
type ExecOptions struct {
	Process       *specs.Process
	Stdio         launch.Stdio // without a terminal
	Extra         []*os.File   // descriptors 3, 4, …
	Detached      bool
	ConsoleSocket string
	PidfdSocket   string
	PidFile       string
	// Subgroups are where it runs below the container's control group: "PATH", or
	// on cgroup v1 "CONTROLLER[,CONTROLLER]:PATH", one for each hierarchy.
	Subgroups    []string
	IgnorePaused bool
	// spec is the container's specification, nil if nobody has read it yet.
	spec *specs.Spec
}

// Exec runs an additional process in a running container, and, unless
// detached, waits for it and returns its exit code, 128 and the signal's number
// if one ended it.
func (r *Runtime) Exec(ctx context.Context, id string, o ExecOptions) (code int, err error) {
	c, err := r.load(id)
	if err != nil {
		return 0, err
	}
	status, err := c.need("exec in", specs.StateRunning, specs.StateCreated, statusPaused)
	if err != nil {
		return 0, err
	}
	if status == statusPaused && !o.IgnorePaused {
		return 0, fmt.Errorf("cannot exec in container %s: %w: %s", id, ErrStatus, status)
	}
	if err := checkConsole(o.Process.Terminal, o.ConsoleSocket, o.Detached); err != nil {
		return 0, err
	}
	child, err := c.forkExec(o)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	defer child.Pidfd.Close()
	if code, err = c.startExec(child, o); err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return code, nil
}

func (c *container) forkExec(o ExecOptions) (*launch.Child, error) {
	spec := o.spec
	if spec == nil {
		var err error
		if spec, err = c.spec(); err != nil {
			return nil, err
		}
	}
	join, dir, err := c.subgroups(o.Subgroups)
	if err != nil {
		return nil, err
	}
	proc := withHome(o.Process, fmt.Sprintf("/proc/%d/root", c.Pid))
	p, err := launch.CompileExec(spec, proc, launch.ExecOptions{
		ID: c.ID, Pid: c.Pid, CgroupJoin: join, CgroupDir: dir, Listener: true,
		Unprivileged: c.runtime.privilege == unprivileged,
	})
	if err != nil {
		return nil, err
	}
	files, err := p.Open()
	if err != nil {
		return nil, err
	}
	defer sys.CloseAll(files)
	// The process was opened by its number: make sure that it is still the one.
	if !c.alive() {
		return nil, os.ErrProcessDone
	}
	return launch.ForkWith(p, files, launch.ForkOptions{
		Stdio: o.Stdio, Extra: o.Extra,
		AtListener: func(child *launch.Child, listener *os.File) error {
			return sendListener(spec.Linux.Seccomp, c.state(specs.StateRunning), child.Pid, listener)
		},
	})
}

// subgroups are the files to join, and the directory to be born in, of existing
// groups below the container's.
func (c *container) subgroups(list []string) (join []string, dir string, err error) {
	if !c.hasGroup() && len(list) == 0 {
		return nil, "", nil
	}
	g := c.group()
	join, dir = g.JoinFiles(), g.Dir()
	for _, s := range list {
		controllers, sub, some := strings.Cut(s, ":")
		if !some {
			if g, err = c.subgroup(s, s); err != nil {
				return nil, "", err
			}
			if len(list) > 1 {
				return nil, "", fmt.Errorf("--cgroup %s: a group for everything, and others", s)
			}
			return g.JoinFiles(), g.Dir(), nil
		}
		child, err := c.subgroup(s, sub)
		if err != nil {
			return nil, "", err
		}
		for name := range strings.SplitSeq(controllers, ",") {
			from, to := g.JoinFile(name), child.JoinFile(name)
			i := slices.Index(join, from)
			if from == "" || i < 0 && !slices.Contains(join, to) {
				return nil, "", fmt.Errorf("--cgroup %s: no hierarchy of cgroup v1 has %q, or it is given twice", s, name)
			}
			if _, err := os.Stat(to); err != nil {
				return nil, "", fmt.Errorf("--cgroup %s: no such group below the container's", s)
			}
			if i >= 0 {
				join[i] = to
			}
		}
	}
	return join, dir, nil
}

// subgroup is an existing group below the container's. It compares path
// components, so that "/ctr" has no member "/ctr2".
func (c *container) subgroup(flag, sub string) (*cgroup.Group, error) {
	g := c.group()
	if sub == "" || sub == "/" {
		return g, nil
	}
	for name := range strings.SplitSeq(strings.Trim(path.Clean("/"+sub), "/"), "/") {
		g = g.Child(name)
	}
	if !g.Exists() {
		return nil, fmt.Errorf("--cgroup %s: no such group below the container's", flag)
	}
	return g, nil
}

// startExec brings a prepared process to run and stays with it if asked to.
func (c *container) startExec(child *launch.Child, o ExecOptions) (code int, err error) {
	abandon := func(err error) error {
		err = errors.Join(err, child.Abandon())
		_, werr := unix.Wait4(child.Pid, nil, unix.WALL, nil)
		return errors.Join(err, werr)
	}
	if child.Console != nil && o.ConsoleSocket != "" {
		err := sendConsole(o.ConsoleSocket, child.Console)
		child.Console.Close()
		child.Console = nil
		if err != nil {
			return 0, abandon(err)
		}
	}
	if err := c.joinResctrl(child.Pid); err != nil {
		return 0, abandon(err)
	}
	if o.PidfdSocket != "" {
		if err := sendPidfd(o.PidfdSocket, child.Pid, child.Pidfd); err != nil {
			return 0, abandon(err)
		}
	}
	var s *session
	if !o.Detached {
		if s, err = newSession(child.Pid, child.Pidfd, child.Console); err != nil {
			return 0, abandon(err)
		}
	}
	if err := writePidFile(o.PidFile, child.Pid); err != nil {
		return 0, abandon(err)
	}
	startErr := child.Start()
	if o.Detached && startErr == nil {
		return 0, nil
	}
	if s == nil {
		_, werr := unix.Wait4(child.Pid, nil, unix.WALL, nil)
		return 0, errors.Join(startErr, werr)
	}
	code, err = s.wait()
	s.close()
	return code, errors.Join(startErr, err)
}

// execFlags are exec's command line.
type execFlags struct {
	flags                                                   *pflag.FlagSet
	consoleSocket, pidfdSocket, cwd, user, process, pidFile string
	label, apparmor                                         string
	env, caps, cgroups                                      []string
	gids                                                    []uint
	terminal, detach, noNewPrivileges, ignorePaused         bool
	preserveFds                                             int
}

func (e *execFlags) add(f *pflag.FlagSet) {
	e.flags = f
	f.SetInterspersed(false)
	f.StringVar(&e.consoleSocket, "console-socket", "", "unix socket that gets the terminal's master")
	f.StringVar(&e.pidfdSocket, "pidfd-socket", "", "unix socket that gets a pidfd of the process")
	f.StringVar(&e.cwd, "cwd", "", "working directory")
	f.StringArrayVarP(&e.env, "env", "e", nil, "further environment, NAME=VALUE")
	f.BoolVarP(&e.terminal, "tty", "t", false, "give it a terminal")
	f.StringVarP(&e.user, "user", "u", "", "UID[:GID]")
	f.UintSliceVarP(&e.gids, "additional-gids", "g", nil, "further groups")
	f.StringVarP(&e.process, "process", "p", "", "file with the process as JSON")
	f.BoolVarP(&e.detach, "detach", "d", false, "do not wait for its end")
	f.StringVar(&e.pidFile, "pid-file", "", "file to write the process's pid to")
	f.StringVar(&e.label, "process-label", "", "SELinux label")
	f.StringVar(&e.apparmor, "apparmor", "", "AppArmor profile")
	f.BoolVar(&e.noNewPrivileges, "no-new-privs", false, "set no_new_privs")
	f.StringArrayVarP(&e.caps, "cap", "c", nil, "further capability")
	f.IntVar(&e.preserveFds, "preserve-fds", 0, "pass descriptors 3 to 3+N-1 on")
	f.StringArrayVar(&e.cgroups, "cgroup", nil, "run in this group below the container's, [CONTROLLER[,CONTROLLER]:]PATH")
	f.BoolVar(&e.ignorePaused, "ignore-paused", false, "also in a paused container, where it waits")
}

func (e *execFlags) options(base *specs.Process, args []string) (ExecOptions, error) {
	o := ExecOptions{
		Detached: e.detach, ConsoleSocket: e.consoleSocket, PidfdSocket: e.pidfdSocket, PidFile: e.pidFile, IgnorePaused: e.ignorePaused, Subgroups: e.cgroups,
		Stdio: launch.Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr},
	}
	var err error
	if o.Extra, err = extraFiles(e.preserveFds); err != nil {
		return o, err
	}
	o.Process, err = e.processOf(base, args)
	if o.Process != nil && o.Process.Terminal {
		o.Stdio = launch.Stdio{}
	}
	return o, err
}

// processOf is the process of the file given, or the container's first process
// with what the flags change.
func (e *execFlags) processOf(base *specs.Process, args []string) (*specs.Process, error) {
	if e.process != "" {
		b, err := os.ReadFile(e.process)
		if err != nil {
			return nil, fmt.Errorf("--process: %w", err)
		}
		p := &specs.Process{}
		if err := lazyjson.Unmarshal(b, p); err != nil {
			return nil, fmt.Errorf("--process %s: %w", e.process, err)
		}
		return p, nil
	}
	if len(args) == 0 {
		return nil, errors.New("what to execute is missing, or --process")
	}
	p := *base
	p.Args, p.Terminal, p.ConsoleSize = args, e.terminal, nil
	p.Env = append(slices.Clone(p.Env), e.env...)
	if e.cwd != "" {
		p.Cwd = e.cwd
	}
	if e.label != "" {
		p.SelinuxLabel = e.label
	}
	if e.apparmor != "" {
		p.ApparmorProfile = e.apparmor
	}
	if e.flags.Changed("no-new-privs") {
		p.NoNewPrivileges = e.noNewPrivileges
	}
	p.Capabilities = addCapabilities(p.Capabilities, e.caps)
	for _, g := range e.gids {
		p.User.AdditionalGids = append(slices.Clone(p.User.AdditionalGids), uint32(g))
	}
	return &p, parseUser(e.user, &p.User)
}

// addCapabilities adds to the sets that matter to a process with a plain
// executable; the inheritable set stays as it is (CVE-2022-29162).
func addCapabilities(c *specs.LinuxCapabilities, more []string) *specs.LinuxCapabilities {
	if len(more) == 0 {
		return c
	}
	all := specs.LinuxCapabilities{}
	if c != nil {
		all = *c
	}
	for _, set := range []*[]string{&all.Bounding, &all.Effective, &all.Permitted} {
		*set = append(slices.Clone(*set), more...)
	}
	return &all
}

// parseUser reads UID[:GID]. It is strict: what is no number is no user
// (CVE-2026-30892).
func parseUser(s string, u *specs.User) error {
	if s == "" {
		return nil
	}
	uid, gid, hasGID := strings.Cut(s, ":")
	n, err := strconv.ParseUint(uid, 10, 31)
	if err != nil {
		return fmt.Errorf("--user %q: want UID[:GID]", s)
	}
	u.UID = uint32(n)
	if hasGID {
		if n, err = strconv.ParseUint(gid, 10, 31); err != nil {
			return fmt.Errorf("--user %q: want UID[:GID]", s)
		}
		u.GID = uint32(n)
	}
	return nil
}

func execCommand(cli *cli) *cobra.Command {
	var flags execFlags
	cmd := &cobra.Command{
		Use:   "exec [FLAG…] CONTAINER COMMAND [ARGUMENT…]",
		Short: "Run an additional process in a container",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := cli.runtime.spec(args[0])
			if err != nil {
				return execError{err}
			}
			o, err := flags.options(spec.Process, args[1:])
			if err != nil {
				return execError{err}
			}
			o.spec = spec
			code, err := cli.runtime.Exec(cmd.Context(), args[0], o)
			if err != nil {
				return execError{err}
			}
			if code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
	flags.add(cmd.Flags())
	return cmd
}

// spec is a container's specification.
func (r *Runtime) spec(id string) (*specs.Spec, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, err
	}
	return c.spec()
}
