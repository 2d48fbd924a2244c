package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	kubelet "k8s.io/kubelet/config/v1beta1"
)

// self is what a KubeletConfiguration says of the process that is the agent; nil
// is as it was started.
type self struct {
	oomScoreAdj  *int32
	maxOpenFiles *int64
}

// readSelf checks it. Errors name the field.
func readSelf(c *kubelet.KubeletConfiguration) (self, error) {
	s := self{oomScoreAdj: c.OOMScoreAdj}
	if v := c.OOMScoreAdj; v != nil && (*v < -1000 || *v > 1000) {
		return s, fmt.Errorf("oomScoreAdj: %d is not between -1000 and 1000", *v)
	}
	if c.MaxOpenFiles < 0 {
		return s, fmt.Errorf("maxOpenFiles: %d is negative", c.MaxOpenFiles)
	}
	if c.MaxOpenFiles > 0 {
		s.maxOpenFiles = &c.MaxOpenFiles
	}
	return s, nil
}

// apply changes this process. What needs more privilege than it has is warned
// about: pods do not depend on it.
func (s self) apply(log *slog.Logger) {
	if v := s.oomScoreAdj; v != nil {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(int(*v))), 0); err != nil {
			log.Warn("oomScoreAdj has no effect", "want", *v, "error", err)
		}
	}
	if v := s.maxOpenFiles; v != nil {
		limit := unix.Rlimit{Cur: uint64(*v), Max: uint64(*v)}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			log.Warn("maxOpenFiles has no effect", "want", *v, "error", err)
		}
	}
}
