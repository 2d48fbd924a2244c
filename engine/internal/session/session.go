// Package session has what the streams of exec, attach and port-forward need,
// whatever runs the containers.
package session

import (
	"context"
	"sync"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Until ends a stream's context with the life of its server, too.
func Until(ctx, life context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(life, cancel)
	return ctx, func() { stop(); cancel() }
}

// Follow calls resize for every size until the returned function is called,
// which waits for the last call.
func Follow(sizes <-chan remotecommand.TerminalSize, resize func(remotecommand.TerminalSize)) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case s, ok := <-sizes:
				if !ok {
					return
				}
				resize(s)
			}
		}
	}()
	var once sync.Once
	return func() { once.Do(func() { close(quit) }); <-done }
}
