package hostpath

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		kind corev1.HostPathType
		want string
	}{
		{dir, corev1.HostPathDirectory, ""},
		{dir, corev1.HostPathFile, "is not a file"},
		{dir + "/f", corev1.HostPathFile, ""},
		{dir + "/f", corev1.HostPathDirectory, "is not a directory"},
		{dir + "/f", corev1.HostPathDirectoryOrCreate, "is not a directory"},
		{dir + "/new/dir", corev1.HostPathDirectoryOrCreate, ""},
		{dir + "/newfile", corev1.HostPathFileOrCreate, ""},
		{dir + "/none", corev1.HostPathDirectory, "no such file"},
		{dir + "/none", corev1.HostPathSocket, "no such file"},
		{"/dev/null", corev1.HostPathCharDev, ""},
		{"/dev/null", corev1.HostPathBlockDev, "is not a block device"},
		{dir, corev1.HostPathSocket, "is not a socket"},
	} {
		err := Check(c.path, c.kind)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s as %q: %v, want %q", c.path, c.kind, err, c.want)
		}
	}
}

// TestChecker has a program look that takes as long as a pipe is open. (A path that
// is not absolute may be anywhere, and is not looked at here.)
func TestChecker(t *testing.T) {
	dir := t.TempDir()
	pipe, runs := filepath.Join(dir, "pipe"), filepath.Join(dir, "runs")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Checker{Program: []string{"sh", "-c", `echo >>"$1"; exec cat "$0"`, pipe, runs}}
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	// Who comes when the process is as good as gone has another one look.
	go func() { gone <- c.Check(ctx, "far", corev1.HostPathDirectory) }()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "far: the file system does not answer") {
		t.Errorf("who goes away is told %v", err)
	}
	var wg sync.WaitGroup
	stay := make([]error, 3)
	for i := range stay {
		wg.Go(func() { stay[i] = c.Check(t.Context(), "far", corev1.HostPathDirectory) })
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	users := func() int { // all are to wait for the same process
		c.mu.Lock()
		defer c.mu.Unlock()
		if a := c.asked["Directory far"]; a != nil && !a.left {
			return a.users
		}
		return 0
	}
	for end := time.Now().Add(time.Minute); users() < len(stay); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%d wait", users())
		}
	}
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("far is a file\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	wg.Wait()
	for _, err := range stay {
		if err == nil || err.Error() != "far is a file" {
			t.Errorf("who waits is told %v", err)
		}
	}
	if data, err := os.ReadFile(runs); err != nil || len(data) > 2 {
		t.Errorf("%d processes looked, %v", len(data), err)
	}
	if err := (&Checker{Program: []string{"false"}}).Check(t.Context(), "far", corev1.HostPathFile); err == nil || !strings.Contains(err.Error(), "look at far") {
		t.Errorf("a look that fails: %v", err)
	}
	if err := (&Checker{Program: []string{"false"}}).Check(t.Context(), dir, corev1.HostPathDirectory); err != nil {
		t.Errorf("what is near was not looked at here: %v", err)
	}
}
