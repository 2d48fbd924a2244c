package engine

import (
	"context"
	"maps"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/engine/internal/cdi"
	"podstead/engine/internal/hooks"
)

// adjustSpec applies what others than the request and the image have to say
// about a container, to the specification that was made from those two: first
// the files that describe its devices, and hooks, then plugins, which see all the
// rest.
func (e *Engine) adjustSpec(ctx context.Context, k *creation, s *specs.Spec) error {
	names, err := cdi.Asked(k.config)
	if err != nil {
		return err
	}
	if err := e.devices.Inject(s, names); err != nil {
		return err
	}
	if err := hooks.Add(s, e.settings.Load().Hooks.Dirs, k.forHooks(s)); err != nil {
		return err
	}
	if err := e.askPlugins(ctx, k, s); err != nil {
		return err
	}
	return checkBoundDevices(s)
}

// forHooks is what hooks are chosen by; the container's annotations count for
// more than the pod's.
func (k *creation) forHooks(s *specs.Spec) hooks.Container {
	c := hooks.Container{Annotations: map[string]string{}, HasBindMounts: len(k.config.Mounts) > 0}
	maps.Copy(c.Annotations, k.sandbox.config().GetAnnotations())
	maps.Copy(c.Annotations, k.config.Annotations)
	if len(s.Process.Args) > 0 {
		c.Command = s.Process.Args[0]
	}
	return c
}
