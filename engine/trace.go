package engine

import (
	"context"

	"podstead/cri/tracing"
)

// traced does one step of a verb, as a part of the verb's span.
func traced(ctx context.Context, what string, do func(context.Context) error) error {
	ctx, end := tracing.Span(ctx, what)
	err := do(ctx)
	end(err)
	return err
}
