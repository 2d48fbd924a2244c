package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Probe asks the runtime what it can do. One that is not there, or does not know
// the question, can do nothing beyond the specification's first version.
func (h *OCI) Probe(ctx context.Context) error {
	out, err := h.output(ctx, "features")
	if err != nil {
		return err
	}
	var f features.Features
	if err := json.Unmarshal(out, &f); err != nil {
		return fmt.Errorf("%s features: %w", h.Name, err)
	}
	h.Version = f.OCIVersionMax
	h.Supports.RecursiveReadOnlyMounts = slices.Contains(f.MountOptions, "rro")
	// Pods with a user namespace need their root and volumes idmapped: the former
	// is not done for other runtimes here, so that the latter alone says nothing.
	h.Supports.UserNamespaces = false
	return nil
}
