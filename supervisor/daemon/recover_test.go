package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenPipeOnly: a container that swaps its output for a file must not have
// the next supervisor open that file, as root, and show it in the log.
func TestOpenPipeOnly(t *testing.T) {
	secret, err := os.Create(filepath.Join(t.TempDir(), "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// The one that is swapped comes before the other in the list.
	at, err := unix.FcntlInt(r.Fd(), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := unix.FcntlInt(r.Fd(), unix.F_DUPFD_CLOEXEC, at+1)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe)
	inode, file := pipeInode(at), int(secret.Fd())
	r.Close()
	w.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				unix.Dup3(file, at, unix.O_CLOEXEC)
				unix.Dup3(pipe, at, unix.O_CLOEXEC)
			}
		}
	}()
	for range 5000 {
		fd, err := openPipe(os.Getpid(), inode, unix.O_RDONLY)
		if err != nil {
			continue
		}
		if got := pipeInode(fd); got != inode {
			t.Errorf("opened inode %d in place of pipe %d", got, inode)
			unix.Close(fd)
			break
		}
		unix.Close(fd)
	}
	close(stop)
	<-stopped
	unix.Close(at)
}
