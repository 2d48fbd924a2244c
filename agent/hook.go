package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/probe"
)

// hookTarget runs lifecycle hooks against one container.
type hookTarget struct{ probe.Target }

func newHookTarget(n *node, spec *corev1.Container, id, ip string) hookTarget {
	return hookTarget{probe.Target{Spec: spec, PodIP: ip, Exec: n.exec(id)}}
}

// hook runs a hook for at most the given time.
func (t hookTarget) hook(ctx context.Context, h *corev1.LifecycleHandler, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	switch {
	case h.Exec != nil:
		out, code, err := t.Exec(ctx, h.Exec.Command, most)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("command %q exited with %d: %s", strings.Join(h.Exec.Command, " "), code, strings.TrimSpace(string(out[:min(len(out), 1024)])))
		}
		return nil
	case h.HTTPGet != nil:
		ok, output, err := t.HTTPGet(ctx, h.HTTPGet, most)
		if err == nil && !ok {
			err = errors.New(output)
		}
		return err
	case h.Sleep != nil:
		pause(ctx, time.Duration(h.Sleep.Seconds)*time.Second)
		return nil
	}
	return errors.New("the hook has no action")
}

func sameProbes(a, b *corev1.Container) bool {
	return same(a.StartupProbe, b.StartupProbe) && same(a.LivenessProbe, b.LivenessProbe) && same(a.ReadinessProbe, b.ReadinessProbe)
}

func same(a, b *corev1.Probe) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.String() == b.String()
}
