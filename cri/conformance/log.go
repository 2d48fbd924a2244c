package conformance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var logTests = []test{
	{"format", "ContainerConfig.log_path PodSandboxConfig.log_directory", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "echo out; echo err >&2; echo; printf 'no newline'")
		c.exited(t)
		lines := c.logLines(t)
		var stdout, stderr []string
		for _, l := range lines {
			if _, err := time.Parse(time.RFC3339Nano, l.time); err != nil {
				t.Errorf("time: %v", err)
			}
			if l.stream == "stderr" {
				stderr = append(stderr, l.tag+" "+l.text)
			} else {
				stdout = append(stdout, l.tag+" "+l.text)
			}
		}
		// The last line is partial for one runtime and full for another.
		got := strings.Join(stdout, "\n")
		if got != "F out\nF \nF no newline" && got != "F out\nF \nP no newline" {
			t.Errorf("standard output is logged as %q", stdout)
		}
		if strings.Join(stderr, "\n") != "F err" {
			t.Errorf("standard error is logged as %q", stderr)
		}
	}},
	{"long lines", "ContainerConfig.log_path", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "head -c 100000 /dev/zero | tr '\\0' x; echo; echo after")
		c.exited(t)
		lines := c.logLines(t)
		if len(lines) < 3 {
			t.Fatalf("%d lines, want the long one in parts", len(lines))
		}
		for i, l := range lines[:len(lines)-1] {
			if last := i == len(lines)-2; (l.tag == "F") != last {
				t.Errorf("part %d has tag %s", i, l.tag)
			}
		}
		if got := c.log(t); got != strings.Repeat("x", 100000)+"\nafter\n" {
			t.Errorf("put together it has %d bytes", len(got))
		}
	}},
	{"a huge line, and no newline", "ContainerConfig.log_path", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "head -c 900000 /dev/zero | tr '\\0' x")
		c.exited(t)
		n := 0
		for _, l := range c.logLines(t) {
			if len(l.text) > 64<<10 {
				t.Fatalf("a part has %d bytes", len(l.text))
			}
			n += len(l.text)
		}
		if n != 900000 {
			t.Errorf("%d bytes are logged", n)
		}
	}},
	{"binary data", "ContainerConfig.log_path", func(t *testing.T, s *suite) {
		dir := t.TempDir()
		c := s.pod(t).sh(t, "head -c 300000 /dev/urandom > /m/data; cat /m/data; echo", mounts(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m"}))
		c.exited(t)
		want, err := os.ReadFile(filepath.Join(dir, "data"))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.log(t); got != string(want)+"\n" {
			t.Errorf("%d bytes are logged, and are not the %d that were written", len(got), len(want))
		}
	}},
	{"rotated while it is written", "ReopenContainerLog", logRotation},
	{"its directory is deleted", "ReopenContainerLog", func(t *testing.T, s *suite) {
		p := s.pod(t)
		dir := t.TempDir()
		c := p.sh(t, "echo one; while ! test -e /m/go; do echo more; sleep 0.05; done; exit 9", mounts(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m"}))
		eventually(t, "the log has a line", func() bool { return strings.HasPrefix(c.log(t), "one\n") })
		if err := os.RemoveAll(p.config.GetLogDirectory()); err != nil {
			t.Fatal(err)
		}
		// It may fail or begin anew: the container must not notice.
		s.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
		if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if status := c.exited(t); status.GetExitCode() != 9 {
			t.Errorf("it ended with %d (%s)", status.GetExitCode(), status.GetMessage())
		}
	}},
	{"all of it is there when the exit is seen", "ContainerConfig.log_path", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "seq 1 20000")
		c.exited(t)
		if got := strings.Count(c.log(t), "\n"); got != 20000 {
			t.Errorf("%d lines, want 20000", got)
		}
	}},
	{"reopen after a rename", "ReopenContainerLog ReopenContainerLogRequest.container_id", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "echo one; while ! test -e /go; do sleep 0.05; done; echo two; sleep 1000")
		c.says(t, "one\n")
		if err := os.Rename(c.logFile, c.logFile+".1"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
			t.Fatal(err)
		}
		if got := c.log(t); got != "" {
			t.Errorf("the new file begins with %q", got)
		}
		c.exec(t, "touch", "/go")
		c.says(t, "two\n")
		c.logFile += ".1"
		if got := c.log(t); got != "one\n" {
			t.Errorf("the old file has %q", got)
		}
	}},
	{"reopen of an exited container makes no file", "ReopenContainerLog", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "true")
		c.exited(t)
		if err := os.Rename(c.logFile, c.logFile+".1"); err != nil {
			t.Fatal(err)
		}
		_, err := s.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
		wantError(t, "reopen", err)
		if _, err := os.Stat(c.logFile); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a new file was made (stat: %v)", err)
		}
	}},
	{"none asked for", "", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "echo x; exit 6", func(config *runtimeapi.ContainerConfig) { config.LogPath = "" })
		if got := c.exited(t).GetExitCode(); got != 6 {
			t.Errorf("exit code is %d", got)
		}
	}},
	{"of a terminal", "ContainerConfig.tty", func(t *testing.T, s *suite) {
		c := s.pod(t).sh(t, "echo out; echo err >&2", func(config *runtimeapi.ContainerConfig) { config.Tty = true })
		if got := strings.ReplaceAll(c.output(t), "\r", ""); got != "out\nerr\n" {
			t.Errorf("log is %q", got)
		}
	}},
}

// logRotation renames the log as the kubelet does, while lines come: none is
// lost, doubled or out of order.
func logRotation(t *testing.T, s *suite) {
	dir := t.TempDir()
	c := s.pod(t).sh(t, "i=0; while ! test -e /m/go; do i=$((i+1)); echo $i; done; echo end $i", mounts(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m"}))
	var files []string
	for i := range 5 {
		eventually(t, "the log has some lines", func() bool {
			info, err := os.Stat(c.logFile)
			return err == nil && info.Size() > 10000
		})
		files = append(files, fmt.Sprintf("%s.%d", c.logFile, i))
		if err := os.Rename(c.logFile, files[i]); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.exited(t)
	all, n := "", 0
	for _, file := range append(files, c.logFile) {
		c.logFile = file
		all += c.log(t)
	}
	for line := range strings.Lines(all) {
		n++
		if line != fmt.Sprintln(n) && line != fmt.Sprintf("end %d\n", n-1) {
			t.Fatalf("line %d is %q", n, line)
		}
	}
	if !strings.HasSuffix(all, fmt.Sprintf("end %d\n", n-1)) {
		t.Errorf("the last of %d lines is missing", n)
	}
}

// logLine is one line of a CRI log file.
type logLine struct{ time, stream, tag, text string }

var logPattern = regexp.MustCompile(`^(\S+) (stdout|stderr) ([FP])(?::\S*)? (.*)$`)

// logLines reads the container's log file, every line of which must be well
// formed.
func (c *container) logLines(t *testing.T) []logLine {
	t.Helper()
	b, err := os.ReadFile(c.logFile)
	if err != nil {
		t.Fatalf("read log: %v", err)
	}
	var lines []logLine
	// What follows the last newline is being written.
	for line := range strings.Lines(string(b)) {
		text, whole := strings.CutSuffix(line, "\n")
		if !whole {
			break
		}
		m := logPattern.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("log line %q is malformed", text)
		}
		lines = append(lines, logLine{m[1], m[2], m[3], m[4]})
	}
	return lines
}

// log puts the lines together, of both streams.
func (c *container) log(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, l := range c.logLines(t) {
		b.WriteString(l.text)
		if l.tag == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}
