package logind

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

// login1 is as much of logind as is needed: it counts the locks.
type login1 struct {
	taken chan lock
}

// A lock is given back when all copies of theirs are closed: ours is then at its
// end. One copy of theirs stays here, until it has been sent for sure.
type lock struct{ ours, theirs *os.File }

func (l login1) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "shutdown" || mode != "delay" {
		return 0, dbus.MakeFailedError(errors.New("not what it should be"))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.taken <- lock{r, w}
	return dbus.UnixFD(w.Fd()), nil
}

// bus starts a D-Bus of the test's own, and is its logind.
func bus(t *testing.T) (*dbus.Conn, login1) {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("dbus-daemon is not installed")
	}
	address := "unix:path=" + filepath.Join(t.TempDir(), "bus")
	cmd := exec.Command(daemon, "--session", "--nofork", "--nopidfile", "--print-address", "--address="+address)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	l := login1{taken: make(chan lock, 4)}
	if err := conn.Export(l, path, manager); err != nil {
		t.Fatal(err)
	}
	_, err = prop.Export(conn, path, prop.Map{manager: {"InhibitDelayMaxUSec": {Value: uint64(5e6)}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return conn, l
}

func TestShutdownIsHeldUp(t *testing.T) {
	conn, l := bus(t)
	ctx, cancel := context.WithCancel(t.Context())
	down, up, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- Watch(ctx, time.Second, func(context.Context) { down <- struct{}{} }, func(context.Context) { up <- struct{}{} }, slog.New(slog.DiscardHandler))
	}()
	wait := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case err := <-done:
			t.Fatalf("%s: it ends with %v", what, err)
		case <-time.After(time.Minute):
			t.Fatalf("%s: nothing in a minute", what)
		}
	}
	locked := func() lock {
		t.Helper()
		select {
		case l := <-l.taken:
			return l
		case err := <-done:
			t.Fatalf("it ends with %v", err)
		case <-time.After(time.Minute):
			t.Fatal("no lock in a minute")
		}
		return lock{}
	}
	released := func(l lock) {
		t.Helper()
		defer l.ours.Close()
		l.theirs.Close()
		l.ours.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := l.ours.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the lock is not given back: %v", err)
		}
	}
	prepare := func(begins bool) {
		t.Helper()
		if err := conn.Emit(path, manager+".PrepareForShutdown", begins); err != nil {
			t.Fatal(err)
		}
	}
	first := locked()
	prepare(true)
	wait("down", down)
	released(first)
	prepare(false)
	wait("up", up)
	second := locked()
	prepare(true)
	wait("down again", down)
	released(second)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}
