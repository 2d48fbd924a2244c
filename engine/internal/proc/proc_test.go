package proc

import (
	"net"
	"os"
	"os/exec"
	"testing"
)

func TestFiles(t *testing.T) {
	files, sockets := Files([]int{os.Getpid()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The poller may have opened something of its own by now.
	if more, all := Files([]int{os.Getpid(), -1}); *more < *files+2 || *all != *sockets+1 {
		t.Errorf("%d files, %d of them sockets; were %d, %d", *more, *all, *files, *sockets)
	}
}

func TestStates(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	s := StatesOf([]int{cmd.Process.Pid, -1})
	if s.Running+s.Sleeping+s.Stopped+s.Uninterruptible != 1 {
		t.Errorf("states are %+v", s)
	}
	for stat, want := range map[string]byte{
		"1 (sleep) S 0 1":       'S',
		"1 (a) b) (c) R) D 0 1": 'D',
		"1 (sleep":              0,
		"1 (sleep) ":            0,
		"":                      0,
	} {
		if got := state(stat); got != want {
			t.Errorf("%q: %q, want %q", stat, got, want)
		}
	}
}

func TestMaxOpenFiles(t *testing.T) {
	if n := MaxOpenFiles(os.Getpid()); n == nil || *n == 0 {
		t.Errorf("limit is %v", n)
	}
	if n := MaxOpenFiles(0); n != nil {
		t.Errorf("limit of nobody is %v", n)
	}
	const table = "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max processes             unlimited            unlimited            processes \nMax open files            1024                 20000                files     \n"
	if n := maxOpenFiles(table); n == nil || *n != 1024 {
		t.Errorf("limit is %v", n)
	}
	if n := maxOpenFiles("Max open files unlimited unlimited files\n"); n != nil {
		t.Errorf("no limit is %d", *n)
	}
}
