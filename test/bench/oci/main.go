// Command oci measures our OCI runtime beside crun and runc, where those are
// installed, in one run on one machine, in turns: a container's whole life and an
// exec by the command line, and the same by our supervisor. It prints a table and
// asserts nothing; docs/bench.md tells how to read it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"podstead/test/host"
	"podstead/test/programs"
)

// podsteadVariable hands the path of our programs into the private host.
const podsteadVariable = "PODSTEAD_TEST_PODSTEAD"

// options are what the command line says.
type options struct{ rounds, containers int }

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 50, "how often each step is measured, after two rounds to warm up")
	flag.IntVar(&o.containers, "containers", 30, "how many containers are held for the measure of memory")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: needs root")
		os.Exit(1)
	}
	if os.Getenv(podsteadVariable) == "" {
		path, err := programs.Podstead()
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		os.Setenv(podsteadVariable, path)
	}
	host.Main(o)
}

// Run is called inside the private host.
func (o options) Run() int {
	if err := o.bench(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// sample is what a step took of a clock, and of processors.
type sample struct{ wall, cpu time.Duration }

// side is one of those who are compared.
type side interface {
	name() string
	// life takes a container of true from nothing to nothing.
	life() (sample, error)
	// exec runs true in a container that runs already.
	exec() (sample, error)
	// memory is what is there beside the processes of n containers that run, for each,
	// and of the process of a created container.
	memory(n int) (each, created int64, err error)
	close() error
}

func (o options) bench(ctx context.Context) error {
	// crun 1.8 refuses hybrid cgroups: here nobody has any.
	_ = unix.Unmount("/sys/fs/cgroup/unified", 0)
	dir, err := os.MkdirTemp("/run", "bench-") // state belongs on a tmpfs
	if err != nil {
		return err
	}
	sides, err := start(ctx, dir)
	if err != nil {
		return err
	}
	lives, execs := make([][]sample, len(sides)), make([][]sample, len(sides))
	for round := range o.rounds + 2 {
		for i := range sides {
			i := (i + round) % len(sides)
			life, err := sides[i].life()
			if err != nil {
				return fmt.Errorf("%s: %w", sides[i].name(), err)
			}
			exec, err := sides[i].exec()
			if err != nil {
				return fmt.Errorf("%s: exec: %w", sides[i].name(), err)
			}
			if round >= 2 {
				lives[i], execs[i] = append(lives[i], life), append(execs[i], exec)
			}
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "| medians (minimum) of %d rounds \t| create, start, exit, delete \t| processor \t| exec \t| processor \t| memory beside a running container \t| memory of a created one \t|\n", o.rounds)
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for i, s := range sides {
		each, created, err := s.memory(o.containers)
		if err != nil {
			return fmt.Errorf("%s: memory: %w", s.name(), err)
		}
		fmt.Fprintf(w, "| %s \t| %s \t| %s \t| %s \t| %s \t| %s \t| %s \t|\n", s.name(),
			figure(lives[i]), mean(lives[i]), figure(execs[i]), mean(execs[i]), kib(each), kib(created))
	}
	w.Flush()
	for _, s := range sides {
		if err := s.close(); err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
	}
	return nil
}

// start makes a side of each runtime that there is.
func start(ctx context.Context, dir string) ([]side, error) {
	programs := filepath.Dir(os.Getenv(podsteadVariable))
	super, err := newSupervised(ctx, filepath.Join(dir, "supervisor"), filepath.Join(programs, "podstead-supervisor"))
	if err != nil {
		return nil, err
	}
	sides := []side{super}
	paths := []string{filepath.Join(programs, "podstead-oci")}
	for _, name := range []string{"crun", "runc"} {
		if path, err := exec.LookPath(name); err == nil {
			paths = append(paths, path)
		}
	}
	for _, path := range paths {
		c, err := newCommandLine(filepath.Join(dir, filepath.Base(path)), path)
		if err != nil {
			return nil, err
		}
		sides = append(sides, c)
	}
	return sides, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// figure is the median, and the minimum, of the time by the clock.
func figure(list []sample) string {
	var d []time.Duration
	for _, s := range list {
		d = append(d, s.wall)
	}
	slices.Sort(d)
	return fmt.Sprintf("%.2f ms (%.2f)", milliseconds(d[len(d)/2]), milliseconds(d[0]))
}

// mean is that of the processors' time, which the kernel counts by the tick for a
// process that goes on.
func mean(list []sample) string {
	var sum time.Duration
	for _, s := range list {
		sum += s.cpu
	}
	return fmt.Sprintf("%.1f ms", milliseconds(sum)/float64(len(list)))
}

func kib(n int64) string { return fmt.Sprintf("%.0f KiB", float64(n)/1024) }
