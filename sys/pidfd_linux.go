package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OpenPidfd opens a handle on the process pid and, with startTime not zero,
// makes sure that it is the process that started then (clock ticks since boot,
// /proc/PID/stat field 22) and not a later one with the same number.
// It returns os.ErrProcessDone if that process is gone.
func OpenPidfd(pid int, startTime uint64) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd "+strconv.Itoa(pid))
	if startTime == 0 {
		return f, nil
	}
	got, err := StartTime(pid)
	if err != nil || got != startTime {
		f.Close()
		return nil, os.ErrProcessDone
	}
	return f, nil
}

// StartTime returns when a process started, in clock ticks since boot.
func StartTime(pid int) (uint64, error) {
	_, start, err := stateOf(pid)
	return start, err
}

// Running tells whether the process with a number is there, is the one that started
// at a time, and is no zombie.
func Running(pid int, startTime uint64) bool {
	state, start, err := stateOf(pid)
	return err == nil && start == startTime && state != "Z" && state != "X"
}

// stateOf returns the letter of a process's state, and when it started.
func stateOf(pid int) (state string, start uint64, err error) {
	path := "/proc/" + strconv.Itoa(pid) + "/stat"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var text [2048]byte // more than 52 numbers and a name take
	n, err := unix.Read(fd, text[:])
	if err != nil {
		return "", 0, &os.PathError{Op: "read", Path: path, Err: err}
	}
	_, fields := ParseStat(text[:n])
	const startTimeField = 22 - 3
	if len(fields) <= startTimeField {
		return "", 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(fields[startTimeField], 10, 64)
	return fields[0], start, err
}
