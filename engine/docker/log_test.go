package docker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

func wantError(t *testing.T, word string, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), word) {
		t.Errorf("error is %v, want one that names %s", err, word)
	}
}

func TestAppendEntry(t *testing.T) {
	const at = "2026-11-22T02:23:09.894000001Z"
	for entry, want := range map[string]string{
		`{"log":"out\n","stream":"stdout","time":"` + at + `"}`:           at + " stdout F out\n",
		`{"log":"part","stream":"stderr","time":"` + at + `"}`:            at + " stderr P part\n",
		`{"log":"\n","stream":"stdout","time":"` + at + `"}`:              at + " stdout F \n",
		`{"log":"tty\r\n","stream":"stdout","time":"` + at + `"}`:         at + " stdout F tty\r\n",
		`{"log":"\u003cü\u0001\n","stream":"stdout","time":"` + at + `"}`: at + " stdout F <ü\x01\n",
		`{"log":"torn`: "",
		``:             "",
		`{"log":"x\n","stream":"stdin","time":"` + at + `"}`: "",
		`null`: "",
	} {
		if got := string(appendEntry(nil, []byte(entry))); got != want {
			t.Errorf("%s: %q, want %q", entry, got, want)
		}
	}
}

var whole = regexp.MustCompile(`^\S+ (stdout|stderr) [FP] .*\n$`)

func FuzzAppendEntry(f *testing.F) {
	f.Add([]byte(`{"log":"out\n","stream":"stdout","time":"2026-11-22T02:23:09Z"}`))
	f.Add([]byte(`{"log":"a\nb\n","stream":"stderr","time":"2026-11-22T02:23:09Z"}`))
	f.Fuzz(func(t *testing.T, entry []byte) {
		for line := range strings.Lines(string(appendEntry(nil, entry))) {
			if !whole.MatchString(line) {
				t.Errorf("%q is not a line of a log", line)
			}
		}
	})
}

// dockerLog plays Docker: a log file that is rotated.
type dockerLog struct {
	t    *testing.T
	path string
	file *os.File
	n    int
}

func newDockerLog(t *testing.T) *dockerLog {
	l := &dockerLog{t: t, path: filepath.Join(t.TempDir(), "json.log")}
	l.open()
	t.Cleanup(func() { l.file.Close() })
	return l
}

func (l *dockerLog) open() {
	var err error
	if l.file, err = os.Create(l.path); err != nil {
		l.t.Fatal(err)
	}
}

func (l *dockerLog) write(lines int) {
	for range lines {
		b, err := json.Marshal(map[string]any{"log": fmt.Sprintf("line %d\n", l.n), "stream": "stdout", "time": time.Unix(1e9, int64(l.n)).UTC()})
		if err != nil {
			l.t.Fatal(err)
		}
		l.n++
		if _, err := l.file.Write(append(b, '\n')); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *dockerLog) rotate(keep int) {
	l.file.Close()
	for i := keep - 1; i > 0; i-- {
		from := l.path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", l.path, i-1)
		}
		os.Rename(from, fmt.Sprintf("%s.%d", l.path, i))
	}
	l.open()
}

// wantLines checks that a file, or several one after the other, hold all lines
// once and in order.
func wantLines(t *testing.T, n int, files ...string) {
	t.Helper()
	var got strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(b)
	}
	var want strings.Builder
	for i := range n {
		fmt.Fprintf(&want, "%s stdout F line %d\n", time.Unix(1e9, int64(i)).UTC().Format(time.RFC3339Nano), i)
	}
	if got.String() != want.String() {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want.String())
	}
}

// all moves all that there is.
func (p *pump) all() error {
	for {
		if more, err := p.run(); err != nil || !more {
			return err
		}
	}
}

// TestLogThatNeverPauses reopens the log of a container that writes faster than
// its output is copied, and lets go of it.
func TestLogThatNeverPauses(t *testing.T) {
	l := newDockerLog(t)
	entry := []byte(`{"log":"` + strings.Repeat("x", 100) + `\n","stream":"stdout","time":"2026-11-22T02:23:09Z"}` + "\n")
	block := bytes.Repeat(entry, 2*burst*readSize/len(entry))
	target := filepath.Join(t.TempDir(), "0.log")
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for written := int64(0); ; { // always more ahead than is looked at without a pause
			select {
			case <-stop:
				return
			default:
			}
			if st, err := os.Stat(target); err != nil || written < 2*st.Size()+int64(len(block)) {
				l.file.Write(block)
				written += int64(len(block))
			}
		}
	})
	all, err := newLogs(func(string) string { return filepath.Join(filepath.Dir(target), "state") }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f := all.follow(&ctr{id: "c", rec: containerRecord{LogPath: target}, seen: &container.InspectResponse{LogPath: l.path}})
	answer := make(chan error, 1)
	deadline := time.After(time.Minute)
	for begun := false; !begun; {
		st, err := os.Stat(target)
		begun = err == nil && st.Size() > 0
		select {
		case <-deadline:
			t.Fatal("nothing is copied")
		case <-time.After(time.Millisecond): // between two looks
		}
	}
	select {
	case f.reopen <- answer:
		if err := <-answer; err != nil {
			t.Error(err)
		}
	case <-deadline:
		t.Error("it is not opened again")
	}
	close(stop)
	writer.Wait()
	all.forget("c")
	if err := all.close(); err != nil {
		t.Error(err)
	}
}

// TestPumpAcrossCrashes begins a new pump again and again, sometimes with a
// position that is older than what was written, as after a crash, while Docker
// writes and rotates.
func TestPumpAcrossCrashes(t *testing.T) {
	l, dir := newDockerLog(t), t.TempDir()
	target := filepath.Join(dir, "pod", "0.log")
	position := filepath.Join(dir, positionFile)
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		l.write(random.IntN(5))
		p, err := openPump(l.path, target, dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.all(); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(position)
		if err != nil {
			t.Fatal(err)
		}
		l.write(random.IntN(5))
		if random.IntN(4) == 0 {
			l.rotate(4)
			l.write(random.IntN(3))
		}
		if err := p.all(); err != nil {
			t.Fatal(err)
		}
		p.close()
		switch random.IntN(3) {
		case 0: // killed before the position was saved
			if err := os.WriteFile(position, before, 0o600); err != nil {
				t.Fatal(err)
			}
		case 1: // and in the middle of a write
			if err := os.WriteFile(position, before, 0o600); err != nil {
				t.Fatal(err)
			}
			old := p.at.Size
			p, err := openPump(l.path, target, dir)
			if err != nil {
				t.Fatal(err)
			}
			if cut := p.skip / 2; cut > 0 {
				if err := os.Truncate(target, old-cut); err != nil {
					t.Fatal(err)
				}
			}
			p.close()
		}
	}
	p, err := openPump(l.path, target, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.all(); err != nil {
		t.Fatal(err)
	}
	wantLines(t, l.n, target)
}

func TestPumpReopens(t *testing.T) {
	l, dir := newDockerLog(t), t.TempDir()
	target := filepath.Join(dir, "0.log")
	p, err := openPump(l.path, target, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	l.write(3)
	if err := os.Rename(target, target+".1"); err != nil {
		t.Fatal(err)
	}
	if err := p.reopen(); err != nil {
		t.Fatal(err)
	}
	wantLines(t, 3, target+".1")
	wantLines(t, 0, target)
	l.write(2)
	if err := p.all(); err != nil {
		t.Fatal(err)
	}
	wantLines(t, 5, target+".1", target)
}

// TestPumpLeavesRemovedLogs begins again for a log that is complete and whose
// file the client has removed.
func TestPumpLeavesRemovedLogs(t *testing.T) {
	l, dir := newDockerLog(t), t.TempDir()
	target := filepath.Join(dir, "0.log")
	for range 2 {
		l.write(0)
		p, err := openPump(l.path, target, dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.all(); err != nil {
			t.Fatal(err)
		}
		p.close()
		os.Remove(target)
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("the file was made again")
	}
}
