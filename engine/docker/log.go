package docker

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// logs copies what containers write, from Docker's files to the client's, in
// the CRI's format. Each container that has a log path has a goroutine while it
// runs; it is woken by inotify.
//
// A link to Docker's file, which dockershim made, would cost less. But then the
// client cannot rotate, the format is one that few readers still know, and the
// file goes with the container.
type logs struct {
	log     *slog.Logger
	place   func(id string) string // directory of what is kept of a container
	watcher *fsnotify.Watcher
	life    context.Context
	end     context.CancelFunc
	worker  sync.WaitGroup

	mu   sync.Mutex
	byID map[string]*copying
	done map[string]bool // complete logs, until the container is removed
}

// copying is the log of one container under way.
type copying struct {
	dir    string        // where Docker's files are
	wake   chan struct{} // something was written
	last   chan struct{} // closed when nothing more will be
	once   sync.Once     // closes last
	reopen chan chan error
	opened chan struct{} // closed when the client's file is there, or cannot be
	done   chan struct{} // closed when the goroutine has ended
	life   context.Context
	end    context.CancelFunc
}

func newLogs(place func(id string) string, log *slog.Logger) (*logs, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch logs: %w", err)
	}
	l := &logs{log: log, place: place, watcher: w, byID: map[string]*copying{}, done: map[string]bool{}}
	l.life, l.end = context.WithCancel(context.Background())
	l.worker.Go(l.dispatch)
	return l, nil
}

func (l *logs) close() error {
	l.end()
	err := l.watcher.Close()
	l.worker.Wait()
	return err
}

// dispatch wakes the goroutine of a container when something happens to its
// files.
func (l *logs) dispatch() {
	wake := func(dir string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.byID {
			if dir == "" || c.dir == dir {
				notify(c.wake)
			}
		}
	}
	for {
		select {
		case e, ok := <-l.watcher.Events:
			if !ok {
				return
			}
			wake(filepath.Dir(e.Name))
		case err, ok := <-l.watcher.Errors:
			if !ok {
				return
			}
			l.log.Debug("watch logs", "error", err) // events were lost: look everywhere
			wake("")
		}
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// follow copies the log of a container that was started, unless that is being
// done or is not wanted. It goes on where it was left.
func (l *logs) follow(c *ctr) *copying {
	if c.rec.LogPath == "" || c.seen == nil || c.seen.LogPath == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.byID[c.id]; f != nil || l.done[c.id] || l.life.Err() != nil {
		return f
	}
	f := &copying{
		dir: filepath.Dir(c.seen.LogPath), wake: make(chan struct{}, 1), last: make(chan struct{}),
		reopen: make(chan chan error), opened: make(chan struct{}), done: make(chan struct{}),
	}
	f.life, f.end = context.WithCancel(l.life)
	l.byID[c.id] = f
	l.worker.Go(func() { l.copy(c, f) })
	return f
}

// patrol is how often is looked without being woken, in case a file system has
// no inotify.
const patrol = time.Second

// copy is the goroutine of a container.
func (l *logs) copy(c *ctr, f *copying) {
	complete := false
	defer func() {
		f.end()
		l.mu.Lock()
		delete(l.byID, c.id)
		if complete {
			l.done[c.id] = true
		}
		l.mu.Unlock()
		close(f.done)
	}()
	p, err := openPump(c.seen.LogPath, c.rec.LogPath, l.place(c.id))
	close(f.opened)
	if err != nil {
		l.log.Error("a log is not copied", "container", c.id, "error", err)
		return
	}
	defer p.close()
	if err := l.watcher.Add(f.dir); err == nil {
		defer l.watcher.Remove(f.dir)
	}
	complaint := ""
	for {
		last := false
		select {
		case <-f.last:
			last = true // looked at before the files are, so that nothing comes later
		default:
		}
		more, err := p.run()
		if err != nil && err.Error() != complaint {
			complaint = err.Error()
			l.log.Error("a log is not copied for now", "container", c.id, "error", err)
		}
		if last && err == nil && !more {
			complete = true
			return
		}
		if !l.wait(f, p, last, more) {
			return
		}
	}
}

// wait returns when there may be something to do, which is at once if there is
// more to copy; false if nothing any more.
func (l *logs) wait(f *copying, p *pump, last, more bool) bool {
	if more {
		select {
		case <-f.life.Done():
			return false
		case answer := <-f.reopen:
			answer <- p.reopen()
		default:
		}
		return true
	}
	ended := f.last
	if last {
		ended = nil
	}
	t := time.NewTimer(patrol)
	defer t.Stop()
	select {
	case <-f.life.Done():
		return false
	case answer := <-f.reopen:
		answer <- p.reopen()
	case <-f.wake:
	case <-ended:
	case <-t.C:
	}
	return true
}

// logPatience is how long an exit may wait for its log.
const logPatience = 10 * time.Second

// ended says that a container has ended, and waits until its log is complete.
func (l *logs) ended(ctx context.Context, c *ctr) {
	if nanoseconds(c.state.StartedAt) == 0 {
		return // it never ran
	}
	f := l.follow(c)
	if f == nil {
		return
	}
	f.once.Do(func() { close(f.last) })
	ctx, cancel := context.WithTimeout(ctx, logPatience)
	defer cancel()
	select {
	case <-f.done:
	case <-ctx.Done():
		l.log.Warn("a container has ended, and its log is not copied yet", "container", c.id)
	}
}

// forget ends all that is about a container that was removed.
func (l *logs) forget(id string) {
	l.mu.Lock()
	delete(l.done, id)
	f := l.byID[id]
	l.mu.Unlock()
	if f != nil {
		f.end()
		<-f.done
	}
}

// ReopenContainerLog makes the log continue in a new file at its path, after the
// client renamed the old one.
func (r *Runtime) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := r.mustCtr(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	if !c.state.Running {
		return nil, cri.Errorf(codes.FailedPrecondition, "container %s is %s, not running", c.id, c.state.Status)
	}
	f := r.logs.follow(c)
	if f == nil {
		return nil, cri.Errorf(codes.FailedPrecondition, "container %s has no log", c.id)
	}
	answer := make(chan error, 1)
	select {
	case f.reopen <- answer:
		err = <-answer
	case <-f.done:
		return nil, cri.Errorf(codes.FailedPrecondition, "container %s has just ended", c.id)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, failed(err, "reopen the log of container %s", c.id)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
