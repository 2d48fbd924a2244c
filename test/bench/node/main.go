// Command node measures our node beside a stock kubelet on containerd and beside
// podman kube play, from manifests: in one run on one machine, interleaved. It
// asserts nothing. docs/bench.md tells how to read it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"podstead/test/host"
	"podstead/test/peer"
	"podstead/test/programs"
)

// Variables hand the paths of programs into the private host.
const (
	podsteadVariable   = "PODSTEAD_TEST_PODSTEAD"
	kubeletVariable    = "PODSTEAD_TEST_KUBELET"
	containerdVariable = "PODSTEAD_TEST_CONTAINERD" // a directory; else it is built
)

type options struct {
	rounds int
	pods   int
	idle   time.Duration
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "how often a start and a restart are measured")
	flag.IntVar(&o.pods, "pods", 100, "the most idle pods; half of them are measured, too")
	flag.DurationVar(&o.idle, "idle", 10*time.Second, "how long CPU is measured")
	flag.Parse()
	if os.Getenv(podsteadVariable) == "" {
		path, err := programs.Podstead()
		if err == nil {
			err = os.Setenv(podsteadVariable, path)
		}
		if err == nil && os.Getenv(kubeletVariable) != "" && os.Getenv(containerdVariable) == "" {
			if path, err = programs.Containerd(); err == nil {
				err = os.Setenv(containerdVariable, path)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
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

func (o options) bench(ctx context.Context) (err error) {
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
	var sides []*side
	defer func() {
		for _, s := range slices.Backward(sides) {
			s.stop()
		}
	}()
	for _, start := range []func(context.Context, string, string) (*side, error){startOurs, startKubelet, startPodman} {
		s, err := start(ctx, dir, registry)
		if errors.Is(err, peer.ErrNotInstalled) {
			fmt.Fprintln(os.Stderr, "bench:", err)
			continue
		}
		if err != nil {
			return err
		}
		sides = append(sides, s)
	}
	for round := range o.rounds + 2 {
		for i := range sides {
			s := sides[(i+round)%len(sides)]
			up, again, err := s.round(dir, registry, round)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if round >= 2 {
				s.up, s.again = append(s.up, up), append(s.again, again)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: round %d of %d done\n", round+1, o.rounds+2)
	}
	for _, s := range sides {
		if err := s.rest(o.idle, registry, 0, o.pods/2, o.pods); err != nil {
			return fmt.Errorf("%s: idle pods: %w", s.name, err)
		}
	}
	report(o, sides)
	return nil
}

// manifest is a pod that runs a script; probe adds an exec probe each second.
func manifest(name, registry, script, volume string, probe bool) string {
	out := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: %s/busybox:1
    imagePullPolicy: IfNotPresent
    command: [sh, -c, %q]
`, name, registry, script)
	if probe {
		out += "    livenessProbe: {exec: {command: [\"true\"]}, periodSeconds: 1}\n"
	}
	if volume != "" {
		out += fmt.Sprintf("    volumeMounts: [{name: out, mountPath: /out}]\n  volumes: [{name: out, hostPath: {path: %s, type: Directory}}]\n", volume)
	}
	return out
}

// round measures one pod: from its manifest to its process, and from that
// process's death to the next one.
func (s *side) round(dir, registry string, n int) (up, again time.Duration, err error) {
	name := fmt.Sprintf("b%d", n)
	out := filepath.Join(dir, "out-"+s.short+name)
	if err := os.MkdirAll(out, 0o777); err != nil {
		return 0, 0, err
	}
	mark, sleep := filepath.Join(out, "starts"), fmt.Sprintf("1000%d%d", len(s.name), n)
	began := time.Now()
	end, err := s.apply(name, manifest(name, registry, "echo >>/out/starts; exec sleep "+sleep, out, false))
	if err != nil {
		return 0, 0, err
	}
	if up, err = grown(mark, 1, began); err != nil {
		return 0, 0, err
	}
	time.Sleep(2 * time.Second) // all have noticed that it runs
	pid, err := find("sleep", sleep)
	if err != nil {
		return 0, 0, err
	}
	began = time.Now()
	if err := pid.Kill(); err != nil {
		return 0, 0, err
	}
	if again, err = grown(mark, 2, began); err != nil {
		return up, 0, err
	}
	return up, again, end()
}

// grown waits until a file has n bytes, and tells how long ago something began.
func grown(path string, n int64, began time.Time) (time.Duration, error) {
	for time.Since(began) < time.Minute {
		if st, err := os.Stat(path); err == nil && st.Size() >= n {
			return time.Since(began), nil
		}
		time.Sleep(200 * time.Microsecond)
	}
	return 0, fmt.Errorf("%s does not get its byte %d", path, n)
}

func find(words ...string) (*os.Process, error) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.TrimRight(string(data), "\x00") == strings.Join(words, "\x00") {
			var pid int
			fmt.Sscanf(f, "/proc/%d/", &pid)
			return os.FindProcess(pid)
		}
	}
	return nil, fmt.Errorf("no process %v", words)
}
