// Package family kills a process with all that it started, in a cgroup that it
// shares with others. It is called for commands that were run in a container
// beside its first process. It keeps nothing.
package family

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Processes lists those of a cgroup.
type Processes interface {
	Procs() ([]int, error)
}

// rounds bounds the hunt for processes that fork while they are hunted.
const rounds = 16

// Kill kills the process root, its descendants and whatever is in its session,
// as far as they are in the group, and returns when all of them are dead.
func Kill(ctx context.Context, group Processes, root int) error {
	killed := map[int]*os.File{} // pidfds
	defer func() {
		for _, f := range killed {
			f.Close()
		}
	}()
	// A process that has got SIGKILL forks no more: when a look at all of them
	// finds no other, there is no other.
	for range rounds {
		pids, err := group.Procs()
		if err != nil {
			break
		}
		more := false
		for _, pid := range members(root, pids) {
			if killed[pid] != nil {
				continue
			}
			f, err := sys.OpenPidfd(pid, 0)
			if err != nil {
				continue
			}
			killed[pid], more = f, true
			unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0)
		}
		if !more {
			break
		}
	}
	for pid, f := range killed {
		if err := AwaitDeath(ctx, f); err != nil {
			return fmt.Errorf("process %d was killed and stays: %w", pid, err)
		}
	}
	return nil
}

// AwaitDeath returns when the process behind a pidfd is dead, reaped or not.
func AwaitDeath(ctx context.Context, pidfd *os.File) error {
	const look = 100 * time.Millisecond // how often ctx is looked at
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, int(look.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// members returns those of pids that descend from root or are in its session,
// root included, and are not dead yet.
func members(root int, pids []int) []int {
	type parentage struct {
		ppid, session int
		zombie        bool
	}
	all := map[int]parentage{}
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		// PID (NAME) STATE PPID PGRP SESSION …
		_, f := sys.ParseStat(b)
		if len(f) < 4 {
			continue
		}
		ppid, _ := strconv.Atoi(f[1])
		session, _ := strconv.Atoi(f[3])
		all[pid] = parentage{ppid, session, f[0] == "Z" || f[0] == "X"}
	}
	var out []int
	for pid, p := range all {
		belongs := pid == root || p.session == root
		for up, hops := p.ppid, 0; !belongs && up != 0 && hops < len(all); hops++ {
			belongs = up == root
			up = all[up].ppid
		}
		if belongs && !p.zombie {
			out = append(out, pid)
		}
	}
	return out
}
