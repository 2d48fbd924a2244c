package stuck

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestFind(t *testing.T) {
	proc := t.TempDir()
	process := func(pid, tid int, files map[string]string) {
		dir := filepath.Join(proc, fmt.Sprint(pid), "task", fmt.Sprint(tid))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	process(1, 1, map[string]string{"stat": "1 (sleep) S 0 1"})
	process(2, 2, map[string]string{"stat": "2 (a) D (b) Z 0 1"})
	process(2, 3, map[string]string{"stat": "3 (a) D (b) D 0 1", "syscall": "0 0x3 0x7ffd 0x1000 0x0 0x0 0x0 0x7ff 0x7ff\n", "wchan": "request_wait_answer",
		"stack": "[<0>] request_wait_answer+0x120/0x200\n[<0>] fuse_simple_request+0x1a/0x30\n"})
	process(4, 4, map[string]string{"stat": "4 (cat) D 0 1", "syscall": "9999 0x0", "wchan": "io_schedule"})
	process(5, 5, map[string]string{"stat": "5 (cat) D 0 1"}) // nothing more is for us to read
	process(6, 6, map[string]string{"stat": "garbage"})
	want := []string{
		"process a) D (b (pid 2) does not leave the kernel, in the system call read (request_wait_answer < fuse_simple_request)",
		"process cat (pid 4) does not leave the kernel, in the system call number 9999 (io_schedule)",
		"process cat (pid 5) does not leave the kernel",
	}
	var got []string
	for _, p := range Find(proc, []int{1, 2, 3, 4, 5, 6, 7}) {
		got = append(got, p.String())
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("%q, want %q", got, want)
	}
}
