package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/oci/criu"
	"podstead/oci/hook"
	"podstead/oci/launch"
	"podstead/sys"
)

// RestoreOptions is what a restored container is made of. The bundle's
// specification is what counts; the images must fit it.
type RestoreOptions struct {
	CreateOptions
	CRIU                criu.RestoreOptions
	ImagePath, WorkPath string
}

// restored is a container's process that CRIU has brought back.
type restored struct {
	pid     int
	pidfd   *os.File
	console *os.File
}

// Restore makes a container from the images of a checkpoint. It runs when this
// returns; its process is a child of ours. A failed restore leaves nothing.
func (r *Runtime) Restore(ctx context.Context, id string, o RestoreOptions) (err error) {
	p, err := r.restore(ctx, id, o)
	if err != nil {
		return err
	}
	p.pidfd.Close()
	return nil
}

func (r *Runtime) restore(ctx context.Context, id string, o RestoreOptions) (p restored, err error) {
	if err := checkID(id); err != nil {
		return p, err
	}
	bundle, err := filepath.Abs(o.Bundle)
	if err != nil {
		return p, err
	}
	spec, rootfs, err := loadBundle(bundle)
	if err != nil {
		return p, err
	}
	if err := checkConsole(spec.Process.Terminal, o.ConsoleSocket, o.Detached); err != nil {
		return p, err
	}
	c := &container{runtime: r, record: record{
		Version: recordVersion, ID: id, Bundle: bundle, Rootfs: rootfs, Created: time.Now().UTC(), Owner: owner(),
		Annotations: spec.Annotations, Systemd: r.UseSystemd, PrivatePids: hasPrivate(spec, specs.PIDNamespace),
		OwnNetwork: hasNetwork(spec),
	}}
	if err := c.nameGroup(spec); err != nil {
		return p, err
	}
	if r.privilege != privileged {
		return p, errors.New("only root can restore")
	}
	var undo sys.Undo
	defer undo.OnError(ctx, &err)
	if err := c.makeDir(&undo); err != nil {
		return p, err
	}
	defer c.unlock()
	if err := c.makeGroup(spec, &undo); err != nil {
		return p, fmt.Errorf("restore container %s: %w", id, err)
	}
	if err := c.makeResctrl(spec, &undo); err != nil {
		return p, fmt.Errorf("restore container %s: %w", id, err)
	}
	if p, err = c.runRestorer(ctx, spec, o); err != nil {
		return p, fmt.Errorf("restore container %s: %w", id, err)
	}
	undo.Add("forget process", func(context.Context) error { return p.pidfd.Close() })
	if err := c.restored(ctx, spec, &p, o); err != nil {
		return p, fmt.Errorf("restore container %s: %w", id, err)
	}
	return p, nil
}

// runRestorer launches CRIU in the container's cgroup, and has it restore.
func (c *container) runRestorer(ctx context.Context, spec *specs.Spec, o RestoreOptions) (p restored, err error) {
	closeDirs, err := openCheckpointDirs(&o.CRIU.Options, o.ImagePath, o.WorkPath, false)
	if err != nil {
		return p, err
	}
	defer closeDirs()
	program, err := criu.Find()
	if err != nil {
		return p, err
	}
	at := c.file(restoreDir)
	if err := os.Mkdir(at, 0o700); err != nil {
		return p, err
	}
	defer os.Remove(at)
	g := c.group()
	restorer, err := launch.CompileRestore(spec, launch.Options{
		ID: c.ID, Bundle: c.Bundle, CgroupJoin: g.JoinFiles(), CgroupDir: g.Dir(),
	}, launch.RestoreOptions{Dir: at, Path: program, Args: append([]string{"criu"}, criu.Args(launch.SocketArg)...), Env: criu.Env()})
	if err != nil {
		return p, err
	}
	conn, theirs, err := criu.Pair()
	if err != nil {
		return p, err
	}
	defer conn.Close()
	files, err := restorer.Open(theirs)
	theirs.Close()
	if err != nil {
		return p, err
	}
	defer sys.CloseAll(files)
	o.CRIU.OrphanPtsMaster = spec.Process.Terminal
	if err := o.CRIU.DescribeRestore(spec, restorer, files[restorer.RootSlot]); err != nil {
		return p, err
	}
	stdio := o.Stdio
	if spec.Process.Terminal {
		stdio = launch.Stdio{}
	}
	child, err := launch.ForkWith(restorer.Program, files, launch.ForkOptions{Stdio: stdio, Extra: o.Extra})
	if err != nil {
		return p, err
	}
	sys.CloseAll(files) // or the end of CRIU could not be seen
	if c.Stdio, err = criu.Stdio(child.Pid); err == nil {
		err = child.Start()
	}
	if err != nil {
		return p, errors.Join(err, child.Abandon(), reapRestorer(ctx, child, true))
	}
	defer func() {
		conn.Close()
		err = errors.Join(err, reapRestorer(ctx, child, err != nil))
	}()
	return c.followRestore(ctx, spec, conn, child.Pid, o)
}

// reapRestorer waits for CRIU, which has done what it was asked for.
func reapRestorer(ctx context.Context, child *launch.Child, failed bool) error {
	defer child.Pidfd.Close()
	if failed {
		_ = unix.PidfdSendSignal(int(child.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
	for {
		_, err := unix.Wait4(child.Pid, nil, unix.WALL, nil)
		if err != unix.EINTR {
			return err
		}
	}
}

// restoreDir is where CRIU finds the container's root, in a mount namespace of
// its own.
const restoreDir = "restore"

// followRestore is CRIU's client.
func (c *container) followRestore(ctx context.Context, spec *specs.Spec, conn *criu.Conn, restorer int, o RestoreOptions) (p restored, err error) {
	defer func() {
		if err != nil {
			if p.pidfd != nil {
				p.pidfd.Close()
			}
			if p.console != nil {
				p.console.Close()
			}
		}
	}()
	o.CRIU.Notify = func(n criu.Notification) error {
		switch n.Script {
		case criu.OrphanPtsMaster:
			if n.File == nil || p.console != nil {
				return errors.New("no master of the terminal")
			}
			p.console = n.File
			return nil
		case criu.SetupNamespaces:
			return c.restoreHooks(ctx, spec, n.Pid)
		case criu.PostRestore:
			p.pid = n.Pid
			p.pidfd, err = sys.OpenPidfd(n.Pid, 0)
			return err
		case criu.PreResume:
			if err := c.beforeResume(spec, p.pid, restorer, o.Stdio); err != nil {
				return errors.Join(err, c.group().Kill(ctx))
			}
		}
		return nil
	}
	pid, err := conn.Restore(ctx, o.CRIU)
	if err != nil {
		return p, err
	}
	if pid != p.pid {
		return p, fmt.Errorf("criu restored process %d and says it is %d", p.pid, pid)
	}
	return p, nil
}

// beforeResume sets the limits that get in CRIU's way, and looks at what is
// going to run.
func (c *container) beforeResume(spec *specs.Spec, pid, restorer int, stdio launch.Stdio) error {
	_, late := cgroup.Split(spec.Linux.Resources)
	late.Devices = deviceRules(spec)
	if err := c.group().Settle(); err != nil {
		return err
	}
	if err := c.group().Set(late); err != nil {
		return err
	}
	pids, err := c.group().Procs()
	if err != nil {
		return err
	}
	if err := c.joinResctrl(pids...); err != nil {
		return err
	}
	inBundle := *spec // paths of the bundle mean what they mean at a launch
	inBundle.Mounts = slices.Clone(spec.Mounts)
	for i, m := range inBundle.Mounts {
		if criu.IsBind(m) && !filepath.IsAbs(m.Source) {
			inBundle.Mounts[i].Source = filepath.Join(c.Bundle, m.Source)
		}
	}
	r := criu.Restored{Spec: &inBundle, Pid: pid, Members: pids, Restorer: restorer, Cgroup: c.Cgroup, Stdio: []*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr}}
	return r.Check()
}

// restoreHooks runs those of the host's side at the moment when namespaces are
// there; CRIU has no moment for the others.
func (c *container) restoreHooks(ctx context.Context, spec *specs.Spec, pid int) error {
	if spec.Hooks == nil {
		return nil
	}
	if n := len(spec.Hooks.CreateContainer) + len(spec.Hooks.StartContainer); n > 0 {
		c.runtime.Log.Warn("hooks that run in the container's namespaces are not run by a restore", "container", c.ID)
	}
	at := c.state(specs.StateCreated)
	at.Pid = pid
	//nolint:staticcheck // prestart is deprecated, but widely used
	if err := hook.Run(ctx, "prestart", spec.Hooks.Prestart, at); err != nil {
		return err
	}
	return hook.Run(ctx, "createRuntime", spec.Hooks.CreateRuntime, at)
}

// restored records the process and tells everybody of it.
func (c *container) restored(ctx context.Context, spec *specs.Spec, p *restored, o RestoreOptions) error {
	if p.console != nil && o.ConsoleSocket != "" {
		err := sendConsole(o.ConsoleSocket, p.console)
		p.console.Close()
		p.console = nil
		if err != nil {
			return err
		}
	}
	var err error
	if c.StartTime, err = sys.StartTime(p.pid); err != nil {
		return err
	}
	c.Pid = p.pid
	if err := c.save(); err != nil {
		return err
	}
	if err := writePidFile(o.PidFile, p.pid); err != nil {
		return err
	}
	if spec.Hooks == nil {
		return nil
	}
	return hook.Run(ctx, "poststart", spec.Hooks.Poststart, c.state(specs.StateRunning))
}

// RunRestored restores a container in the foreground, as Run runs one.
func (r *Runtime) RunRestored(ctx context.Context, id string, o RestoreOptions) (code int, err error) {
	p, err := r.restore(ctx, id, o)
	if err != nil {
		return 0, err
	}
	defer p.pidfd.Close()
	s, err := newSession(p.pid, p.pidfd, p.console)
	if err != nil {
		return 0, errors.Join(err, r.Delete(ctx, id, true))
	}
	code, err = s.wait()
	s.close()
	return code, errors.Join(err, r.Delete(ctx, id, true))
}

func restoreCommand(cli *cli) *cobra.Command {
	var create createFlags
	var flags criuFlags
	var o RestoreOptions
	var detach, noSubreaper bool
	cmd := &cobra.Command{
		Use:   "restore CONTAINER",
		Short: "Make a container from a checkpoint, by CRIU",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.parse(); err != nil {
				return err
			}
			var err error
			if o.CreateOptions, err = create.options(); err != nil {
				return err
			}
			switch {
			case o.NoPivot:
				return errors.New("--no-pivot: not supported by restore")
			case o.NoNewKeyring:
				return errors.New("--no-new-keyring: not supported by restore")
			}
			profile, context := o.CRIU.LSMProfile, o.CRIU.LSMMountContext
			o.CRIU.Options, o.ImagePath, o.WorkPath = flags.options, flags.imagePath, flags.workPath
			o.CRIU.LSMProfile, o.CRIU.LSMMountContext = profile, context
			o.Detached = detach
			if detach {
				return cli.runtime.Restore(cmd.Context(), args[0], o)
			}
			code, err := cli.runtime.RunRestored(cmd.Context(), args[0], o)
			if err == nil && code != 0 {
				return exitError(code)
			}
			return err
		},
	}
	create.add(cmd.Flags())
	flags.add(cmd.Flags())
	f := cmd.Flags()
	f.BoolVarP(&detach, "detach", "d", false, "do not wait for the container's end")
	f.BoolVar(&noSubreaper, "no-subreaper", false, "accepted: there is never one")
	f.StringVar(&o.CRIU.LSMProfile, "lsm-profile", "", "security profile in place of the dumped one, apparmor:NAME or selinux:LABEL")
	f.StringVar(&o.CRIU.LSMMountContext, "lsm-mount-context", "", "SELinux context of mounts in place of the dumped one")
	return cmd
}
