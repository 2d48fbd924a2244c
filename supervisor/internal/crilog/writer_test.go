package crilog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var at = time.Date(2026, 1, 2, 15, 4, 5, 6, time.UTC)

func open(t testing.TB, o Options) *Writer {
	t.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "0.log")
	}
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func content(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// joined returns what a reader of the log, who joins P records, sees.
func joined(t testing.TB, log string, stream string) string {
	t.Helper()
	record := regexp.MustCompile(`^\S{30} (stdout|stderr) ([FP]) `)
	var out strings.Builder
	for line := range strings.Lines(log) {
		m := record.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not a record: %.80q", line)
		}
		if m[1] != stream {
			continue
		}
		text := strings.TrimSuffix(line[headerSize:], "\n")
		if len(text) > MaxLine {
			t.Fatalf("record of %d bytes", len(text))
		}
		out.WriteString(text)
		if m[2] == "F" {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

func TestFormat(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	const out, part = "2026-01-02T15:04:05.000000006Z stdout F ", "2026-01-02T15:04:05.000000006Z stdout P "
	for name, c := range map[string]struct {
		writes []string
		want   string
	}{
		"line":           {[]string{"hello\n"}, out + "hello\n"},
		"empty lines":    {[]string{"\n\n"}, out + "\n" + out + "\n"},
		"in pieces":      {[]string{"he", "ll", "o\nnext"}, out + "hello\n" + out + "next\n"},
		"no end":         {[]string{"hello"}, out + "hello\n"},
		"carriage":       {[]string{"a\r\n"}, out + "a\r\n"},
		"binary":         {[]string{"\x00\xff\xfe\n"}, out + "\x00\xff\xfe\n"},
		"just fits":      {[]string{long + "\n"}, out + long + "\n"},
		"one too many":   {[]string{long + "y\n"}, part + long + "\n" + out + "y\n"},
		"late newline":   {[]string{long, "\n"}, out + long + "\n"},
		"late character": {[]string{long, "y", "\n"}, part + long + "\n" + out + "y\n"},
		"three parts":    {[]string{long + long + long + "\n"}, part + long + "\n" + part + long + "\n" + out + long + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t, Options{})
			var sc Scratch
			for _, s := range c.writes {
				w.Write(&sc, Stdout, at, []byte(s))
			}
			w.End(&sc, Stdout, at)
			w.Close()
			if got := content(t, w.Path); got != c.want {
				t.Errorf("got %.200q\nwant %.200q", got, c.want)
			}
		})
	}
}

func TestStreamsKeepTheirLines(t *testing.T) {
	w := open(t, Options{})
	var sc Scratch
	w.Write(&sc, Stdout, at, []byte("out "))
	w.Write(&sc, Stderr, at, []byte("err\n"))
	w.Write(&sc, Stdout, at, []byte("put\n"))
	w.Close()
	log := content(t, w.Path)
	if joined(t, log, "stdout") != "out put\n" || joined(t, log, "stderr") != "err\n" {
		t.Errorf("got %q", log)
	}
}

func FuzzWriteLosesNothing(f *testing.F) {
	f.Add([]byte("a\nb"), 1, 1)
	f.Add(bytes.Repeat([]byte("0123456789"), 5000), 4096, 3)
	f.Fuzz(func(t *testing.T, data []byte, chunk, repeat int) {
		chunk, repeat = 1+abs(chunk)%65536, 1+abs(repeat)%8
		if len(data)*repeat/chunk > 10000 {
			return
		}
		data = bytes.Repeat(data, repeat)
		w := open(t, Options{})
		var sc Scratch
		for rest := data; len(rest) > 0; {
			n := min(chunk, len(rest))
			w.Write(&sc, Stdout, at, rest[:n])
			rest = rest[n:]
		}
		w.End(&sc, Stdout, at)
		w.Close()
		want := string(data)
		if len(want) > 0 && !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if got := joined(t, content(t, w.Path), "stdout"); got != want {
			t.Errorf("%d bytes came back as %d", len(want), len(got))
		}
	})
}

func abs(n int) int { return max(n, -(n + 1)) }

func TestRotationKeepsTheCapAndEveryLine(t *testing.T) {
	const limit = 100_000
	w := open(t, Options{MaxBytes: limit, MaxFiles: 1000})
	var sc Scratch
	var want strings.Builder
	for i := range 20000 {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%200))
		want.WriteString(line)
		w.Write(&sc, Stdout, at, []byte(line))
	}
	w.Close()
	names, err := filepath.Glob(w.Path + ".*") // sorted
	if err != nil || len(names) < 10 {
		t.Fatalf("%d rotated files, %v", len(names), err)
	}
	rotated := regexp.MustCompile(`\.log\.\d{8}-\d{6}-\d{4}$`)
	var all strings.Builder
	for _, n := range append(names, w.Path) {
		if n != w.Path && !rotated.MatchString(n) {
			t.Errorf("rotated file is called %s", n)
		}
		log := content(t, n)
		if len(log) > limit {
			t.Errorf("%s has %d bytes", n, len(log))
		}
		all.WriteString(log)
	}
	if joined(t, all.String(), "stdout") != want.String() {
		t.Error("lines are missing or out of order")
	}
}

// TestRotationByTwo rotates as fast as it goes while somebody else does, too, as
// the kubelet does it: rename, then ask for a new file. No line may be missing,
// doubled or out of order.
func TestRotationByTwo(t *testing.T) {
	w := open(t, Options{MaxBytes: 2000, MaxFiles: 1 << 20})
	renamed, written := make(chan bool), make(chan struct{})
	others := 0
	go func() {
		defer close(renamed)
		for {
			select {
			case <-written:
				return
			default:
			}
			name := w.Path + "." + time.Now().Format("20060102-150405")
			if _, err := os.Lstat(name); err == nil { // not twice in a second; other names then
				name = fmt.Sprintf("%s.other-%d", w.Path, others)
			}
			if os.Rename(w.Path, name) == nil {
				others++
				select {
				case renamed <- true:
				case <-written:
					return
				}
			}
		}
	}()
	var sc Scratch
	last := 0
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end) && last < 300_000; {
		for range 20 {
			last++
			w.Write(&sc, Stdout, at, fmt.Appendf(nil, "%d %s\n", last, strings.Repeat("x", last%50)))
		}
		select {
		case <-renamed:
			if err := w.Reopen(); err != nil {
				t.Fatal(err)
			}
		default:
		}
	}
	close(written)
	<-renamed
	w.Close()
	if w.Lost > 0 || others == 0 {
		t.Errorf("%d bytes are lost (%s), %d rotations by somebody else", w.Lost, w.Cause, others)
	}
	names, err := filepath.Glob(w.Path + "*")
	if err != nil {
		t.Fatal(err)
	}
	seen := make([]bool, last+1)
	for _, name := range names {
		before := 0
		for line := range strings.Lines(joined(t, content(t, name), "stdout")) {
			var n int
			if _, err := fmt.Sscan(line, &n); err != nil || n < 1 || n > last || seen[n] || before != 0 && n != before+1 {
				t.Fatalf("%s: %q after line %d", name, line, before)
			}
			before, seen[n] = n, true
		}
	}
	if missing := slices.Index(seen[1:], false); missing >= 0 {
		t.Errorf("line %d of %d is missing; %d files, %d renamed by somebody else", missing+1, last, len(names), others)
	}
}

func TestRotationKeepsMaxFiles(t *testing.T) {
	w := open(t, Options{MaxBytes: 100, MaxFiles: 3})
	other := filepath.Join(filepath.Dir(w.Path), "0.log.bak")
	os.WriteFile(other, nil, 0o600)
	var sc Scratch
	for range 20 {
		w.Write(&sc, Stdout, at, []byte(strings.Repeat("y", 50)+"\n"))
	}
	w.Write(&sc, Stdout, at, []byte(strings.Repeat("z", 500)+"\n")) // larger than the cap
	w.Close()
	if names, _ := filepath.Glob(w.Path + ".2*"); len(names) != 2 {
		t.Errorf("rotated files: %v", names)
	}
	if !strings.Contains(content(t, w.Path), "zzz") {
		t.Error("the large record is missing")
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

func TestReopen(t *testing.T) {
	w := open(t, Options{})
	defer w.Close()
	var sc Scratch
	w.Write(&sc, Stdout, at, []byte("one\n"))
	moved := w.Path + ".moved"
	if err := os.Rename(w.Path, moved); err != nil {
		t.Fatal(err)
	}
	w.Write(&sc, Stdout, at, []byte("two\n"))
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	w.Write(&sc, Stdout, at, []byte("three\n"))
	if got := joined(t, content(t, moved), "stdout"); got != "one\ntwo\n" {
		t.Errorf("old file: %q", got)
	}
	if got := joined(t, content(t, w.Path), "stdout"); got != "three\n" {
		t.Errorf("new file: %q", got)
	}
	os.Remove(w.Path)
	os.Symlink(moved, w.Path)
	if err := w.Reopen(); err == nil {
		t.Error("a symbolic link was followed")
	}
	w.Write(&sc, Stdout, at, []byte("lost in the removed file\n"))
	if got := joined(t, content(t, moved), "stdout"); got != "one\ntwo\n" {
		t.Errorf("old file: %q", got)
	}
}

func TestOpenRefusesOtherFiles(t *testing.T) {
	dir := t.TempDir()
	os.Symlink("/dev/null", filepath.Join(dir, "link"))
	for _, name := range []string{"link", "", "missing/0.log"} {
		if _, err := Open(Options{Path: filepath.Join(dir, name)}); err == nil {
			t.Errorf("opened %q", name)
		}
	}
	if st, err := os.Stat(open(t, Options{}).Path); err != nil || st.Mode().Perm()&0o137 != 0 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, line := range []int{1, 100, 1000, 16 << 10} {
		b.Run(fmt.Sprintf("line%d", line), func(b *testing.B) {
			w, err := Open(Options{Path: filepath.Join(b.TempDir(), "log"), MaxBytes: 64 << 20, MaxFiles: 2})
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			data := bytes.Repeat([]byte(strings.Repeat("x", line-1)+"\n"), 1+(64<<10)/line)[:64<<10]
			b.SetBytes(int64(len(data)))
			var sc Scratch
			for b.Loop() {
				w.Write(&sc, Stdout, time.Now(), data)
			}
		})
	}
}
