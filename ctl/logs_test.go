package ctl

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writeLog writes a log of the CRI's format; each line is "stream tag text".
func writeLog(t *testing.T, lines ...string) string {
	t.Helper()
	var b strings.Builder
	for i, line := range lines {
		fmt.Fprintf(&b, "%s %s\n", time.Unix(int64(i), 5).UTC().Format(time.RFC3339Nano), line)
	}
	path := filepath.Join(t.TempDir(), "c.log")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLogs(t *testing.T) {
	lines := []string{"stdout F one", "stderr F two", "stdout P thr", "stdout F ee", "stdout F "}
	for name, test := range map[string]struct {
		reader         logReader
		stdout, stderr string
	}{
		"all":        {logReader{tail: -1}, "one\nthree\n\n", "two\n"},
		"last two":   {logReader{tail: 2}, "ee\n\n", ""},
		"more":       {logReader{tail: 100}, "one\nthree\n\n", "two\n"},
		"none":       {logReader{tail: 0}, "", ""},
		"too old":    {logReader{tail: -1, since: time.Hour}, "", ""},
		"timestamps": {logReader{tail: 1, timestamps: true}, "1970-01-01T00:00:04.000000005Z \n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := test.reader.print(context.Background(), writeLog(t, lines...), &stdout, &stderr, func() bool { return false })
			if err != nil || stdout.String() != test.stdout || stderr.String() != test.stderr {
				t.Errorf("stdout %q, stderr %q, error %v; want %q, %q", &stdout, &stderr, err, test.stdout, test.stderr)
			}
		})
	}
}

func TestLogsTailOfManyBlocks(t *testing.T) {
	lines := make([]string, 20000)
	for i := range lines {
		lines[i] = fmt.Sprint("stdout F ", i)
	}
	var stdout bytes.Buffer
	l := logReader{tail: 15000}
	if err := l.print(context.Background(), writeLog(t, lines...), &stdout, &stdout, nil); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(stdout.String(), "\n"); n != 15000 || !strings.HasPrefix(stdout.String(), "5000\n") {
		t.Errorf("%d lines, the first of which is %.10q", n, stdout.String())
	}
}

func TestLogsFollowARotation(t *testing.T) {
	path := writeLog(t, "stdout F one")
	asked := 0
	running := func() bool {
		asked++
		if asked == 2 {
			next := writeLog(t, "stdout F two")
			if err := os.Rename(next, path); err != nil {
				t.Fatal(err)
			}
		}
		return asked < 5
	}
	var stdout bytes.Buffer
	l := logReader{tail: -1, follow: true}
	if err := l.print(context.Background(), path, &stdout, &stdout, running); err != nil || stdout.String() != "one\ntwo\n" {
		t.Errorf("output %q, error %v", &stdout, err)
	}
}

func TestLogsRefuseWhatIsNoLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	os.WriteFile(path, []byte("not a log line at all\n"), 0o600)
	l := logReader{tail: -1}
	if err := l.print(context.Background(), path, &bytes.Buffer{}, &bytes.Buffer{}, nil); err == nil {
		t.Error("no error")
	}
}

func TestSize(t *testing.T) {
	for bytes, want := range map[uint64]string{0: "0B", 999: "999B", 1000: "1kB", 1234567: "1.235MB", 5e18: "5EB"} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d) is %q, want %q", bytes, got, want)
		}
	}
}
