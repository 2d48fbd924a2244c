package oci

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkCLI takes a container from create over start to delete, by the
// command lines of ours and of what other runtimes are installed, in turns. It
// reports medians: all three calls, an exec of true, and processor time.
func BenchmarkCLI(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	dir := b.TempDir()
	ours := filepath.Join(dir, "podstead-oci")
	if out, err := exec.Command("go", "build", "-o", ours, "podstead/cmd/podstead-oci").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	runtimes := map[string]string{"podstead": ours}
	for _, name := range []string{"runc", "crun"} {
		if path, err := exec.LookPath(name); err == nil {
			runtimes[name] = path
		}
	}
	wall, execs, cpu := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for b.Loop() {
		for name, path := range runtimes {
			w, e, c := round(b, name, path)
			wall[name], execs[name], cpu[name] = append(wall[name], w), append(execs[name], e), append(cpu[name], c)
		}
	}
	for name := range runtimes {
		b.ReportMetric(median(wall[name]), name+"-ms")
		b.ReportMetric(median(execs[name]), name+"-exec-ms")
		b.ReportMetric(median(cpu[name]), name+"-cpu-ms")
	}
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// round returns milliseconds.
func round(b *testing.B, name, path string) (wall, execTime, cpu float64) {
	dir, err := os.MkdirTemp("", "podstead-oci-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	root, err := os.MkdirTemp("/dev/shm", "podstead-oci-bench-") // state belongs on a tmpfs
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(root)
	x := &box{runtime: path, root: root, bundle: dir + "/bundle", id: "bench-" + name}
	makeRootfs(b, x.bundle+"/rootfs")
	x.TB = b
	x.spec = ExampleSpec()
	x.spec.Version, x.spec.Process.Terminal = "1.0.2", false
	x.spec.Process.Args = []string{"sleep", "1000"}
	x.spec.Linux.CgroupsPath = "/podstead-test-bench-" + name
	x.write()
	call := func(args ...string) time.Duration {
		cmd := exec.Command(path, append([]string{"--root", x.root}, args...)...)
		start := time.Now()
		err := cmd.Run()
		took := time.Since(start)
		if err != nil {
			b.Fatalf("%s %v: %v", name, args, err)
		}
		t := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		cpu += float64(unix.TimevalToNsec(unix.Timeval(t.Utime))+unix.TimevalToNsec(unix.Timeval(t.Stime))) / 1e6
		return took
	}
	took := call("create", "-b", x.bundle, x.id) + call("start", x.id)
	own := cpu
	execTime = float64(call("exec", x.id, "true").Microseconds()) / 1e3
	cpu = own // exec has its own figure
	took += call("delete", "-f", x.id)
	return float64(took.Microseconds()) / 1e3, execTime, cpu
}
