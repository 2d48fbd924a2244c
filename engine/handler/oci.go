package handler

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/supervisor"
	"podstead/sys"
)

// OCI drives a runtime by runc's command line: create, start, exec, kill and
// delete. There is no process between the supervisor and the container: the
// supervisor executes "create" and "start" with the container's stdio, and gets
// what they leave behind, because it is the subreaper.
//
// Create makes the bundle only; the runtime is called by Start, where an
// executable that is not there is told of as kubelets expect it.
//
//	Bundle/oci/ID/config.json   the specification, as this runtime may read it
//	Bundle/oci/ID/rootfs        the root, mounted as long as the container exists
//	RunDir/roots/ID             the same of a container with a user namespace
//	Bundle/oci/ID/exec-…        an exec under way
//	Root/ID                     the runtime's own state
type OCI struct {
	Supervisor *supervisor.Client
	Name       string   // of the handler
	Program    string   // a path, or a name in PATH
	Args       []string // before the command
	Root       string   // the runtime's state
	RunDir     string   // a short path: of sockets
	Host       Features // what the host allows
	// AllLimits hands all limits on, not only those that the runtime would lift.
	AllLimits bool

	ask   func(context.Context) ([]byte, error) // for features; nil: by "features"
	known atomic.Pointer[knowledge]
}

// oldestVersion is the specification's that every runtime reads. Some refuse
// newer ones that do not know "features", such as crun before 1.8.2.
const oldestVersion = "1.0.2"

var _ Inquirer = (*OCI)(nil)

// commandTimeout bounds each call of a runtime.
const commandTimeout = time.Minute

// Create implements Handler.
func (h *OCI) Create(_ context.Context, c Container) (supervisor.Process, error) {
	b := bundle(c.Bundle)
	rootfs, err := h.rootfs(c.Spec, b)
	if err != nil {
		return supervisor.Process{}, err
	}
	for _, dir := range []string{b.path(""), rootfs} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return supervisor.Process{}, err
		}
	}
	if err := b.writeSpec(h.adapt(c.Spec, c.Annotations, rootfs)); err != nil {
		return supervisor.Process{}, err
	}
	return supervisor.Process{}, h.mountRoot(c, rootfs)
}

// adapt returns the specification as this runtime reads it.
func (h *OCI) adapt(s *specs.Spec, annotations map[string]string, rootfs string) *specs.Spec {
	out := *s
	out.Version = specs.Version
	reads := cmp.Or(h.know().version, oldestVersion)
	if olderVersion(reads, specs.Version) {
		out.Version = reads
	}
	root := specs.Root{Path: rootfs}
	if s.Root != nil {
		root.Readonly = s.Root.Readonly
	}
	out.Root = &root
	if s.Linux != nil && s.Linux.Resources != nil {
		l := *s.Linux
		l.Resources = h.limits(l.Resources)
		out.Linux = &l
	}
	if hasUserNamespace(s) {
		out.Mounts = h.hostSysfs(s.Mounts)
	}
	if s.Process != nil {
		p := *s.Process
		p.OOMScoreAdj = allowedOOMScoreAdj(p.OOMScoreAdj)
		out.Process = &p
	}
	if len(annotations) > 0 {
		out.Annotations = maps.Clone(s.Annotations)
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		maps.Copy(out.Annotations, annotations)
	}
	return &out
}

// limits are those that the runtime is told. The engine has set all of them,
// knows more of the host's hierarchies than the runtime may, and changes them
// later. But crun takes the absence of a memory limit for one that is to be
// lifted, and what runs in a virtual machine is limited there.
func (h *OCI) limits(all *specs.LinuxResources) *specs.LinuxResources {
	if h.AllLimits {
		// But for those of huge pages, even 0 (the kubelet names every size): runc
		// refuses them if it does not find their controller, as on hybrid hosts.
		out := *all
		out.HugepageLimits = nil
		return &out
	}
	out := &specs.LinuxResources{Devices: all.Devices}
	if m := all.Memory; m != nil {
		out.Memory = &specs.LinuxMemory{Limit: m.Limit, Swap: m.Swap, Reservation: m.Reservation}
	}
	return out
}

// allowedOOMScoreAdj raises a score to what this process has, if it takes a
// capability that is not there to go below: runtimes fail then, where our own
// containers go on with the score they have.
func allowedOOMScoreAdj(score *int) *int {
	if score == nil {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil || caps[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return score
	}
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return score
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || *score >= own {
		return score
	}
	return &own
}

// olderVersion compares versions of the specification, "1.0.2-dev".
func olderVersion(a, b string) bool {
	number := func(v string) (n [3]int) {
		v, _, _ = strings.Cut(v, "-")
		for i, part := range strings.SplitN(v, ".", 3) {
			n[i], _ = strconv.Atoi(part)
		}
		return n
	}
	x, y := number(a), number(b)
	for i := range x {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return false
}

// Start implements Handler.
func (h *OCI) Start(ctx context.Context, c Container) (supervisor.Process, error) {
	b := bundle(c.Bundle)
	program, err := h.program()
	if err != nil {
		return supervisor.Process{}, err
	}
	if err := os.MkdirAll(h.Root, 0o711); err != nil {
		return supervisor.Process{}, err
	}
	if err := h.refreshSpec(b, c); err != nil {
		return supervisor.Process{}, err
	}
	cmd := supervisor.CommandLine{
		Env: environment(), Dir: b.path(""), PidFile: b.path("pid"), Timeout: commandTimeout,
		Then: h.argv(program, b.path("log"), "start", c.ID),
	}
	create := []string{"create", "--bundle", b.path(""), "--pid-file", cmd.PidFile}
	if c.Terminal {
		cmd.Console = h.socket()
		create = append(create, "--console-socket", cmd.Console)
	}
	cmd.Run = h.argv(program, b.path("log"), append(create, c.ID)...)
	os.Remove(cmd.PidFile)
	p, _, err := h.Supervisor.Launch(ctx, supervisor.Launch{
		ID: c.ID, Command: &cmd, Logged: true, Log: c.Log, Stdin: c.Stdin, StdinOnce: c.StdinOnce, Start: true,
	})
	if err != nil {
		return p, h.explain(err, b.path("log"))
	}
	return p, nil
}

// Exec implements Handler.
func (h *OCI) Exec(ctx context.Context, x Exec) (p supervisor.Process, console *os.File, err error) {
	program, err := h.program()
	if err != nil {
		return p, nil, err
	}
	id, _, _ := strings.Cut(x.ID, "/")
	dir, err := os.MkdirTemp(bundle(x.Bundle).path(""), "exec-")
	if err != nil {
		return p, nil, err
	}
	defer func() {
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
	}()
	in := func(name string) string { return filepath.Join(dir, name) }
	process, err := json.Marshal(x.Process)
	if err != nil {
		return p, nil, err
	}
	if err := os.WriteFile(in("process.json"), process, 0o600); err != nil {
		return p, nil, err
	}
	cmd := supervisor.CommandLine{Env: environment(), Dir: dir, PidFile: in("pid"), Timeout: commandTimeout}
	args := []string{"exec", "--process", in("process.json"), "--detach", "--pid-file", cmd.PidFile}
	if x.Process.Terminal {
		cmd.Console = h.socket()
		args = append(args, "--console-socket", cmd.Console)
	}
	cmd.Run = h.argv(program, in("log"), append(args, id)...)
	p, console, err = h.Supervisor.Launch(ctx, supervisor.Launch{ID: x.ID, Command: &cmd, Stdio: x.Stdio, Start: true, Once: true})
	if err != nil {
		return p, console, h.explain(err, in("log"))
	}
	return p, console, nil
}

// Signal implements Handler. A sandboxing runtime may not pass on what its
// process gets, so the runtime itself is asked.
func (h *OCI) Signal(ctx context.Context, _ Container, id string, signal int) error {
	if strings.Contains(id, "/") { // an exec
		return h.Supervisor.Signal(ctx, id, signal)
	}
	return h.ifAlive(ctx, id, func() error { return h.call(ctx, "kill", id, strconv.Itoa(signal)) })
}

// ifAlive does something to a process that the supervisor knows to run. What
// fails because it has ended meanwhile is os.ErrProcessDone.
func (h *OCI) ifAlive(ctx context.Context, id string, do func() error) error {
	p, err := h.Supervisor.Get(ctx, id)
	if err != nil {
		return err
	}
	if p.State == supervisor.Exited {
		return os.ErrProcessDone
	}
	if err = do(); err == nil {
		return nil
	}
	if p, gerr := h.Supervisor.Get(ctx, id); gerr == nil && p.State == supervisor.Exited {
		return os.ErrProcessDone
	}
	return err
}

// Delete implements Handler.
func (h *OCI) Delete(ctx context.Context, c Container) error {
	if err := h.cancel(ctx, c.ID); err != nil {
		return err
	}
	var errs []error
	state := filepath.Join(h.Root, c.ID)
	if _, err := os.Lstat(state); err == nil {
		err := h.call(ctx, "delete", "--force", c.ID)
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			err = os.RemoveAll(state) // the runtime is gone; its processes are the cgroup's
		}
		errs = append(errs, err)
	}
	if err := h.unmountRoot(bundle(c.Bundle)); err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, sys.RemoveTree(bundle(c.Bundle).dir()))...)
}

// cancel ends a launch that is under way since before the engine's start, or
// the process if it has come of it.
func (h *OCI) cancel(ctx context.Context, id string) error {
	for {
		err := h.Supervisor.Signal(ctx, id, int(unix.SIGKILL))
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %s has not ended: %w", id, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// call runs a command of the runtime whose output nobody needs but if it fails.
func (h *OCI) call(ctx context.Context, args ...string) error {
	_, err := h.output(ctx, args...)
	return err
}

func (h *OCI) output(ctx context.Context, args ...string) ([]byte, error) {
	program, err := h.program()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	argv := append(append([]string{}, h.Args...), "--root", h.Root)
	cmd := exec.CommandContext(ctx, program, append(argv, args...)...)
	cmd.Env = environment()
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", h.Name, args[0], err, tail(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// program finds the runtime anew each time: it may have been installed since.
func (h *OCI) program() (string, error) {
	path, err := exec.LookPath(h.Program)
	if err != nil {
		return "", fmt.Errorf("handler %s: %w", h.Name, err)
	}
	return path, nil
}

func (h *OCI) argv(program, log string, args ...string) []string {
	argv := append([]string{program}, h.Args...)
	argv = append(argv, "--root", h.Root, "--log", log, "--log-format", "json")
	return append(argv, args...)
}

// socket is a new path that is short enough for one.
func (h *OCI) socket() string {
	return filepath.Join(h.RunDir, "t"+strings.ToLower(rand.Text()[:10]))
}

// environment is the engine's own, without what is meant for it alone.
func environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case supervisor.SupervisedEnv, "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
			continue
		}
		env = append(env, kv)
	}
	return env
}

// explain adds to a failed launch what the runtime has logged last.
func (h *OCI) explain(err error, log string) error {
	b, rerr := os.ReadFile(log)
	if rerr != nil {
		return err
	}
	said := ""
	for line := range bytes.Lines(b) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			said = entry.Msg
		}
	}
	if said == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, tail(said))
}

// tail bounds a text that another program has written.
func tail(s string) string {
	const limit = 2000
	s = strings.TrimSpace(strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = "… " + s[len(s)-limit:]
	}
	return s
}

// bundle is a container's directory.
type bundle string

func (b bundle) path(name string) string {
	return filepath.Join(b.dir(), filepath.Base(string(b)), name)
}

func (b bundle) dir() string { return filepath.Join(string(b), BundleDir) }

// BundleDir in a container's directory has the bundle, which shims want to be
// called by the container's ID, RootDir is the root in it.
const (
	BundleDir = "oci"
	RootDir   = "rootfs"
)

func (b bundle) writeSpec(s *specs.Spec) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(b.path("config.json"), data, 0o600)
}

// refreshSpec writes what was changed since the container was created into its
// specification.
func (h *OCI) refreshSpec(b bundle, c Container) error {
	if c.OOMScoreAdj == nil && c.Resources == nil {
		return nil
	}
	data, err := os.ReadFile(b.path("config.json"))
	if err != nil {
		return err
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("%s: %w", b.path("config.json"), err)
	}
	if s.Process != nil && c.OOMScoreAdj != nil {
		s.Process.OOMScoreAdj = allowedOOMScoreAdj(c.OOMScoreAdj)
	}
	if c.Resources != nil && s.Linux != nil && s.Linux.Resources != nil {
		was, now := s.Linux.Resources, h.limits(c.Resources)
		was.Memory, was.CPU = cmp.Or(now.Memory, was.Memory), cmp.Or(now.CPU, was.CPU)
		if now.HugepageLimits != nil {
			was.HugepageLimits = now.HugepageLimits
		}
		if now.Unified != nil {
			was.Unified = now.Unified
		}
	}
	return b.writeSpec(&s)
}
