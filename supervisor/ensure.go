package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
)

// CommandEnv names the supervisor's executable, if it is not beside the
// caller's own.
const CommandEnv = "PODSTEAD_SUPERVISOR"

// command is the supervisor's file name.
const command = "podstead-supervisor"

// Command returns the path of the supervisor's executable: $PODSTEAD_SUPERVISOR,
// or podstead-supervisor in the directory of the running executable.
func Command() (string, error) {
	if path := os.Getenv(CommandEnv); path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", command, err)
	}
	if filepath.Base(self) == command {
		return self, nil
	}
	path := filepath.Join(filepath.Dir(self), command)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find %s beside %s: %w", command, self, err)
	}
	return path, nil
}

// ensure connects to the supervisor of a run directory, and starts one if none
// runs.
func ensure(ctx context.Context, runDir string) (*wire, error) {
	w, err := dial(ctx, runDir)
	if err == nil || !nobodyListens(err) {
		return w, err
	}
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	var ended <-chan error // of the supervisor that was started
	for {
		if ended == nil {
			if ended, err = spawn(runDir); err != nil {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("start supervisor: it does not answer; see %s: %w", daemonLog(runDir), context.Cause(ctx))
		case err := <-ended:
			if err != nil {
				return nil, fmt.Errorf("start supervisor: %w; see %s", err, daemonLog(runDir))
			}
			// Another one holds the lock: it serves soon, or is about to end.
			ended = nil
		case <-time.After(startPause):
		}
		if w, err := dial(ctx, runDir); err == nil || !nobodyListens(err) {
			return w, err
		}
		if ended == nil {
			time.Sleep(startPause)
		}
	}
}

// startPatience is for a machine that is as busy as one that boots: a supervisor
// that cannot start says so by ending.
const (
	startPatience = time.Minute
	startPause    = 5 * time.Millisecond
)

// nobodyListens tells whether starting a supervisor could help.
func nobodyListens(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, ErrDisconnected)
}

// daemonLog is where the supervisor says what goes wrong: not to the output of
// who started it, which would be held open as long as containers run.
func daemonLog(runDir string) string { return filepath.Join(runDir, protocol.DaemonLog) }

// spawn starts a supervisor that outlives its starter. The channel tells if it
// ends, without an error if another one runs.
func spawn(runDir string) (<-chan error, error) {
	path, err := Command()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(daemonLog(runDir), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, "daemon", "--run", runDir)
	cmd.Dir = "/"
	cmd.Env = protocol.SmallPages(os.Environ())
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps it if it ends before us
	return ended, nil
}
