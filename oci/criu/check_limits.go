package criu

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// limits lowers what is higher than an ordinary start would have left it:
// resource limits and the protection against the kernel's OOM killer.
func (c *checker) limits(pid int) error {
	for name, resource := range resources {
		var most unix.Rlimit
		if err := unix.Prlimit(0, resource, nil, &most); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		for _, r := range c.Spec.Process.Rlimits {
			if r.Type == name {
				most.Max = r.Hard
			}
		}
		var now unix.Rlimit
		if err := unix.Prlimit(pid, resource, nil, &now); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if now.Max <= most.Max {
			continue
		}
		lower := unix.Rlimit{Cur: min(now.Cur, most.Max), Max: most.Max}
		if err := unix.Prlimit(pid, resource, &lower, nil); err != nil {
			return fmt.Errorf("lower %s: %w", name, err)
		}
	}
	return c.oomScore(pid)
}

// oomScore raises a score that is lower than the specification's.
func (c *checker) oomScore(pid int) error {
	want, file := 0, c.proc(pid, "oom_score_adj")
	if adj := c.Spec.Process.OOMScoreAdj; adj != nil {
		want = *adj
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if now >= want {
		return nil
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(want)), 0); err != nil && !errors.Is(err, unix.EACCES) {
		return err
	}
	return nil
}

var resources = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}
