package handler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"
)

var _ Dumper = (*OCI)(nil)

// ErrDump is in the error if a runtime could not do it.
var ErrDump = errors.New("the runtime cannot checkpoint this container")

// Checkpoint implements Dumper by the runtime's command of that name. Its restore
// is not used: nobody would look at what an archive of unknown origin makes of a
// container before it runs.
func (h *OCI) Checkpoint(ctx context.Context, c Checkpoint) error {
	program, err := h.program()
	if err != nil {
		return err
	}
	log := filepath.Join(c.Work, "runtime.log")
	argv := h.argv(program, log, "checkpoint", "--image-path", c.Images, "--work-path", c.Work,
		"--leave-running", "--tcp-established", "--file-locks", c.ID)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = environment()
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s checkpoint: %w: %w: %s", h.Name, ErrDump, h.explain(err, log), tail(stderr.String()))
	}
	return nil
}
