package engine

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// killRounds bounds the hunt for processes that fork while they are hunted.
const killRounds = 16

// kill kills the process, its descendants and whatever is in its session, and
// returns when all of them are dead. They are looked for among the container's
// processes only.
func (x *execution) kill(ctx context.Context) error {
	g := x.e.cfg.Cgroups.Group(x.c.record().Cgroup)
	killed := map[int]*os.File{} // pidfds
	defer func() {
		for _, f := range killed {
			f.Close()
		}
	}()
	// A process that has got SIGKILL forks no more: when a look at all of them
	// finds no other, there is no other.
	for range killRounds {
		pids, err := g.Procs()
		if err != nil {
			break
		}
		more := false
		for _, pid := range family(x.process.Pid, pids) {
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
	// The first one is ours until it is forgotten: its pid cannot be another's.
	x.e.cfg.Supervisor.Signal(ctx, x.id, int(unix.SIGKILL))
	for pid, f := range killed {
		if err := awaitDeath(ctx, f); err != nil {
			return fmt.Errorf("process %d was killed and stays: %w", pid, err)
		}
	}
	return nil
}

// awaitDeath returns when the process behind a pidfd is dead, reaped or not.
func awaitDeath(ctx context.Context, pidfd *os.File) error {
	const look = 100 * time.Millisecond // how often ctx is looked at
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, int(look.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// family returns those of pids that descend from root or are in its session,
// root included, and are not dead yet.
func family(root int, pids []int) []int {
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
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
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
