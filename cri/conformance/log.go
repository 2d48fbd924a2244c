package conformance

import (
	"errors"
	"os"
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
