package oom

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const system = "6,1215667,49336539126,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/kubepods/besteffort/poda/b,task=hungry,pid=27842,uid=0\n"

func TestParse(t *testing.T) {
	change := func(old, new string) string { return strings.Replace(system, old, new, 1) }
	for _, c := range []struct {
		what, record string
		want         Kill
	}{
		{"the machine is out of memory", system, Kill{1215667, "hungry", 27842}},
		{"some of its nodes are", change("CONSTRAINT_NONE", "CONSTRAINT_CPUSET"), Kill{1215667, "hungry", 27842}},
		{"a policy of memory", change("CONSTRAINT_NONE", "CONSTRAINT_MEMORY_POLICY"), Kill{1215667, "hungry", 27842}},
		{"without an end", change("uid=0\n", "uid=0"), Kill{1215667, "hungry", 27842}},
		{"more fields in the head", change(",-;", ",-,caller=T123;"), Kill{1215667, "hungry", 27842}},
		{"a name like the record", change("task=hungry", "task=a,task=b,pid=1"), Kill{1215667, "b,pid=1", 27842}},
		{"a cgroup like the record", change("/kubepods", "/x,task=y,pid=1,uid=0"), Kill{1215667, "hungry", 27842}},
		{"an empty name", change("task=hungry", "task="), Kill{1215667, "", 27842}},
		// As this kernel says it of a container's own limit.
		{"the limit of a cgroup", "6,1214379,48280098103,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=a125,mems_allowed=0,oom_memcg=/pod7/a125,task_memcg=/pod7/a125,task=dd,pid=30134,uid=0\n", Kill{}},
		{"the limit of a cgroup named like the system's", change("CONSTRAINT_NONE", "CONSTRAINT_MEMCG"), Kill{}},
		{"what precedes it", "4,1215591,49336538799,-;hungry invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n", Kill{}},
		{"what follows it", "3,1215668,49336539160,-;Out of memory: Killed process 27842 (hungry) total-vm:1263040kB\n", Kill{}},
		{"a program's words", change("6,", "14,"), Kill{}},
		{"not at the beginning", change("oom-kill", "x oom-kill"), Kill{}},
		{"no process", change("pid=27842", "pid="), Kill{}},
		{"a process of a wrong number", change("pid=27842", "pid=-1"), Kill{}},
		{"no name", change(",task=", ",tusk="), Kill{}},
		{"no head", "oom-kill:constraint=CONSTRAINT_NONE,task=a,pid=1,uid=0", Kill{}},
		{"nothing", "", Kill{}},
	} {
		got, ok := parse([]byte(c.record))
		if got != c.want || ok != (c.want.PID != 0) {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
	}
	if got := (Kill{1, "hungry", 27842}).String(); got != "System OOM encountered, victim process: hungry, pid: 27842" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(system))
	f.Add([]byte("6,1,2;oom-kill:constraint=CONSTRAINT_,task=,pid=,uid="))
	f.Fuzz(func(t *testing.T, record []byte) {
		if k, ok := parse(record); ok && (k.PID < 0 || len(k.Process) > len(record)) {
			t.Errorf("%q gave %+v", record, k)
		}
	})
}

// TestWatchTheKernel reads the log of this machine for real, and stops. (What is
// made of a log as it grows, and which of its records are told, agent.TestSystemOOM
// shows.)
func TestWatchTheKernel(t *testing.T) {
	f, err := os.OpenFile(Log, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip(err)
	}
	f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Watch(ctx, Log, 1<<63, func(k Kill) { t.Errorf("told of an old one: %v", k) }) }()
	select {
	case err := <-done:
		t.Errorf("it ended with %v", err)
	case <-time.After(100 * time.Millisecond): // there is nothing to wait for: it sleeps
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	if err := Watch(t.Context(), "/nowhere", 0, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a log that is not there: %v", err)
	}
}
