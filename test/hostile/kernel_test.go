package hostile

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"podstead/test/host"
	"podstead/test/leak"
)

// runShell runs a script in a mount namespace of its own that ends with
// podstead and its arguments, until that ends or has told the causes, and a minute
// at most.
func runShell(t *testing.T, causes []string, script string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", script, os.Getenv(programVariable)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	heard := &causesHeard{causes: causes, then: cancel}
	cmd.Stdout, cmd.Stderr = heard, heard
	err := cmd.Run()
	return heard.out.String(), err
}

// causesHeard is output, and calls then when all causes are in it.
type causesHeard struct {
	out    bytes.Buffer
	causes []string
	then   func()
}

func (h *causesHeard) Write(b []byte) (int, error) {
	n, err := h.out.Write(b)
	if !slices.ContainsFunc(h.causes, func(c string) bool { return !strings.Contains(h.out.String(), c) }) {
		h.then()
	}
	return n, err
}

// TestMissing starts a node where something is not as it must be.
func TestMissing(t *testing.T) {
	host.Require(t)
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs busybox-static")
	}
	const mount, umount = "/bin/busybox mount ", "/bin/busybox umount " // others leave files in /run
	for name, test := range map[string]struct {
		script string
		causes []string
	}{
		"no cgroups":      {`for m in /sys/fs/cgroup/*; do ` + umount + `-l $m || :; done; ` + umount + `-l /sys/fs/cgroup`, []string{"/sys/fs/cgroup"}},
		"read-only state": {mount + `-t tmpfs -o ro none "$S"`, []string{"read-only file system"}},
		"state is a file": {`rm -r "$S"; echo > "$S"`, []string{"/state"}},
		"run is a file":   {`rm -r "$R"; echo > "$R"`, []string{"not a directory"}},
		"read-only run":   {mount + `-t tmpfs -o ro none "$R"`, []string{"read-only file system"}},
		"no proc":         {umount + `-l /proc; ` + mount + `-t tmpfs none /proc`, []string{"/proc"}},
		"path too long":   {`shift 5; R="$R/` + string(bytes.Repeat([]byte("x"), 120)) + `"; set -- node --state "$S" --run "$R"`, []string{"--run", "bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t, leak.Scope{Dirs: []string{"/run"}})
			state, run := filepath.Join(t.TempDir(), "state"), filepath.Join("/run", "missing")
			for _, dir := range []string{state, run} {
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() { os.RemoveAll(run) })
			t.Setenv("S", state)
			t.Setenv("R", run)
			script := "set -e; " + mount + "--make-rprivate /; " + test.script + `; exec "$0" "$@"`
			out, err := runShell(t, test.causes, script, "node", "--state", state, "--run", run)
			// Either it ends by itself, or it tries again and again, and says why.
			if err == nil {
				t.Errorf("the node ended as if all were well:\n%s", out)
			}
			wantError(t, "start", errors.New(out), test.causes...)
		})
	}
}
