package crilog

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a tmpfs and fills it up to room bytes.
func smallDisk(t *testing.T, room int) (dir, filler string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	dir = t.TempDir()
	const size = 256 << 10
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.Itoa(size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler = filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, size-room), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, filler
}

func TestFullDisk(t *testing.T) {
	dir, filler := smallDisk(t, 64<<10)
	w := open(t, Options{Path: filepath.Join(dir, "0.log"), MaxBytes: 1 << 20, MaxFiles: 2})
	var sc Scratch
	written := 0
	write := func(from, to int) {
		for i := from; i < to; i++ {
			line := fmt.Sprintf("%06d %s\n", i, strings.Repeat("x", i%100))
			written += len(line)
			w.Write(&sc, Stdout, at, []byte(line))
		}
	}
	write(0, 2000)
	log := content(t, w.Path)
	if w.Lost == 0 || !strings.HasSuffix(log, "x\n") && !strings.HasSuffix(log, " \n") {
		t.Fatalf("lost %d, log ends with %.100q", w.Lost, log[len(log)-50:])
	}
	joined(t, log, "stdout") // only whole records
	if w.Report() {
		t.Error("the loss was reported to a full disk")
	}
	os.Remove(filler)
	write(2000, 2100)
	w.Close()
	log = content(t, w.Path)
	m := regexp.MustCompile(`\[podstead: (\d+) bytes of output are missing here: no space left on device\]`).FindAllStringSubmatch(log, -1)
	if len(m) != 1 || m[0][1] != strconv.FormatInt(w.Lost, 10) {
		t.Fatalf("lost %d, log says %v", w.Lost, m)
	}
	logged := joined(t, log, "stdout")
	if len(logged)+int(w.Lost) != written {
		t.Errorf("%d bytes logged + %d lost, %d written", len(logged), w.Lost, written)
	}
	if !strings.Contains(logged, "002000 ") || !strings.Contains(logged, "002099 ") {
		t.Error("lines after the loss are missing")
	}
}

// TestRotationOnAFullDisk shows that a rotation that fails loses no old log.
func TestRotationOnAFullDisk(t *testing.T) {
	dir, filler := smallDisk(t, 32<<10)
	w := open(t, Options{Path: filepath.Join(dir, "0.log"), MaxBytes: 20 << 10, MaxFiles: 2})
	var sc Scratch
	for i := range 2000 {
		w.Write(&sc, Stdout, at, []byte(strconv.Itoa(i)+"\n"))
	}
	os.Remove(filler)
	w.Write(&sc, Stdout, at, []byte("after\n"))
	w.Close()
	if log := content(t, w.Path); !strings.HasSuffix(log, " stdout F after\n") || !strings.Contains(log, "are missing here") {
		t.Errorf("log ends with %.300q", log[max(0, len(log)-300):])
	}
	for _, name := range []string{w.Path, w.Path + ".*"} {
		names, _ := filepath.Glob(name)
		for _, n := range names {
			if st, err := os.Stat(n); err != nil || st.Size() > 20<<10 {
				t.Errorf("%s: %v bytes, %v", n, st.Size(), err)
			}
			joined(t, content(t, n), "stdout")
		}
	}
}
