package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// row is one line of the report: a figure of each side, how ours compares, and
// what is aimed at.
type row struct {
	what, target string
	ours, theirs string
	ratio        string
}

// report prints a table in Markdown.
func report(w io.Writer, o options, sides []*side, whole int64) {
	ours, peer := sides[0], "containerd + runc"
	var theirs *side
	if len(sides) > 1 {
		theirs = sides[1]
		peer = theirs.name
	}
	fmt.Fprintf(w, "%d cores, kernel %s, %s; medians (minimum) of %d rounds; %d pods for memory and burst\n\n",
		runtime.NumCPU(), kernel(), cgroups(), o.rounds, o.burst)
	rows := []row{{what: "", ours: ours.name, theirs: peer, ratio: "ratio", target: "target"}}
	targets := map[step]string{podUp: "≤ 1/5", execTrue: "≤ 1/8", podDown: "≤ 1/5"}
	for _, what := range []step{runSandbox, createContainer, startContainer, podUp, execTrue, podDown} {
		rows = append(rows, compare(string(what), targets[what], ours, theirs, false, func(s *side) (string, float64) {
			median, least := summary(s.took[what])
			return fmt.Sprintf("%s (%s)", milliseconds(median), milliseconds(least)), float64(median)
		}))
	}
	rows = append(rows,
		compare(fmt.Sprintf("%d pods, %d at once", o.burst, o.atOnce), "≥ 4 ×", ours, theirs, true, func(s *side) (string, float64) {
			rate := float64(o.burst) / s.burst.Seconds()
			return fmt.Sprintf("%.1f pods/s", rate), rate
		}),
		row{what: "memory without pods, with our agent", ours: mebibytes(float64(whole)), theirs: "(no agent)", ratio: "–", target: "≤ 60 MiB"},
		compare("memory without pods", "", ours, theirs, false, func(s *side) (string, float64) {
			return mebibytes(float64(s.memoryEmpty)), float64(s.memoryEmpty)
		}),
		compare(fmt.Sprintf("memory with %d pods", o.burst), "", ours, theirs, false, func(s *side) (string, float64) {
			return mebibytes(float64(s.memoryFull)), float64(s.memoryFull)
		}),
		compare("memory per pod", "≤ 1/10", ours, theirs, false, func(s *side) (string, float64) {
			per := float64(s.memoryFull-s.memoryEmpty) / float64(o.burst)
			return mebibytes(per), per
		}),
		compare(fmt.Sprintf("own processes with %d pods", o.burst), "", ours, theirs, false, func(s *side) (string, float64) {
			return fmt.Sprint(s.processes), float64(s.processes)
		}))
	for _, what := range []step{pullGzip, pullZstd} {
		name := fmt.Sprintf("%s: %d MiB in %d layers", what, o.pull, pullLayers)
		rows = append(rows, compare(name, "≤ 0.8 ×", ours, theirs, false, func(s *side) (string, float64) {
			median, least := summary(s.took[what])
			return fmt.Sprintf("%.1f s (%.1f s)", median.Seconds(), least.Seconds()), float64(median)
		}))
	}
	print(w, rows)
}

// compare makes a row. Ratios below one are written 1/n; more says that more is
// better, and that ours is divided by theirs as it is.
func compare(what, target string, ours, theirs *side, more bool, figure func(*side) (string, float64)) row {
	text, a := figure(ours)
	r := row{what: what, target: target, ours: text, theirs: "not installed"}
	if theirs == nil {
		return r
	}
	var b float64
	r.theirs, b = figure(theirs)
	switch {
	case a <= 0 || b <= 0:
		r.ratio = "–"
	case more || a > b:
		r.ratio = fmt.Sprintf("%.1f ×", a/b)
	default:
		r.ratio = fmt.Sprintf("1/%.1f", b/a)
	}
	return r
}

// summary is the median and the least of some durations.
func summary(d []time.Duration) (median, least time.Duration) {
	if len(d) == 0 {
		return 0, 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2], d[0]
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func mebibytes(bytes float64) string { return fmt.Sprintf("%.2f MiB", bytes/(1<<20)) }

// print prints rows, the first of which is the head, in columns.
func print(w io.Writer, rows []row) {
	cells := make([][]string, len(rows))
	width := make([]int, 5)
	for i, r := range rows {
		cells[i] = []string{r.what, r.ours, r.theirs, r.ratio, r.target}
		for j, cell := range cells[i] {
			width[j] = max(width[j], len([]rune(cell)))
		}
	}
	for i, line := range cells {
		for j, cell := range line {
			fmt.Fprintf(w, "| %s%s ", cell, strings.Repeat(" ", width[j]-len([]rune(cell))))
		}
		fmt.Fprintln(w, "|")
		if i == 0 {
			for j := range line {
				fmt.Fprintf(w, "|%s", strings.Repeat("-", width[j]+2))
			}
			fmt.Fprintln(w, "|")
		}
	}
}

// kernel is the kernel's version, without what distributions add.
func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	release := unix.ByteSliceToString(u.Release[:])
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return release
	}
	return parts[0] + "." + parts[1]
}

// cgroups tells which version the machine uses.
func cgroups() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "cgroup v2"
	}
	return "cgroup v1"
}
