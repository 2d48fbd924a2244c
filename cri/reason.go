package cri

import (
	"errors"
	"fmt"
)

// Reasons that the kubelet knows by the word with which an error begins
// (k8s.io/cri-api/pkg/errors).
const (
	ImageVolumeMountFailed = "ImageVolumeMountFailed"
	RROUnsupported         = "RROUnsupported"
)

// reasoned is an error whose reason is told by LeadWithReason.
type reasoned struct {
	reason string
	error
}

func (r *reasoned) Unwrap() error { return r.error }

// WithReason gives err a reason, however deep it will be wrapped.
func WithReason(reason string, err error) error { return &reasoned{reason, err} }

// LeadWithReason puts the reason that err was given, if any, where the kubelet
// looks for it: at the very beginning.
func LeadWithReason(err error) error {
	var r *reasoned
	if !errors.As(err, &r) {
		return err
	}
	return fmt.Errorf("%s: %w", r.reason, err)
}
