package sys

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOpenat2BesideRenames: the kernel breaks off lookups while something else is
// renamed, which is no error of the one who looks.
func TestOpenat2BesideRenames(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"/root/a", "/elsewhere/0"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				from, to := []byte("/0"), []byte("/1")
				if i%2 == 1 {
					from, to = to, from
				}
				if err := os.Rename(dir+"/elsewhere"+string(from), dir+"/elsewhere"+string(to)); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	root, err := os.Open(dir + "/root")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	path := strings.Repeat("a/../", 40) + "a"
	brokenOff := 0
	for end := time.Now().Add(20 * time.Second); brokenOff < 20 && time.Now().Before(end); {
		fd, err := Openat2(int(root.Fd()), path, how)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd, err = unix.Openat2(int(root.Fd()), path, how)
		switch {
		case err == nil:
			unix.Close(fd)
		case errors.Is(err, unix.EAGAIN):
			brokenOff++
		default:
			t.Fatal(err)
		}
	}
	if brokenOff == 0 {
		t.Skip("no lookup was broken off")
	}
}
