// Package oom tells of processes that the kernel killed because the whole machine
// was out of memory, as the kernel's log has them. A process that went beyond the
// limit of its own cgroup is none of these; what the runtime says of its container
// tells of that.
//
// The log is read as it grows, by one sleeping read. It keeps nothing: who asks
// says after which record to begin.
package oom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Log is the kernel's log.
const Log = "/dev/kmsg"

// Kill is a process that was killed.
type Kill struct {
	Sequence uint64 // of the log's record, growing until the next boot
	Process  string // its name, up to 15 bytes
	PID      int    // on the host
}

// Watch calls yield for each kill in a log after a sequence number, those that are
// there and those that come, until ctx ends or the log cannot be read.
func Watch(ctx context.Context, log string, after uint64, yield func(Kill)) error {
	// Without waiting: Go waits, and can be told to stop.
	f, err := os.OpenFile(log, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { f.Close() })()
	defer f.Close()
	record := make([]byte, maxRecord)
	for {
		n, err := f.Read(record)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.EPIPE):
			continue // the log went round; the next read is of its oldest record
		case err != nil:
			return err
		}
		for line := range bytes.Lines(record[:n]) { // a record, then what is about its device
			if kill, ok := parse(line); ok && kill.Sequence > after {
				yield(kill)
			}
		}
	}
}

// maxRecord is more than the kernel makes of a record.
const maxRecord = 16 << 10

// start is how the kernel begins to tell of a kill, by whatever it was bound.
// CONSTRAINT_MEMCG is the limit of a cgroup; the others are a lack of the machine's
// memory, or of that of some of its nodes.
const start = "oom-kill:constraint=CONSTRAINT_"

// parse reads a line of a record, "priority,sequence,time,flags;text", whose text is for a
// kill of the system's:
//
//	oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/x,task=y,pid=1,uid=0
//
// Names of cgroups and processes are others' and may hold anything, so it is read
// from its ends, where they are not.
func parse(line []byte) (Kill, bool) {
	head, text, ok := bytes.Cut(line, []byte(";"))
	constraint, found := strings.CutPrefix(strings.TrimSuffix(string(text), "\n"), start)
	if !ok || !found || strings.HasPrefix(constraint, "MEMCG,") {
		return Kill{}, false
	}
	sequence, ok := kernels(string(head))
	if !ok {
		return Kill{}, false
	}
	rest, _, _ := cutLast(constraint, ",uid=")
	rest, pid, _ := cutLast(rest, ",pid=")
	_, process, named := cutLast(rest, ",task=")
	id, err := strconv.ParseUint(pid, 10, 31)
	if err != nil || !named {
		return Kill{}, false
	}
	return Kill{Sequence: sequence, Process: process, PID: int(id)}, true
}

// kernels returns the number of a record that the kernel wrote, and no program.
func kernels(head string) (sequence uint64, ok bool) {
	f := strings.Split(head, ",")
	if len(f) < 3 {
		return 0, false
	}
	priority, err := strconv.ParseUint(f[0], 10, 32)
	if err != nil || priority>>3 != 0 { // of another facility
		return 0, false
	}
	sequence, err = strconv.ParseUint(f[1], 10, 64)
	return sequence, err == nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// String is what the kubelet says of it.
func (k Kill) String() string {
	return fmt.Sprintf("System OOM encountered, victim process: %s, pid: %d", k.Process, k.PID)
}
