package engine

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"

	"podstead/cri"
	"podstead/engine/internal/forward"
)

// PortForward connects a stream to a port on the pod's loopback.
func (r *streamRuntime) PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error {
	e := (*Engine)(r)
	defer stream.Close()
	s, err := e.mustSandbox(sandboxID)
	if err != nil {
		return err
	}
	rec := s.record()
	if rec.Phase != sandboxReady {
		return cri.Errorf(codes.FailedPrecondition, "pod sandbox %s is not ready", s.id)
	}
	if err := forward.Port(ctx, e.netnsPath(&rec), port, stream); err != nil {
		return fmt.Errorf("forward port %d of pod sandbox %s: %w", port, s.id, err)
	}
	return nil
}
