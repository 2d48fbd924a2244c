package docker

import (
	"os"
	"strconv"
	"strings"
)

const capSysResource = 24

// oomScore is the score that this host lets processes have: only who may exceed
// limits can lower it below its own.
func (r *Runtime) oomScore(wanted int) int {
	if mayExceedLimits() {
		return wanted
	}
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return wanted
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || wanted >= own {
		return wanted
	}
	r.onceScore.Do(func() {
		r.log.Warn("OOM scores below our own cannot be set, without CAP_SYS_RESOURCE", "wanted", wanted, "own", own)
	})
	return own
}

func mayExceedLimits() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && mask&(1<<capSysResource) != 0
		}
	}
	return false
}
