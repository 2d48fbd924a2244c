package oci

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const readyVariable = "PODSTEAD_TEST_READY"

// sayReady is a service in a container that is ready after a word, and says more
// than it should.
func sayReady() int {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err == nil {
		_, err = conn.Write([]byte("STATUS=about to be\nMAINPID=1\n"))
	}
	if err == nil {
		_, err = conn.Write([]byte("READY=1\nSTATUS=there\n"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if os.Getenv(readyVariable) == "stay" {
		time.Sleep(time.Hour)
	}
	return 0
}

// TestNotifySocket: a caller that has a $NOTIFY_SOCKET is told when the container is
// ready, and nothing else that it says.
func TestNotifySocket(t *testing.T) {
	onBoth(t, func(b *box) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		program, err := os.ReadFile(exe)
		if err == nil {
			err = os.WriteFile(b.inside("bin/service"), program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(b.TempDir(), "s")
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		said := func() (lines []string) {
			buf := make([]byte, 4096)
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return lines
				}
				lines = append(lines, strings.Fields(string(buf[:n]))...)
				conn.SetReadDeadline(time.Now()) // what is there
			}
		}
		with := func(args ...string) result {
			cmd := b.cmd(args...)
			cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
			return b.runWith(cmd)
		}
		b.spec.Process.Args = []string{"/bin/service"}
		b.spec.Process.Env = append(b.spec.Process.Env, readyVariable+"=stay", "NOTIFY_SOCKET=/of/another")
		b.spec.Process.User.UID, b.spec.Process.User.GID = 1000, 1000
		if !b.ours { // of two variables with one name libraries take the first
			b.spec.Process.Env = slices.DeleteFunc(b.spec.Process.Env, func(e string) bool { return strings.HasPrefix(e, "NOTIFY") })
		}
		b.write()
		for _, args := range [][]string{{"create", "--bundle", b.bundle, b.id}, {"start", b.id}} {
			if r := with(args...); r.code != 0 {
				t.Fatalf("%v: %+v", args, r)
			}
		}
		want := []string{"READY=1", fmt.Sprintf("MAINPID=%d", b.state().Pid)}
		if got := said(); b.ours && !slices.Equal(got, want) || !slices.Contains(got, "READY=1") {
			t.Errorf("said %q, want %q", got, want)
		}
		b.must("delete", "--force", b.id)
		b.notRunc("may send its own number when the container has ended")

		b.spec.Process.Env = slices.DeleteFunc(b.spec.Process.Env, func(e string) bool { return strings.HasPrefix(e, readyVariable) })
		b.spec.Process.Env = append(b.spec.Process.Env, readyVariable+"=go")
		b.write()
		if r := with("run", "--bundle", b.bundle, b.id); r.code != 0 {
			t.Errorf("%+v", r)
		}
		if got := said(); !slices.Contains(got, "READY=1") {
			t.Errorf("run said %q", got)
		}
		// Who ends without a word does not hold up its start.
		b.spec.Process.Args = []string{"true"}
		b.write()
		if r := with("run", "--detach", "--bundle", b.bundle, b.id); r.code != 0 {
			t.Errorf("%+v", r)
		}
	})
}
