package supervisor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/launch"
)

// BenchmarkPump moves output from a process's write to its log file, the
// process included: 64 KiB writes of lines of some length.
func BenchmarkPump(b *testing.B) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for _, line := range []int{100, 1000, 64 << 10} {
		b.Run(fmt.Sprintf("line%d", line), func(b *testing.B) {
			ctx, dir := context.Background(), b.TempDir()
			c, err := Ensure(ctx, dir)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			events, err := c.Events(ctx)
			if err != nil {
				b.Fatal(err)
			}
			log := LogFile{Path: dir + "/log", MaxBytes: 64 << 20, MaxFiles: 2}
			l := Launch{ID: "a", Log: log}
			program := argv(self, "writer", itoa(line), itoa(b.N))
			if _, _, err := c.launch(ctx, l, program, false); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(64 << 10)
			b.ResetTimer()
			if _, err := c.Start(ctx, "a"); err != nil {
				b.Fatal(err)
			}
			if e := <-events; e.Process.ExitCode != 0 || e.Process.LostOutput != 0 {
				b.Errorf("%+v", e)
			}
			b.StopTimer()
			if err := c.Forget(ctx, "a"); err != nil {
				b.Error(err)
			}
		})
	}
}

// BenchmarkExec runs true in a container, from the request to its exit event.
func BenchmarkExec(b *testing.B) {
	_, dir, c := startReal(b)
	ctx := context.Background()
	p := launchReal(b, ctx, c, "a", dir+"/a.log", "exec sleep 1000", true)
	program, err := launch.CompileExec(containerSpec(b, ""), &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"}, launch.ExecOptions{ID: "a/1", Pid: p.Pid})
	if err != nil {
		b.Fatal(err)
	}
	events, err := c.Events(ctx)
	if err != nil {
		b.Fatal(err)
	}
	before, spent := memory(b, c.daemonPid()), cpuTime(b, c.daemonPid())
	for b.Loop() {
		launchProgram(b, ctx, c, Launch{ID: "a/1", Program: program, Start: true})
		if e := <-events; e.Process.ExitCode != 0 {
			b.Fatalf("%+v", e)
		}
		if err := c.Forget(ctx, "a/1"); err != nil {
			b.Fatal(err)
		}
	}
	spent = cpuTime(b, c.daemonPid()) - spent
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "supervisor-ns/op")
	b.Logf("%d times: KiB private/PSS %v, before %v", b.N, memory(b, c.daemonPid()), before)
	endReal(b, ctx, c, "a", 9)
}

// cpuTime is what a process has used.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	var user, system int
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	fmt.Sscan(string(fields[14-3]), &user)
	fmt.Sscan(string(fields[15-3]), &system)
	const tick = 10 * time.Millisecond
	return time.Duration(user+system) * tick
}
