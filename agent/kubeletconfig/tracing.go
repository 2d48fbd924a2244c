package kubeletconfig

import (
	"fmt"

	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/cri/tracing"
)

// Tracing is where a configuration wants traces sent; nil: nowhere. Errors name
// the field.
func Tracing(c *kubelet.KubeletConfiguration) (*tracing.Settings, error) {
	if c.Tracing == nil {
		return nil, nil
	}
	s := &tracing.Settings{}
	if c.Tracing.Endpoint != nil {
		s.Endpoint = *c.Tracing.Endpoint
	}
	if c.Tracing.SamplingRatePerMillion != nil {
		s.PerMillion = *c.Tracing.SamplingRatePerMillion
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("tracing.%w", err)
	}
	return s, nil
}
