package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process that the kernel kills for the machine's lack of memory is an event of
// the node, once, whichever agent sees it.
func TestSystemOOM(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "kmsg")
	if err := unix.Mkfifo(log, 0o600); err != nil {
		t.Fatal(err)
	}
	kernel, err := os.OpenFile(log, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	say := func(record string) {
		if record == "" {
			return
		}
		if _, err := kernel.WriteString(record); err != nil {
			t.Fatal(err)
		}
	}
	const kill = "6,7,1,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,task=hungry,pid=42,uid=0\n"
	const later = "6,9,1,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,task=greedy,pid=43,uid=0\n"
	// one agent tells of one process; later is said while it listens.
	one := func(t *testing.T, what, later string) {
		t.Helper()
		c, _ := serveFakeIn(t, dir, log)
		say(later)
		deadline := time.Now().Add(5 * time.Minute)
		for {
			list, err := c.NodeEvents(t.Context(), "n1")
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Items) > 0 {
				if e := list.Items[0]; len(list.Items) != 1 || e.Reason != "SystemOOM" || e.Message != what || e.InvolvedObject.Kind != "Node" || e.InvolvedObject.Name != "n1" {
					t.Errorf("%+v", list.Items)
				}
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not told: %s", what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	say(kill)
	t.Run("first", func(t *testing.T) { one(t, "System OOM encountered, victim process: hungry, pid: 42", "") })
	say(kill) // the next agent reads the log from its beginning
	t.Run("second", func(t *testing.T) { one(t, "System OOM encountered, victim process: greedy, pid: 43", later) })
	c, _ := serveFakeIn(t, dir, "")
	if _, err := c.NodeEvents(t.Context(), "other"); err == nil {
		t.Errorf("events of a node that is not there: %v", err)
	}
}
