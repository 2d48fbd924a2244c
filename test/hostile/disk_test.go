package hostile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podstead/image/imagetest"
)

// fill takes all space of a file system, and returns what gives it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "ballast")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := 1 << 20; block >= 512; {
		if _, err := f.Write(make([]byte, block)); errors.Is(err, unix.ENOSPC) {
			block /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	dir := smallDisk(t, "size=48m")
	n := startIn(t, filepath.Join(dir, "node"))
	p := n.pod()
	talks := sh("i=0; while :; do i=$((i+1)); echo line $i; usleep 2000; done")
	id := p.start(talks)
	p.prints(talks, "line 10\n")
	free := fill(t, dir)

	big := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "big", Data: make([]byte, 4<<20)})})
	wantError(t, "load on a full disk", n.tryLoad(imagetest.ArchiveBytes(t, big, "localhost/big:1")), "no space left")
	_, err := p.try(sh("true"))
	wantError(t, "create on a full disk", err, "no space left")
	if out, err := p.exec(id, "echo", "still here"); err != nil || string(out.GetStdout()) != "still here\n" {
		t.Errorf("exec on a full disk: %v, %v", out, err)
	}
	free()

	// The log goes on, with what was written meanwhile lost at most.
	seen := p.log(talks)
	n.eventually("the log goes on", func() error {
		if now := p.log(talks); len(now) <= len(seen) {
			return fmt.Errorf("%d bytes", len(now))
		}
		return nil
	})
	n.load(imagetest.ArchiveBytes(t, big, "localhost/big:1"))
	n.removeImage("localhost/big:1")
	free = fill(t, dir)
	p.stop(id, 0)
	p.remove() // also without space
	free()
}

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A process that nobody finds any more, because its program is gone already,
		// may not have closed its files yet.
		err := unix.Unmount(dir, 0)
		for deadline := time.Now().Add(5 * time.Minute); err == unix.EBUSY && time.Now().Before(deadline); err = unix.Unmount(dir, 0) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func TestNoInodesLeft(t *testing.T) {
	dir := smallDisk(t, "nr_inodes=1200")
	n := startIn(t, filepath.Join(dir, "node"))
	var files []imagetest.File
	for i := range 2000 {
		files = append(files, imagetest.File{Name: fmt.Sprint("f", i)})
	}
	img := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: imagetest.Tar(t, files...)})
	wantError(t, "load without inodes", n.tryLoad(imagetest.ArchiveBytes(t, img, "localhost/many:1")), "no space left")
}
