package sys

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Undo collects what must be reversed when a sequence of steps fails. Each
// step adds its reversal right after it succeeded; Run reverses them, last
// first. The zero value is ready to use. It is not safe for concurrent use.
//
//	var undo sys.Undo
//	defer undo.OnError(ctx, &err)
//	…
//	undo.Add("remove cgroup", func(ctx context.Context) error { … })
type Undo struct {
	steps []undoStep
}

type undoStep struct {
	what string
	do   func(context.Context) error
}

// undoTimeout bounds all reversals of one failed operation together.
const undoTimeout = 30 * time.Second

// Add registers the reversal of a step that has just succeeded.
func (u *Undo) Add(what string, do func(context.Context) error) {
	u.steps = append(u.steps, undoStep{what, do})
}

// Run reverses all steps, last first, even if some of them fail, and joins
// their errors. It works on after ctx was cancelled. A second Run does nothing.
func (u *Undo) Run(ctx context.Context) error {
	if len(u.steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i].do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo: %s: %w", u.steps[i].what, err))
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}

// OnError is for defer: it runs the reversals if *err is set, and joins their
// errors to it.
func (u *Undo) OnError(ctx context.Context, err *error) {
	if *err != nil {
		*err = errors.Join(*err, u.Run(ctx))
	}
}
