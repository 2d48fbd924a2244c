// Package hostpath checks paths of the host that pods want as volumes. One that is
// on a file system that does not answer, of a network, say, or of a program in user
// space, holds up its pod and nobody else: a process of its own waits for it. It is
// called by the pods' workers. Nothing is kept; a process that the kernel holds
// stays after its caller, until the file system answers or is let go of.
package hostpath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/fsusage"
)

// Check tells whether what is at a path is of a type, and makes what is not there
// if the type says so.
func Check(path string, kind corev1.HostPathType) error {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		switch kind {
		case corev1.HostPathDirectoryOrCreate:
			return os.MkdirAll(path, 0o755)
		case corev1.HostPathFileOrCreate:
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("hostPath type check failed: %w", err)
	}
	var ok bool
	var what string
	mode := st.Mode()
	switch kind {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		ok, what = mode.IsDir(), "directory"
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		ok, what = mode.IsRegular(), "file"
	case corev1.HostPathSocket:
		ok, what = mode&fs.ModeSocket != 0, "socket file"
	case corev1.HostPathCharDev:
		ok, what = mode&fs.ModeCharDevice != 0, "character device"
	case corev1.HostPathBlockDev:
		ok, what = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0, "block device"
	}
	if !ok {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", path, what)
	}
	return nil
}

// Checker checks paths on file systems of any kind. Safe for concurrent use.
type Checker struct {
	// Program writes what Answer does of its last two arguments. Without one there is
	// nobody else to look, and Check waits itself.
	Program []string

	mu    sync.Mutex
	asked map[string]*asked
}

// asked is a process that looks at a path; done is closed when it has ended.
type asked struct {
	done   chan struct{}
	cancel context.CancelFunc
	users  int
	left   bool // by all at some time
	err    error
}

// Check is Check for a path that may not answer; then it returns when ctx ends.
// Who asks again for a path meanwhile has no other process wait.
func (c *Checker) Check(ctx context.Context, path string, kind corev1.HostPathType) error {
	if len(c.Program) == 0 || fsusage.Local(path) {
		return Check(path, kind)
	}
	key := string(kind) + " " + path
	for {
		a, over := c.join(ctx, key, path, kind)
		select {
		case <-a.done:
			c.leave(a)
			if !over {
				return a.err
			}
		case <-ctx.Done():
			c.leave(a)
			return fmt.Errorf("%s: the file system does not answer: %w", path, ctx.Err())
		}
	}
}

// join has a process look, or finds the one that does. It is over with one that
// everybody else has left: its end is to be waited for.
func (c *Checker) join(ctx context.Context, key, path string, kind corev1.HostPathType) (a *asked, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.asked[key]
	if !ok {
		a = &asked{done: make(chan struct{})}
		var life context.Context
		life, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
		if c.asked == nil {
			c.asked = map[string]*asked{}
		}
		c.asked[key] = a
		go c.ask(life, a, key, path, kind)
	}
	a.users++
	return a, a.left
}

// leave ends the process that nobody waits for any more, if the kernel lets it.
func (c *Checker) leave(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.users--; a.users == 0 {
		a.left = true
		a.cancel()
	}
}

func (c *Checker) ask(ctx context.Context, a *asked, key, path string, kind corev1.HostPathType) {
	defer close(a.done)
	defer func() {
		c.mu.Lock()
		delete(c.asked, key)
		c.mu.Unlock()
	}()
	var out, said bytes.Buffer
	n := len(c.Program)
	cmd := exec.CommandContext(ctx, c.Program[0], append(c.Program[1:n:n], path, string(kind))...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		a.err = fmt.Errorf("look at %s: %w: %s", path, err, strings.TrimSpace(said.String()))
	} else if out.Len() > 0 {
		a.err = errors.New(strings.TrimSpace(out.String()))
	}
}

// Answer writes what is wrong with a path, for Checker.Check; nothing if it is well.
func Answer(w io.Writer, path string, kind corev1.HostPathType) error {
	if wrong := Check(path, kind); wrong != nil {
		_, err := fmt.Fprintln(w, wrong)
		return err
	}
	return nil
}
