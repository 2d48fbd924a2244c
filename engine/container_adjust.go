package engine

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/engine/internal/cdi"
)

// adjustSpec applies what others than the request and the image have to say
// about a container, to the specification that was made from those two: first
// the files that describe its devices, then plugins, which see all the rest.
func (e *Engine) adjustSpec(ctx context.Context, k *creation, s *specs.Spec) error {
	names, err := cdi.Asked(k.config)
	if err != nil {
		return err
	}
	if err := e.devices.Inject(s, names); err != nil {
		return err
	}
	if err := e.askPlugins(ctx, k, s); err != nil {
		return err
	}
	return checkBoundDevices(s)
}
