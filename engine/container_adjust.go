package engine

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/engine/internal/cdi"
)

// adjustSpec applies what others than the request and the image have to say
// about a container, to the specification that was made from those two.
func (e *Engine) adjustSpec(k *creation, s *specs.Spec) error {
	names, err := cdi.Asked(k.config)
	if err != nil {
		return err
	}
	return e.devices.Inject(s, names)
}
