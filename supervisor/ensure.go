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
	if err := spawn(runDir); err != nil {
		return nil, err
	}
	const pause = 5 * time.Millisecond
	for tries := 0; ; tries++ {
		w, err := dial(ctx, runDir)
		if err == nil || !nobodyListens(err) {
			return w, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), err)
		case <-time.After(pause):
		}
		if tries*int(pause) > int(10*time.Second) {
			return nil, fmt.Errorf("start supervisor: it does not answer; see %s: %w", daemonLog(runDir), err)
		}
	}
}

// nobodyListens tells whether starting a supervisor could help.
func nobodyListens(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, ErrDisconnected)
}

// daemonLog is where the supervisor says what goes wrong: not to the output of
// who started it, which would be held open as long as containers run.
func daemonLog(runDir string) string { return filepath.Join(runDir, protocol.DaemonLog) }

// spawn starts a supervisor that outlives its starter. If another one starts
// at the same time, one of them ends at once.
func spawn(runDir string) error {
	path, err := Command()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(daemonLog(runDir), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(path, "daemon", "--run", runDir)
	cmd.Dir = "/"
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	go cmd.Wait() // reaps it if it ends before us
	return nil
}
