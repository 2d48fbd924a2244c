package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
)

// logQuiet is for how long nothing may come of the logs of pods that are gone
// until they have been read. The node looks for the end of a container whose log
// it follows once a second only.
const logQuiet = 100 * time.Millisecond

// logStreams print the logs of containers, from their beginning on and also while
// their pods are taken down, as their last words are often those that matter.
type logStreams struct {
	client      *client.Client
	out, errOut io.Writer
	ctx         context.Context
	cancel      context.CancelFunc
	seen        map[string]bool // by container ID
	opening     sync.WaitGroup
	reading     sync.WaitGroup
	lines       atomic.Int64

	mu    sync.Mutex // of out and width
	width int
}

func newLogStreams(u *up, c *client.Client) *logStreams {
	l := &logStreams{client: c, out: u.out, errOut: u.errOut, seen: map[string]bool{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// add follows the log of a container, once.
func (l *logStreams) add(pod podKey, s corev1.ContainerStatus) {
	if l.seen[s.ContainerID] {
		return
	}
	l.seen[s.ContainerID] = true
	l.opening.Add(1)
	l.reading.Go(func() { l.follow(pod, s.Name) })
}

func (l *logStreams) follow(pod podKey, container string) {
	r, err := l.client.Logs(l.ctx, pod.namespace, pod.name, client.LogOptions{Container: container, Follow: true})
	l.opening.Done()
	if err != nil {
		if l.ctx.Err() == nil {
			fmt.Fprintf(l.errOut, "log of %s: %v\n", container, err)
		}
		return
	}
	defer r.Close()
	for br := bufio.NewReader(r); ; {
		line, err := br.ReadString('\n')
		if line != "" {
			l.print(container, strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			return
		}
	}
}

// print writes a line with the container's name before it, aligned.
func (l *logStreams) print(name, text string) {
	l.lines.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.width = max(l.width, len(name))
	fmt.Fprintf(l.out, "%-*s | %s\n", l.width, name, text)
}

// awaitOpen returns when the node reads every log, so that no removal comes first,
// or with false when the user does not want to wait.
func (l *logStreams) awaitOpen(unwanted <-chan os.Signal) bool {
	open := make(chan struct{})
	go func() {
		l.opening.Wait()
		close(open)
	}()
	select {
	case <-open:
		return true
	case <-unwanted:
		return false
	}
}

// drain returns when the logs have ended, or nothing comes any more.
func (l *logStreams) drain() {
	ended := make(chan struct{})
	go func() {
		l.reading.Wait()
		close(ended)
	}()
	for before := int64(-1); l.lines.Load() != before; {
		before = l.lines.Load()
		select {
		case <-ended:
		case <-time.After(logQuiet):
		}
	}
}

func (l *logStreams) close() {
	l.cancel()
	l.reading.Wait()
}
