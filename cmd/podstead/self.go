package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/supervisor"
)

// self is what a KubeletConfiguration says of the process that is the agent; nil
// is as it was started.
type self struct {
	oomScoreAdj  *int32
	maxOpenFiles *int64
	verbosity    int // of klog's, 0: as --log-level says
	json         bool
	vmodule      bool // it is asked for verbosities of files
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
	switch c.Logging.Format {
	case "", "text":
	case "json":
		s.json = true
	default:
		return s, fmt.Errorf("logging.format: %q is neither text nor json", c.Logging.Format)
	}
	s.verbosity, s.vmodule = int(c.Logging.Verbosity), len(c.Logging.VModule) > 0
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

// logging changes how much is logged, unless a flag has said it, and in which form.
func (n *nodeOptions) logging(log *slog.Logger, flagged bool) *slog.Logger {
	if n.self.verbosity > 0 && !flagged {
		n.setVerbosity(n.self.verbosity)
	}
	if n.self.json {
		log = n.jsonLogger()
	}
	if n.self.vmodule && os.Getenv(supervisor.SupervisedEnv) == "" {
		log.Warn("logging.vmodule has no effect: what is logged does not depend on files")
	}
	return log
}
