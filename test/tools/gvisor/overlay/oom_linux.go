// Package sys takes the place of a file of containerd's while gVisor's shim is
// built for the tests: that shim does not start where it takes a capability that
// a host's root may not have (CAP_SYS_RESOURCE) to protect itself from the
// kernel's OOM killer. Here it goes on without.
package sys

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// The range of scores.
const (
	OOMScoreAdjMin = -1000
	OOMScoreAdjMax = 1000
)

func file(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/oom_score_adj" }

// AdjustOOMScore sets a score that may be out of range.
func AdjustOOMScore(pid, score int) error {
	return SetOOMScore(pid, max(OOMScoreAdjMin, min(score, OOMScoreAdjMax)))
}

// SetOOMScore sets a score if that may be done.
func SetOOMScore(pid, score int) error {
	err := os.WriteFile(file(pid), strconv.AppendInt(nil, int64(score), 10), 0)
	if errors.Is(err, os.ErrPermission) {
		return nil
	}
	return err
}

// GetOOMScoreAdj returns a process's score.
func GetOOMScoreAdj(pid int) (int, error) {
	b, err := os.ReadFile(file(pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
