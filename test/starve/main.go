// Command starve runs another one and takes the processors away from random threads
// below it, for a fraction of a second each, as a busy machine would: what relies
// on who is first fails then. It looks for races between processes, which Go's
// race detector does not see.
//
//	starve [-seed N] [-busy N] COMMAND…
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

const (
	// A thread loses its processor with the chance of begin at each look, and gets it
	// back with that of end: a third of them is without one, for a quarter of a
	// second on average.
	begin, end = 0.1, 0.2
	shortest   = 20 * time.Millisecond // between two looks
	longest    = 80 * time.Millisecond
)

func main() {
	seed := flag.Uint64("seed", 1, "of the choice of threads")
	busy := flag.Int("busy", runtime.NumCPU()+1, "number of loops that use the processors meanwhile")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: starve [-seed N] [-busy N] COMMAND…")
		os.Exit(2)
	}
	code, err := run(flag.Args(), *busy, rand.New(rand.NewPCG(*seed, 0)))
	if err != nil {
		fmt.Fprintln(os.Stderr, "starve:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// run returns the command's exit code. Daemons that it leaves behind are its
// children until then.
func run(argv []string, busy int, random *rand.Rand) (int, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become subreaper: %w", err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	runtime.GOMAXPROCS(busy + 2)
	for range busy {
		go func() {
			for {
			}
		}()
	}
	stop, stopped := make(chan bool), make(chan error)
	go func() { stopped <- starve(random, stop) }()
	code, err := reap(cmd.Process.Pid)
	close(stop)
	return code, errors.Join(err, <-stopped)
}

// reap waits for a child, and for orphans until then.
func reap(child int) (int, error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, os.NewSyscallError("wait4", err)
		case pid == child && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == child:
			return status.ExitStatus(), nil
		}
	}
}

// starve gives threads below this process the policy SCHED_IDLE and takes it back,
// until stop is closed; then all get it back.
func starve(random *rand.Rand, stop <-chan bool) error {
	runtime.LockOSThread()
	first := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	if err := unix.SchedSetAttr(0, first, 0); err != nil {
		return fmt.Errorf("become a thread of real time: %w", err)
	}
	for last := false; !last; {
		select {
		case <-stop:
			last = true
		case <-time.After(shortest + time.Duration(random.Int64N(int64(longest-shortest)))):
		}
		threads, err := below(os.Getpid())
		if err != nil {
			return err
		}
		for _, tid := range threads {
			now, err := unix.SchedGetAttr(tid, 0)
			if err != nil {
				continue // it has ended
			}
			next := *now
			switch {
			case now.Policy == unix.SCHED_NORMAL && !last && random.Float64() < begin:
				next.Policy = unix.SCHED_IDLE
			case now.Policy == unix.SCHED_IDLE && (last || random.Float64() < end):
				next.Policy = unix.SCHED_NORMAL
			default:
				continue
			}
			unix.SchedSetAttr(tid, &next, 0) // or it has ended
		}
	}
	return nil
}

// below lists the threads of all processes below one.
func below(root int) ([]int, error) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		_, fields := sys.ParseStat(data)
		if len(fields) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], pid)
	}
	var threads []int
	for rest := children[root]; len(rest) > 0; {
		pid := rest[0]
		rest = append(rest[1:], children[pid]...)
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			continue
		}
		for _, t := range tasks {
			tid, _ := strconv.Atoi(t.Name())
			threads = append(threads, tid)
		}
	}
	return threads, nil
}
