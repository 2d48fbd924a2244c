package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/cgroup/systemd"
	"podstead/oci/criu"
	"podstead/oci/launch"
	"podstead/oci/netdevice"
	"podstead/sys"
)

// CreateOptions is what a container is made of.
type CreateOptions struct {
	Bundle string
	Stdio  launch.Stdio // without a terminal
	// Extra become descriptors 3, 4, … of the process.
	Extra []*os.File
	// ListenFds is how many of them are sockets to listen on, the first ones: the
	// process is told so in the way of sd_listen_fds(3).
	ListenFds int
	// ConsoleSocket gets the terminal's master; without it, with a terminal,
	// the Child has it.
	ConsoleSocket string
	// Detached tells that nobody will stay to serve a terminal.
	Detached bool
	// NoNewKeyring leaves the process in our session keyring, NoPivot enters the
	// root by chroot, for hosts whose own root is the initial RAM disk.
	NoNewKeyring, NoPivot bool
	PidFile               string
	// PidfdSocket gets a descriptor of the process.
	PidfdSocket string
}

// Create makes a container whose process is prepared and waits for Start, by
// this or another process of the host. A failed create leaves nothing.
func (r *Runtime) Create(ctx context.Context, id string, o CreateOptions) (child *launch.Child, err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	bundle, err := filepath.Abs(o.Bundle)
	if err != nil {
		return nil, err
	}
	spec, rootfs, err := loadBundle(bundle)
	if err != nil {
		return nil, err
	}
	if o.ConsoleSocket != "" && !o.Detached {
		return nil, errors.New("--console-socket: a process in the foreground uses our own terminal")
	}
	if err := checkConsole(spec.Process.Terminal, o.ConsoleSocket, o.Detached); err != nil {
		return nil, err
	}
	c := &container{runtime: r, record: record{
		Version: recordVersion, ID: id, Bundle: bundle, Rootfs: rootfs, Created: time.Now().UTC(), Owner: owner(),
		Annotations: spec.Annotations, Systemd: r.UseSystemd, PrivatePids: hasPrivate(spec, specs.PIDNamespace),
		OwnNetwork: hasNetwork(spec), Plain: isPlain(spec),
	}}
	if err := c.nameGroup(spec); err != nil {
		return nil, err
	}
	if err := c.noteRootMount(spec); err != nil {
		return nil, fmt.Errorf("create container %s: %w", id, err)
	}
	var undo sys.Undo
	defer undo.OnError(ctx, &err)
	if err := c.makeDir(&undo); err != nil {
		return nil, err
	}
	defer c.unlock()
	if err := c.makeGroup(spec, &undo); err != nil {
		return nil, fmt.Errorf("create container %s: %w", id, err)
	}
	if err := c.makeResctrl(spec, &undo); err != nil {
		return nil, fmt.Errorf("create container %s: %w", id, err)
	}
	undo.Add("unmount the root", func(context.Context) error { return c.unmountRoot(spec) })
	if child, err = c.fork(ctx, spec, o, &undo); err != nil {
		return nil, fmt.Errorf("create container %s: %w", id, err)
	}
	if err := c.finish(spec, child, o); err != nil {
		return nil, fmt.Errorf("create container %s: %w", id, err)
	}
	return child, child.Control.Close() // it waits on its own socket now
}

// owner is the name of the user who creates, for "list".
func owner() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprint(os.Getuid())
}

// makeDir makes the container's directory, with the record and the
// specification, and locks it. It is the claim on the ID.
func (c *container) makeDir(undo *sys.Undo) error {
	if err := os.MkdirAll(c.runtime.Root, 0o700); err != nil {
		return err
	}
	err := os.Mkdir(c.dir(), 0o700)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s: %w", c.ID, ErrExists)
	}
	if err != nil {
		return err
	}
	undo.Add("remove "+c.dir(), func(context.Context) error { return os.RemoveAll(c.dir()) })
	if c.lock, err = lockDir(c.dir(), unix.LOCK_EX); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(c.Bundle, specFile))
	if err != nil {
		return err
	}
	if err := sys.WriteFileAtomic(c.file(specFile), b, 0o600, false); err != nil {
		return err
	}
	return c.save()
}

// nameGroup finds out where the container's control group is, and who makes it.
func (c *container) nameGroup(spec *specs.Spec) error {
	if !c.Systemd {
		c.Cgroup = cgroupPath(spec, c.ID)
		return nil
	}
	properties, err := systemd.Annotated(spec.Annotations)
	if err != nil {
		return err
	}
	name := spec.Linux.CgroupsPath
	switch {
	case name == "":
		name = ":podstead:" + c.ID
	case strings.Count(name, ":") != 2:
		return fmt.Errorf("linux.cgroupsPath: %q: with --systemd-cgroup it is slice:prefix:name", name)
	}
	c.groups = c.runtime.Cgroups.WithDriver(c.runtime.Systemd.With(properties))
	if c.Cgroup, err = c.groups.UnitPath(name); err != nil {
		return fmt.Errorf("linux.cgroupsPath: %w", err)
	}
	return nil
}

// makeGroup makes the control group and sets the limits that do not get in the
// way of the preparation.
func (c *container) makeGroup(spec *specs.Spec, undo *sys.Undo) error {
	if err := c.checkRootless(spec); err != nil {
		return err
	}
	claim := c.claimGroup
	if c.runtime.privilege != privileged {
		claim = func() error { return c.claimDelegatedGroup(spec) }
	}
	if err := claim(); err != nil || !c.hasGroup() {
		return err
	}
	g := c.group()
	undo.Add("remove cgroup "+g.Path(), func(ctx context.Context) error {
		err := errors.Join(g.Kill(ctx), g.Remove(ctx))
		c.removeParents()
		return err
	})
	early, _ := cgroup.Split(spec.Linux.Resources)
	if c.Systemd {
		early.Pids = nil // there is one process more until the container's is there
	}
	return g.Set(early)
}

// claimGroup makes the control group, which must be nobody else's.
func (c *container) claimGroup() error {
	g := c.group()
	pids, err := g.Procs()
	if err != nil {
		return fmt.Errorf("linux.cgroupsPath: %w", err)
	}
	if len(pids) > 0 {
		return fmt.Errorf("linux.cgroupsPath: cgroup %s is not empty: processes %v", g.Path(), pids)
	}
	err = g.Create()
	for range 10 { // as often as somebody else's end removes a parent in between
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
		err = g.Create()
	}
	if err != nil {
		c.removeParents()
		return fmt.Errorf("linux.cgroupsPath: %w", err)
	}
	return nil
}

// fork makes the process, which waits for its start at the container's socket.
func (c *container) fork(ctx context.Context, spec *specs.Spec, o CreateOptions, undo *sys.Undo) (*launch.Child, error) {
	g := c.group()
	run := *spec
	run.Process = withHome(withListenFds(spec.Process, o.ListenFds), c.Rootfs)
	run.Linux = c.withoutMountLabel(spec.Linux)
	if err := c.withNotify(&run); err != nil {
		return nil, err
	}
	if err := netdevice.Check(spec.Linux.NetDevices); err != nil {
		return nil, fmt.Errorf("linux.%w", err)
	}
	p, err := launch.Compile(&run, launch.Options{
		ID: c.ID, Bundle: c.Bundle, CgroupJoin: g.JoinFiles(), CgroupDir: g.Dir(), Hooks: true, Listener: true, NetDevices: true, Resctrl: true,
		KeepKeyring: o.NoNewKeyring, NoPivot: o.NoPivot, SharedMounts: true,
		Unprivileged: c.runtime.privilege == unprivileged, BindDevices: c.runtime.privilege == nestedRoot,
	})
	if err != nil {
		return nil, err
	}
	if err := c.saveProgram(p); err != nil {
		return nil, err
	}
	listener, err := listen(c.dir())
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	files, err := p.Open()
	if err != nil {
		return nil, err
	}
	defer sys.CloseAll(files)
	stdio := o.Stdio
	if p.Terminal() {
		stdio = launch.Stdio{}
	}
	child, err := launch.ForkWith(p, files, launch.ForkOptions{
		Stdio: stdio, Extra: o.Extra, Listener: listener, WriteMaps: c.runtime.mapIDs(),
		AtPoint: func(child *launch.Child, at launch.Point) error { return c.hooksAt(ctx, spec, child, at) },
	})
	if err != nil {
		return nil, err
	}
	undo.Add("end process", func(context.Context) error {
		err := child.Abandon()
		_, werr := unix.Wait4(child.Pid, nil, unix.WALL, nil)
		return errors.Join(err, werr, child.Pidfd.Close())
	})
	for _, w := range child.Warnings {
		c.runtime.Log.Warn("passed over", "container", c.ID, "step", w)
	}
	return child, nil
}

// saveProgram keeps the program for the error texts of start.
func (c *container) saveProgram(p *launch.Program) error {
	b, err := p.MarshalBinary()
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(c.file(programFile), b, 0o600, false)
}

// finish sets the remaining limits and tells everybody that the container is
// there; the pid file comes last.
func (c *container) finish(spec *specs.Spec, child *launch.Child, o CreateOptions) error {
	if c.hasGroup() {
		if err := c.limit(spec); err != nil {
			return err
		}
	}
	if err := c.joinResctrl(child.Pid); err != nil {
		return err
	}
	if child.Console != nil && o.ConsoleSocket != "" {
		err := sendConsole(o.ConsoleSocket, child.Console)
		child.Console.Close()
		child.Console = nil
		if err != nil {
			return err
		}
	}
	if o.PidfdSocket != "" {
		if err := sendPidfd(o.PidfdSocket, child.Pid, child.Pidfd); err != nil {
			return err
		}
	}
	if c.runtime.privilege == privileged { // others may not look, nor checkpoint
		var err error
		if c.Stdio, err = criu.Stdio(child.Pid); err != nil {
			return err
		}
	}
	c.Pid, c.StartTime = child.Pid, child.StartTime
	if err := c.save(); err != nil {
		return err
	}
	return writePidFile(o.PidFile, child.Pid)
}

// limit sets what the container's preparation was not to be limited by.
func (c *container) limit(spec *specs.Spec) error {
	if err := c.group().Settle(); err != nil {
		return err
	}
	_, late := cgroup.Split(spec.Linux.Resources)
	if r := spec.Linux.Resources; r != nil && c.Systemd {
		late.Pids = r.Pids
	}
	if late.Devices = deviceRules(spec); c.devicesSet || c.runtime.privilege != privileged {
		late.Devices = nil // hooks may have added some; and only root can set any
	}
	return c.group().Set(late)
}

// deviceRules are those of the specification and of every container.
func deviceRules(spec *specs.Spec) []specs.LinuxDeviceCgroup {
	var rules []specs.LinuxDeviceCgroup
	if r := spec.Linux.Resources; r != nil {
		rules = slices.Clone(r.Devices)
	}
	return append(rules, cgroup.DefaultDevices()...)
}

// createFlags are those that create and run have in common.
type createFlags struct {
	bundle, consoleSocket, pidFile, pidfdSocket string
	preserveFds                                 int
	noPivot, noNewKeyring                       bool
}

func (f *createFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&f.bundle, "bundle", "b", "", "directory of the bundle (default: the current one)")
	flags.StringVar(&f.consoleSocket, "console-socket", "", "unix socket that gets the terminal's master")
	flags.StringVar(&f.pidfdSocket, "pidfd-socket", "", "unix socket that gets a pidfd of the process")
	flags.StringVar(&f.pidFile, "pid-file", "", "file to write the process's pid to")
	flags.BoolVar(&f.noPivot, "no-pivot", false, "enter the root by chroot (for a host that runs in its initial RAM disk); unsafe")
	flags.BoolVar(&f.noNewKeyring, "no-new-keyring", false, "leave the process in our session keyring")
	flags.IntVar(&f.preserveFds, "preserve-fds", 0, "pass N descriptors on, from 3 or after $LISTEN_FDS")
}

func (f *createFlags) options() (CreateOptions, error) {
	listen, err := listenFds()
	if err != nil {
		return CreateOptions{}, err
	}
	extra, err := extraFiles(listen + f.preserveFds)
	return CreateOptions{
		Bundle: f.bundle, ConsoleSocket: f.consoleSocket, PidfdSocket: f.pidfdSocket, PidFile: f.pidFile, Extra: extra, ListenFds: listen,
		NoNewKeyring: f.noNewKeyring, NoPivot: f.noPivot,
		Stdio: launch.Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr},
	}, err
}

func createCommand(cli *cli) *cobra.Command {
	var flags createFlags
	cmd := &cobra.Command{
		Use:   "create CONTAINER",
		Short: "Prepare a container, whose process waits for start",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := flags.options()
			if err != nil {
				return err
			}
			o.Detached = true
			_, err = cli.runtime.Create(cmd.Context(), args[0], o)
			return err
		},
	}
	flags.add(cmd.Flags())
	return cmd
}
