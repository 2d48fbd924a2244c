package restart

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestServiceManager: who is told when the service serves, and that it still does
// (sd_notify(3)), ends an engine that does not answer any more by what systemd
// sends; the container goes on, and the next start of the service takes it over.
func TestServiceManager(t *testing.T) {
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 100000)
	go func() {
		defer close(heard)
		var buf [64]byte
		for {
			n, err := told.Read(buf[:])
			if err != nil {
				return
			}
			heard <- string(buf[:n])
		}
	}()
	defer told.Close()
	t.Setenv("NOTIFY_SOCKET", told.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "100000")
	w := newWorld(t)
	hears := func(want string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != want {
				t.Fatalf("told %q, want %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("not told %q", want)
		}
	}
	hears("READY=1")
	hears("WATCHDOG=1")
	hears("WATCHDOG=1")
	id := w.start("c", "sleep 100000")

	engine := w.find("podstead", "cri")
	if err := syscall.Kill(engine, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(w.find("podstead-supervisor", "run"), syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	w.node.Wait()
	if err := w.node.Again(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.exec(id, "echo", "here"); got != "here\n" {
		t.Errorf("the container says %q", got)
	}
	if got := w.find("podstead", "cri"); got == engine {
		t.Error("the engine is the one that did not answer")
	}
	for said := ""; said != "READY=1"; { // by the new one
		select {
		case said = <-heard:
		case <-time.After(patience):
			t.Fatal("the new engine does not say that it serves")
		}
	}
	hears("WATCHDOG=1")
}
