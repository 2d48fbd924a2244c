package remote

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// subscribed is how long a runtime may take to say that it has subscribed the
// caller. Our own says so at once, by the stream's header. Others send the
// header with the first event, and are taken to have subscribed after this time.
const subscribed = time.Second

// ContainerEvents delivers the runtime's events. A runtime without them
// (containerd 1.6) returns Unimplemented. A stream that the runtime ends
// without an error is Unavailable.
func (r *Runtime) ContainerEvents(ctx context.Context, ready func(), yield func(*runtimeapi.ContainerEventResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return err
	}
	if awaitSubscription(stream) && ready != nil {
		ready()
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return cri.Errorf(codes.Unavailable, "the runtime ended its stream of events")
		}
		if err != nil {
			return err
		}
		if err := yield(event); err != nil {
			return err
		}
	}
}

// awaitSubscription tells whether the stream may be taken as subscribed; if it
// ended instead, the reason shows at its first Recv.
func awaitSubscription(stream grpc.ClientStream) bool {
	header := make(chan bool, 1)
	go func() {
		md, err := stream.Header() // returns at the latest when the call ends
		header <- err == nil && md != nil
	}()
	timer := time.NewTimer(subscribed)
	defer timer.Stop()
	select {
	case open := <-header:
		return open
	case <-timer.C:
		return true
	}
}
