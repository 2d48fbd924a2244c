package launch

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// ForkOptions is how a child is connected with its forker and others.
type ForkOptions struct {
	Stdio
	// Extra become descriptors 3, 4, … of the container's process.
	Extra []*os.File
	// Listener, a listening seqpacket unix socket, is what the prepared child
	// waits on in place of Child.Control, so that it may outlive its forker:
	// who connects to it can Adopt and Start the child.
	Listener *os.File
	// AtPoint is Child.AtPoint.
	AtPoint func(*Child, Point) error
	// AtListener is Child.AtListener.
	AtListener func(*Child, *os.File) error
	// WriteMaps writes the id maps of a process in a new user namespace, for a
	// forker that may not write them itself.
	WriteMaps func(pid int, uid, gid string) error
	// Start starts the child without a wait in between: ForkWith returns when
	// the new image runs, and a child whose start failed is reaped. It saves
	// what it takes to wake up twice, a third of an exec.
	Start bool
	// Forker, if not nil, is what one that forks often keeps from fork to fork.
	Forker *Forker
	// NoWait has ForkWith return as soon as the child is there, if it is started
	// and gets to its execve without an answer (then Child.Alone); Child.Outcome
	// tells what came of it, and whoever called reaps it.
	NoWait bool
	// Cloned, if not nil, is called when the child is there, with its number and
	// start time, while it gets on by itself. It is not called for a program
	// whose process is going to be another one than its first.
	Cloned func(*Child)
}

// Point is a moment at which others have something to do for a container.
type Point uint32

const (
	// PointCreated: namespaces and mounts are there, the root is not yet switched
	// to: network devices; prestart, createRuntime and createContainer hooks.
	PointCreated Point = iota + 1
	// PointStart: the start is released, nothing is executed yet: startContainer
	// hooks.
	PointStart
)

// noListener is the machine's word for no listener.
const noListener = ^uintptr(0)

// atPoint lets others do their work, and the child go on.
func (c *Child) atPoint(m message) error {
	if c.AtPoint != nil {
		if err := c.AtPoint(c, Point(m.Value)); err != nil {
			return err
		}
	}
	return c.release()
}

// atListener takes the child's seccomp listener, which the child itself would
// lose when it executes, and lets the child go on.
func (c *Child) atListener(m message) error {
	fd, err := unix.PidfdGetfd(int(c.Pidfd.Fd()), int(m.Value), 0)
	if err != nil {
		return fmt.Errorf("take the seccomp listener of process %d: %w", c.Pid, os.NewSyscallError("pidfd_getfd", err))
	}
	f := os.NewFile(uintptr(fd), "seccomp listener")
	defer f.Close()
	if c.AtListener == nil {
		return fmt.Errorf("launch %s: nobody takes the seccomp listener", c.program.id)
	}
	if err := c.AtListener(c, f); err != nil {
		return err
	}
	c.listened = true
	return c.release()
}

// checkListened tells a child that became its image from one that could not
// tell of its listener, nor of this failure: the filter would not let it.
func (c *Child) checkListened() error {
	wants := slices.ContainsFunc(c.program.ops, func(o op) bool { return o.call == cListener })
	if wants && !c.listened {
		return fmt.Errorf("launch %s: linux.seccomp: the filter does not let the process hand over its listener (write)", c.program.id)
	}
	return nil
}

// addExtra puts the extra descriptors behind those of stdio, above where the
// prologue moves them to.
func (o *ForkOptions) addExtra(std []int, peer int, files []*os.File) (all []int, closeAll func(), err error) {
	var opened []int
	closeAll = func() {
		for _, fd := range opened {
			unix.Close(fd)
		}
	}
	if len(o.Extra) == 0 {
		return std, closeAll, nil
	}
	end := 3 + len(o.Extra)
	inTheWay := append([]int{peer}, std...)
	for _, f := range files {
		inTheWay = append(inTheWay, int(f.Fd()))
	}
	if o.Listener != nil {
		inTheWay = append(inTheWay, int(o.Listener.Fd()))
	}
	for _, fd := range inTheWay {
		if fd >= 3 && fd < end {
			return nil, func() {}, fmt.Errorf("descriptor %d is wanted for the container, but in use", fd)
		}
	}
	for i, f := range o.Extra {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, end)
		if err != nil {
			closeAll()
			return nil, func() {}, fmt.Errorf("descriptor %d: %w", 3+i, err)
		}
		opened = append(opened, fd)
		std = append(std, fd)
	}
	return std, closeAll, nil
}

// moveOutOfTheWay copies the descriptors below end, so that the image's own can
// go there.
func moveOutOfTheWay(files []*os.File, end int, needed bool) (moved []*os.File, closeAll func(), err error) {
	if !needed {
		return files, func() {}, nil
	}
	var opened []*os.File
	closeAll = func() { sys.CloseAll(opened) }
	moved = slices.Clone(files)
	for i, f := range files {
		if int(f.Fd()) >= end {
			continue
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, end)
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
		}
		moved[i] = os.NewFile(uintptr(fd), f.Name())
		opened = append(opened, moved[i])
	}
	return moved, closeAll, nil
}

// points makes the child stop where hooks are to run.
func (c *compiler) point(p Point) {
	if !c.stopsAt(p) {
		return
	}
	const text = "wait for network devices and hooks"
	if !c.opt.Unprivileged || !c.hooksInside(p) {
		c.do(text, cPoint, uint32(p))
		return
	}
	// Who has no privilege can enter the namespaces only of a process that may be
	// traced: nobody else is in there yet.
	if c.new&unix.CLONE_NEWPID == 0 {
		c.fail(fmt.Errorf("hooks: without privilege, createContainer and startContainer hooks need a pid namespace of the container's own"))
	}
	c.do("let hooks in", cSetDumpable, 1)
	c.do(text, cPoint, uint32(p))
	c.do("become undumpable", cSetDumpable, 0)
}

// hooksInside tells whether hooks run in the container's namespaces at a point.
func (c *compiler) hooksInside(p Point) bool {
	h := c.spec.Hooks
	if p == PointStart {
		return c.hooksAt(p)
	}
	return c.hooksAt(p) && len(h.CreateContainer) > 0
}

func (c *compiler) stopsAt(p Point) bool {
	return c.hooksAt(p) || p == PointCreated && c.opt.NetDevices && len(c.spec.Linux.NetDevices) > 0
}

func (c *compiler) hooksAt(p Point) bool {
	h := c.spec.Hooks
	switch {
	case !c.opt.Hooks || h == nil:
		return false
	case p == PointCreated:
		//nolint:staticcheck // prestart is deprecated, but widely used
		return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0
	}
	return len(h.StartContainer) > 0
}

// CompileHook translates a hook that runs in the container's namespaces, as
// createContainer and startContainer hooks do: with the root that these have
// at that moment, the forker's privilege and nothing of the container's
// process. path is executed as it is.
func CompileHook(spec *specs.Spec, path string, hook specs.Hook, opt ExecOptions) (*Program, error) {
	args := hook.Args
	if len(args) == 0 {
		args = []string{path}
	}
	c, err := newCompiler(spec, &specs.Process{Args: args, Env: hook.Env, Cwd: "/"}, Options{ID: opt.ID})
	if err != nil {
		return nil, err
	}
	var flags uint64
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type != specs.PIDNamespace {
			flags |= namespaceFlag[ns.Type]
		}
	}
	target := c.addSlot(slot{kind: slotPidfd, path: strconv.Itoa(opt.Pid), label: "join process " + strconv.Itoa(opt.Pid)})
	c.do("become undumpable", cSetDumpable, 0) // as any process that enters a container
	if opt.Unprivileged {
		c.joinUnprivileged(target, flags|unix.CLONE_NEWPID)
	} else {
		c.p.pidns = int(c.addSlot(slot{
			kind: slotFile, path: "/proc/" + strconv.Itoa(opt.Pid) + "/ns/pid", flags: unix.O_RDONLY, target: true, label: "open pid namespace",
		}))
		c.do("join the container's namespaces", cSetns, target, flags)
	}
	if flags&unix.CLONE_NEWUSER != 0 {
		c.becomeRoot()
	}
	c.do("enter the root", cChdir, "/")
	c.do("reset signals", cSignals)
	c.do("close descriptors", cCloseAll, 0)
	c.do("restore the limit of open files", cFileLimit)
	c.do("wait for the start", cPrepared)
	c.do("prepare to execute", cExecuting)
	c.do("exec "+path, cExecve, path, c.vector(args), c.vector(hook.Env))
	return c.finish()
}
