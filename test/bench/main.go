// Command bench measures our CRI runtime beside containerd with runc, in one run
// on one machine, interleaved, and prints a table. It asserts nothing: on a
// machine that others use, too, only the ratio of two figures means something.
// docs/bench.md tells how to read it.
//
// Both runtimes are started afresh in a private host (see test/host), with
// directories, sockets and a network of their own; nothing of them stays.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"podstead/test/host"
	"podstead/test/peer"
	"podstead/test/programs"
)

// podsteadVariable hands the path of our program into the private host.
const podsteadVariable = "PODSTEAD_TEST_PODSTEAD"

// options are what the command line says.
type options struct {
	rounds, burst, atOnce int
	pull, pullRounds      int
	podstead              string // path of the program
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 20, "how often each step is measured, after two rounds to warm up")
	flag.IntVar(&o.burst, "burst", 30, "how many pods are started in a burst, and held for the measure of memory")
	flag.IntVar(&o.atOnce, "at-once", 10, "how many of them at a time")
	flag.IntVar(&o.pull, "pull", 600, "`MiB` of the images, before compression, that are pulled")
	flag.IntVar(&o.pullRounds, "pull-rounds", 3, "how often each of them is pulled")
	flag.StringVar(&o.podstead, "podstead", "", "the podstead to measure, with podstead-supervisor beside it (default: built from this tree)")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: needs root")
		os.Exit(1)
	}
	if o.podstead == "" {
		o.podstead = os.Getenv(podsteadVariable)
	}
	if o.podstead == "" {
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
	// A reader that goes (bench | head) must not keep it from cleaning up.
	signal.Ignore(unix.SIGPIPE)
	if err := o.bench(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func (o options) bench(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "podstead-bench-")
	if err != nil {
		return err
	}
	defer func() {
		host.UnmountBelow(dir)
		os.RemoveAll(dir)
	}()
	registry, stop, err := peer.Serve()
	if err != nil {
		return err
	}
	defer stop()

	whole, err := o.wholeNode(ctx, dir+"/node")
	if err != nil {
		return err
	}
	ours, err := startOurs(ctx, o.podstead, dir+"/podstead", "cri")
	if err != nil {
		return err
	}
	defer ours.stop()
	sides := []*side{ours}
	theirs, err := startContainerd(ctx, dir+"/containerd", registry+"/pause:1")
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: containerd: %v\n", err)
	} else {
		defer theirs.stop()
		sides = append(sides, theirs)
	}
	image := registry + "/busybox:1"
	for _, s := range sides {
		if err := s.pull(ctx, image); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := o.measure(ctx, sides); err != nil {
		return err
	}
	if err := o.pulls(ctx, sides); err != nil {
		return err
	}
	report(os.Stdout, o, sides, whole)
	return nil
}

// wholeNode measures the memory of a node with its agent, without pods.
func (o options) wholeNode(ctx context.Context, dir string) (int64, error) {
	manifests := dir + "-manifests"
	if err := os.Mkdir(manifests, 0o700); err != nil {
		return 0, err
	}
	n, err := startOurs(ctx, o.podstead, dir, "node", "--manifests", manifests)
	if err != nil {
		return 0, err
	}
	defer n.stop()
	n.settle()
	return n.memory(), nil
}

// measure fills in the figures of all sides, taking turns.
func (o options) measure(ctx context.Context, sides []*side) error {
	const warmUp = 2
	for round := range warmUp + o.rounds {
		for i := range sides {
			s := sides[(i+round)%len(sides)] // who is first changes
			steps, err := s.round(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if round >= warmUp {
				s.add(steps)
			}
		}
	}
	for _, s := range sides {
		s.settle()
		s.memoryEmpty = s.memory()
	}
	for _, s := range sides {
		start := time.Now()
		pods, err := s.up(ctx, o.burst, o.atOnce)
		s.burst = time.Since(start)
		if err != nil {
			return fmt.Errorf("%s: burst: %w", s.name, err)
		}
		s.settle()
		s.memoryFull, s.processes = s.memory(), len(s.pids())
		if err := s.down(ctx, pods, o.atOnce); err != nil {
			return fmt.Errorf("%s: end of the burst: %w", s.name, err)
		}
	}
	return nil
}
