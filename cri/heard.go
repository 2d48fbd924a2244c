package cri

import (
	"context"
	"time"
)

// onTheWay is how long an answer may take to its caller.
const onTheWay = time.Second

// Heard tells whether the caller of a verb can be counted on to get the answer
// that is given now: it has not left, and does not leave while the answer is on
// its way. Whoever may not have heard may ask the same again.
func Heard(ctx context.Context) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < onTheWay {
		return false
	}
	return ctx.Err() == nil
}
