package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podstead/engine/handler"
	"podstead/supervisor"
	"podstead/sys"
)

// load reads the records into memory. What cannot be read is set aside; what
// it stood for in the kernel is cleaned up by reconcile as nobody's.
func (e *Engine) load() error {
	sandboxes, bare, bad, err := e.sandboxRecords.Load()
	if err != nil {
		return err
	}
	for _, b := range bad {
		e.log.Error("the record of a pod sandbox is unreadable and set aside", "pod", b.ID, "file", b.File, "error", b.Err)
	}
	for _, id := range bare {
		e.log.Warn("what is left of a pod sandbox without a record is removed", "pod", id)
	}
	for id, rec := range sandboxes {
		if rec.config() == nil || rec.ID != id {
			e.log.Error("the record of a pod sandbox is incomplete and passed over", "pod", id)
			continue
		}
		e.sandboxes[id] = &sandbox{id: id, turn: newTurn(), rec: rec}
		e.sandboxRuns.restore(rec.name(), decodeFingerprint(rec.Fingerprint), id)
	}
	containers, _, bad, err := e.containerRecords.Load()
	if err != nil {
		return err
	}
	for _, b := range bad {
		e.log.Error("the record of a container is unreadable and set aside", "container", b.ID, "file", b.File, "error", b.Err)
	}
	for id, rec := range containers {
		if rec.config() == nil || rec.ID != id {
			e.log.Error("the record of a container is incomplete and passed over", "container", id)
			continue
		}
		e.containers[id] = newContainer(rec)
		e.keepProject(&rec)
		e.containerRuns.restore(rec.name(), decodeFingerprint(rec.Fingerprint), id)
	}
	return nil
}

// reconcile compares the records with the kernel and the supervisor, which are
// right, and takes apart what was half made. What cannot be taken apart now is
// logged and tried again by Stop and Remove: one stuck object keeps nobody from
// starting.
func (e *Engine) reconcile(ctx context.Context) error {
	list, err := e.cfg.Supervisor.List(ctx)
	if err != nil {
		return err
	}
	processes := map[string]supervisor.Process{}
	for _, p := range list {
		processes[p.ID] = p
	}
	for _, s := range e.allSandboxes() {
		e.reconcileSandbox(ctx, s, processes)
	}
	for _, c := range e.allContainers() {
		e.reconcileContainer(ctx, c, processes)
	}
	e.removeStrays(ctx, processes)
	e.resumeStops()
	return nil
}

// resumeStops goes on stopping the sandboxes that were being stopped when the
// engine ended: until then they are not ready, and their containers may run.
func (e *Engine) resumeStops() {
	for _, s := range e.allSandboxes() {
		if rec := s.record(); rec.Phase != sandboxStopping || rec.Message != "" {
			continue // nobody asked for the end of one with a message
		}
		e.worker.Go(func() {
			if err := e.stopSandbox(e.life, s); err != nil {
				e.log.Error("resumed stop of a pod sandbox", "pod", s.id, "error", err)
			}
		})
	}
}

func (e *Engine) reconcileSandbox(ctx context.Context, s *sandbox, processes map[string]supervisor.Process) {
	rec := s.record()
	log := e.log.With("pod", s.id)
	if rec.Phase == sandboxCreating {
		log.Info("a pod sandbox that was half made is undone")
		if err := e.discardSandbox(ctx, s, nil); err != nil {
			log.Error("undo of a pod sandbox", "error", err)
		}
		return
	}
	why := e.whyNotReady(&rec, processes)
	if rec.Phase != sandboxReady || why == "" {
		return
	}
	log.Warn("a pod sandbox is not ready any more", "why", why)
	now := time.Now()
	err := e.changeSandbox(s, func(r *sandboxRecord) {
		r.Phase, r.Message, r.StoppedAt = sandboxStopping, why, now
	})
	if err != nil {
		log.Error("record of a pod sandbox", "error", err)
	}
	e.sandboxEvent(s, eventStopped, now)
}

// whyNotReady finds out what a sandbox that was ready lacks now, "" if nothing.
func (e *Engine) whyNotReady(rec *sandboxRecord, processes map[string]supervisor.Process) string {
	if rec.BootID != e.bootID {
		return "the machine was started anew"
	}
	for kind, path := range map[string]string{"network": e.netnsPath(rec), "IPC": e.ipcPath(rec), "user": e.usernsPath(rec)} {
		if path != "" && !isNamespace(path) {
			return "its " + kind + " namespace is gone"
		}
	}
	for id, why := range rec.podProcesses() {
		if processes[id].State != supervisor.Running {
			return why
		}
	}
	return ""
}

func (e *Engine) reconcileContainer(ctx context.Context, c *container, processes map[string]supervisor.Process) {
	rec := c.record()
	log := e.log.With("container", c.id)
	p, known := processes[c.id]
	switch {
	case rec.Phase == containerCreating || e.sandboxOf(&rec) == nil:
		log.Info("a container that was half made, or has lost its pod sandbox, is removed")
		if err := e.discardContainer(ctx, c, nil); err != nil {
			log.Error("removal of a container", "error", err)
		} else if rec.Phase != containerCreating {
			e.containerEvent(c, eventDeleted, time.Now())
		}
	case rec.Phase == containerExited:
		e.poststopLater(c)
	case rec.FromCheckpoint && rec.StartedAt.IsZero():
		e.restoreInterrupted(c)
	case known && p.State == supervisor.Exited:
		e.exitedMeanwhile(c, p)
	case known && rec.StartHooks:
		e.startInterrupted(c)
	case known:
		e.aliveAfterRestart(c, p)
	case c.unmade() && rec.BootID == e.bootID:
		// It still waits for its start.
	case rec.BootID != e.bootID:
		e.recordExit(c, exit{at: time.Now(), code: exitUnknown, reason: reasonUnknown, message: "the machine was started anew while the container existed"})
	default:
		e.containerLost(c)
	}
}

func (e *Engine) sandboxOf(r *containerRecord) *sandbox {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sandboxes[r.SandboxID]
}

// exitedMeanwhile records the end of a container that nobody saw. Whether it
// had been started is known by its start time alone.
func (e *Engine) exitedMeanwhile(c *container, p supervisor.Process) {
	if !p.StartedAt.IsZero() {
		e.noteStart(c, p)
	}
	e.containerExited(c, p)
}

// noteStart makes up for a start that was not recorded.
func (e *Engine) noteStart(c *container, p supervisor.Process) {
	c.mu.Lock()
	missed := c.rec.StartedAt.IsZero()
	if missed {
		c.rec.Phase, c.rec.StartedAt = containerRunning, p.StartedAt
	}
	c.mu.Unlock()
	if missed {
		e.containerEvent(c, eventStarted, p.StartedAt)
	}
}

// aliveAfterRestart corrects the record of a container whose start fell into
// the engine's end.
func (e *Engine) aliveAfterRestart(c *container, p supervisor.Process) {
	phase := containerCreated
	if p.State == supervisor.Running {
		phase = containerRunning
		e.noteStart(c, p)
	}
	err := e.changeContainer(c, func(r *containerRecord) {
		if r.Phase != containerExited {
			r.Phase, r.Pid, r.StartTicks = phase, p.Pid, p.StartTicks
		}
	})
	if err != nil {
		e.log.Error("record of a container", "container", c.id, "error", err)
	}
}

// removeStrays takes away what belongs to no record: exec'd processes of the
// former engine, containers whose record was unreadable, their directories,
// image holds, namespaces and leases.
func (e *Engine) removeStrays(ctx context.Context, processes map[string]supervisor.Process) {
	warn := func(what, id string, err error) {
		if err != nil {
			e.log.Error("a stray stays", "what", what, "id", id, "error", err)
		}
	}
	for id := range processes {
		if pod, _ := handler.PodOfProcess(id); !e.owned(pod) {
			warn("process", id, e.endStray(ctx, id))
		}
	}
	for _, kind := range []string{"containers", "sandboxes"} {
		for _, dir := range strayDirs(filepath.Join(e.cfg.StateDir, kind), e.owned) {
			warn("cgroup", dir, e.removeStrayCgroups(ctx, filepath.Base(dir)))
			warn("directory", dir, removeTree(dir))
		}
	}
	for _, dir := range strayDirs(filepath.Join(e.cfg.RunDir, "sandboxes"), e.owned) {
		warn("namespaces", dir, removeRunDir(dir))
	}
	for _, dir := range strayDirs(filepath.Join(e.cfg.RunDir, handler.RootsDir), e.owned) {
		warn("root", dir, errors.Join(unmount(dir), os.Remove(dir)))
	}
	states, _ := filepath.Glob(filepath.Join(e.handlersDir(), "*", "*"))
	for _, dir := range states {
		if id := filepath.Base(dir); len(id) == 64 && !e.owned(id) {
			warn("state of a runtime", dir, os.RemoveAll(dir))
		}
	}
	for _, holder := range e.cfg.Images.Holders() {
		if id, _, _ := strings.Cut(holder, "/"); !e.owned(id) {
			warn("image hold", holder, e.cfg.Images.Release(ctx, holder))
		}
	}
	var live []string
	for _, s := range e.allSandboxes() {
		if rec := s.record(); rec.Phase != sandboxStopped && rec.BootID == e.bootID {
			live = append(live, s.id)
		}
	}
	warn("network", "", e.cfg.Network.Reconcile(ctx, live))
}

// owned tells whether id is that of a sandbox or container.
func (e *Engine) owned(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sandboxes[id] != nil || e.containers[id] != nil
}

// endStray kills a process that the supervisor keeps for nobody, and what is
// around it in its cgroup if that is a container's.
func (e *Engine) endStray(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, reapTimeout)
	defer cancel()
	// A launch under way takes the signal, and ends when it can.
	for {
		err := e.cfg.Supervisor.Signal(ctx, id, 9)
		if isGone(err) {
			return e.forgetProcess(ctx, id)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// removeStrayCgroups removes the groups named like a stray, wherever one can be:
// only its record knew in which pod's group it was.
func (e *Engine) removeStrayCgroups(ctx context.Context, id string) error {
	parents := map[string]bool{e.cfg.CgroupParent: true}
	for _, s := range e.allSandboxes() {
		parents[s.record().CgroupParent] = true
	}
	var errs []error
	for parent := range parents {
		if path := memberCgroup(parent, id); e.cfg.Cgroups.Group(path).Exists() {
			errs = append(errs, e.removeCgroup(ctx, path))
		}
	}
	return errors.Join(errs...)
}

// strayDirs lists directories named like objects that have no record. One with
// a record that was set aside keeps that for a person to see.
func strayDirs(dir string, owned func(string) bool) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var stray []string
	for _, d := range entries {
		if d.IsDir() && len(d.Name()) == 64 && !owned(d.Name()) {
			stray = append(stray, filepath.Join(dir, d.Name()))
		}
	}
	return stray
}

// removeTree empties a stray object's directory but for a record that was set
// aside.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	kept := false
	for _, d := range entries {
		if strings.HasSuffix(d.Name(), ".bad") {
			kept = true
			continue
		}
		path := filepath.Join(dir, d.Name())
		if strings.HasPrefix(d.Name(), "image-") || d.Name() == handler.BundleDir {
			if err := unmountBelow(path); err != nil {
				return err
			}
		}
		if err := sys.RemoveTree(path); err != nil {
			return err
		}
	}
	if kept {
		return nil
	}
	return os.Remove(dir)
}

// unmountBelow detaches what is mounted at path, or is the root in a bundle there.
func unmountBelow(path string) error {
	roots, _ := filepath.Glob(filepath.Join(path, "*", handler.RootDir))
	for _, root := range roots {
		if err := unmount(root); err != nil {
			return err
		}
	}
	return unmount(path)
}

func removeRunDir(dir string) error {
	for _, kind := range namespaceKinds {
		if err := sys.ReleaseNamespace(filepath.Join(dir, kind)); err != nil {
			return err
		}
	}
	if err := unmount(filepath.Join(dir, "shm")); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return os.RemoveAll(dir)
}
