package engine

import (
	"context"

	"podstead/engine/internal/selinux"
)

// usesSELinux tells whether what is made now gets labels.
func (e *Engine) usesSELinux() bool {
	return e.host.spec.SELinux && !e.settings.Load().SELinux.Disabled
}

// labelSandbox chooses the SELinux labels of a new pod, whose categories no
// other pod has.
func (e *Engine) labelSandbox(s *sandbox) error {
	rec := s.record()
	o := rec.config().GetLinux().GetSecurityContext().GetSelinuxOptions()
	if !e.usesSELinux() {
		if o != nil {
			e.log.Warn("a pod's SELinux options have no effect on this host", "pod", s.id)
		}
		return nil
	}
	// Who chooses next sees what was chosen here.
	e.labelling.Lock()
	defer e.labelling.Unlock()
	labels, err := selinux.ForPod(o, e.levelTaken)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.rec.Labels = labels
	s.mu.Unlock()
	return nil
}

// levelTaken tells whether a pod or a container has a level.
func (e *Engine) levelTaken(level string) bool {
	for _, s := range e.allSandboxes() {
		if selinux.Level(s.record().Labels.Mount) == level {
			return true
		}
	}
	for _, c := range e.allContainers() {
		if selinux.Level(c.record().Labels.Mount) == level {
			return true
		}
	}
	return false
}

// labelContainer derives a container's labels from its pod's.
func (e *Engine) labelContainer(_ context.Context, k *creation) error {
	sc := k.config.GetLinux().GetSecurityContext()
	labels := k.sandbox.Labels
	if labels != (selinux.Labels{}) || e.usesSELinux() {
		var err error
		if labels, err = labels.ForContainer(sc.GetSelinuxOptions(), sc.GetPrivileged()); err != nil {
			return err
		}
	}
	return e.changeContainer(k.c, func(r *containerRecord) { r.Labels = labels })
}
