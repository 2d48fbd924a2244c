package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"podstead/sys"
)

// rest measures a side with ever more idle pods, counts in ascending order, of
// which every second one has an exec probe each second.
func (s *side) rest(long time.Duration, registry string, counts ...int) (err error) {
	var ends []func() error
	defer func() { err = errors.Join(err, s.clear(ends)) }()
	for _, n := range counts {
		for i := len(ends); i < n; i++ {
			name := fmt.Sprintf("i%d", i)
			end, err := s.apply(name, manifest(name, registry, "exec sleep "+idleSeconds, "", i%2 == 0))
			if err != nil {
				return err
			}
			ends = append(ends, end)
			if s.short == "m" {
				time.Sleep(300 * time.Millisecond) // it takes its lock in no order
			}
		}
		if err := running(n); err != nil {
			return err
		}
		time.Sleep(settle)
		before, began := s.cpu(), time.Now()
		time.Sleep(long)
		used := s.cpu() - before
		s.idle = append(s.idle, idle{pods: n, memory: s.memory(), cpu: time.Duration(float64(used) / time.Since(began).Seconds())})
		fmt.Fprintf(os.Stderr, "bench: %s: %d idle pods measured\n", s.name, n)
	}
	return nil
}

// idleSeconds is how long idle pods sleep, by which they are known; settle is for
// the side to come to rest.
const (
	idleSeconds = "10000000"
	settle      = 5 * time.Second
)

// running waits until n idle pods run.
func running(n int) error {
	for began := time.Now(); count(idleSeconds) < n; time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > 3*time.Minute {
			return fmt.Errorf("only %d of %d pods run", count(idleSeconds), n)
		}
	}
	return nil
}

// clear ends a side's idle pods and waits, for a minute, until they are gone: the
// next side is measured without them.
func (s *side) clear(ends []func() error) (err error) {
	if s.endAll != nil {
		err = s.endAll()
	} else {
		for _, end := range ends {
			err = errors.Join(err, end())
		}
	}
	for range 600 {
		if count(idleSeconds) == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(settle)
	return err
}

// count is how many processes sleep for so long.
func count(seconds string) (n int) {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		data, err := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		if err == nil && string(data) == "sleep\x00"+seconds+"\x00" {
			n++
		}
	}
	return n
}

// cpu is what all own processes have used, and those that they reaped.
func (s *side) cpu() (sum time.Duration) {
	for _, pid := range s.pids() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, f := sys.ParseStat(data)
		for _, field := range f[11:15] { // utime stime cutime cstime, in hundredths
			var ticks int64
			fmt.Sscan(field, &ticks)
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}

// memory is the proportional set size of all own processes.
func (s *side) memory() (sum int64) {
	for _, pid := range s.pids() {
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range strings.Lines(string(rollup)) {
			var kib int64
			if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
				sum += kib << 10
			}
		}
	}
	return sum
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func report(o options, sides []*side) {
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("medians (minimum) of %d rounds; load at the end %s\n", o.rounds, strings.TrimSpace(string(load)))
	row := func(what string, figure func(*side) string) {
		fmt.Printf("| %s |", what)
		for _, s := range sides {
			fmt.Printf(" %s |", figure(s))
		}
		fmt.Println()
	}
	row("", func(s *side) string { return s.name })
	row("---", func(*side) string { return "---" })
	times := func(d []time.Duration) string {
		if len(d) == 0 {
			return "–"
		}
		return fmt.Sprintf("%.0f ms (%.0f ms)", median(d).Seconds()*1000, slices.Min(d).Seconds()*1000)
	}
	row("manifest written → process started", func(s *side) string { return times(s.up) })
	row("process killed → restarted", func(s *side) string { return times(s.again) })
	for i := range sides[0].idle {
		row(fmt.Sprintf("memory, %d idle pods", sides[0].idle[i].pods), func(s *side) string { return fmt.Sprintf("%.1f MiB", float64(s.idle[i].memory)/(1<<20)) })
		row(fmt.Sprintf("CPU, %d idle pods, %d with a probe each second", sides[0].idle[i].pods, sides[0].idle[i].pods/2),
			func(s *side) string { return fmt.Sprintf("%.1f %%", s.idle[i].cpu.Seconds()*100) })
	}
}
