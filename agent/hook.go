package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
	"podstead/agent/internal/flight"
)

// hook runs a lifecycle hook of a container for at most the given time; 0: for as
// long as it takes.
func (j job) hook(ctx context.Context, id, name string, h *corev1.LifecycleHandler, most time.Duration) (err error) {
	done := flight.Watch(ctx, client.FlightStep, name+" hook")
	defer func() { done(err) }()
	if most > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, most)
		defer cancel()
	}
	t := j.target(id)
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
		plain, err := t.Hook(ctx, h.HTTPGet)
		if plain && err == nil {
			j.event(j.pod, j.spec.Name, corev1.EventTypeWarning, "LifecycleHTTPFallback",
				"request to HTTPS lifecycle hook got HTTP response, retry with HTTP succeeded")
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
