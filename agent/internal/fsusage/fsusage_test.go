package fsusage

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAsk: a file system is the same size to whoever asks, and by whichever way.
func TestAsk(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	want, err := Of("/")
	if err != nil {
		t.Fatal(err)
	}
	if want.Capacity == 0 || want.Used+want.Available > want.Capacity {
		t.Errorf("%+v", want)
	}
	if _, ok := near(link); ok {
		t.Error("a link was followed")
	}
	if u, err := (Asker{}).Ask(t.Context(), link); err != nil || u.Capacity != want.Capacity {
		t.Errorf("%+v, %v", u, err)
	}
	var answer bytes.Buffer
	if err := Answer(&answer, "/"); err != nil {
		t.Fatal(err)
	}
	script := Asker{Program: []string{"sh", "-c", `test "$1" = ` + link + ` && echo ` + answer.String(), "sh"}}
	if u, err := script.Ask(t.Context(), link); err != nil || u.Capacity != want.Capacity {
		t.Errorf("%+v, %v", u, err)
	}
	for _, program := range []string{"echo no figures", "echo sorry >&2; exit 3"} {
		if u, err := (Asker{Program: []string{"sh", "-c", program}}).Ask(t.Context(), link); err == nil {
			t.Errorf("%s: %+v", program, u)
		}
	}
	if err := Answer(&answer, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestAskWhoNeverAnswers: it ends with the context.
func TestAskWhoNeverAnswers(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	link := filepath.Join(t.TempDir(), "100000")
	if _, err := (Asker{Program: []string{"sh", "-c", "exec " + sleep + " 100000"}}).Ask(ctx, link); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestTypeOf(t *testing.T) {
	const mounts = `1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
2 1 0:5 / /mnt/shared\040disk rw - nfs4 server:/x rw,vers=4.2
3 1 0:6 / /mnt/local rw - xfs /dev/sdb rw
4 3 0:7 / /mnt/local/sub rw master:3 - fuse.sshfs host: rw
5 1 0:8 / /over rw - nfs server:/y rw
6 5 0:9 / /over rw - tmpfs tmpfs rw
nonsense
`
	for path, want := range map[string]string{"/": "ext4", "/mnt/local": "xfs", "/mnt/local/a/b": "xfs", "/mnt/localized": "ext4",
		"/mnt/local/sub/x": "fuse.sshfs", "/mnt/shared disk/x": "nfs4", "/over/x": "tmpfs"} {
		if got := typeOf(strings.NewReader(mounts), path); got != want {
			t.Errorf("%s is on %q, want %q", path, got, want)
		}
	}
	if own("nfs4") || own("fuse.sshfs") || own("") || !own("ext4") {
		t.Error("own")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("1 2 3 4 5 6\n")
	f.Add("-1 2 3\n")
	f.Fuzz(func(t *testing.T, text string) {
		if u, err := parse(text); err != nil && u != (Usage{}) {
			t.Errorf("%q is %+v", text, u)
		}
	})
}

func TestLocal(t *testing.T) {
	dir := t.TempDir()
	for from, to := range map[string]string{"link": dir, "loop": "loop", "up": "../../..", "gone": "nowhere/at/all"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]bool{
		dir: true, dir + "/none/at/all": true, dir + "/link/link": true, dir + "/up": true, dir + "/gone": true, dir + "/loop": false, "/proc/self": true, "relative": false, "": false,
	} {
		if got := Local(path); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
}
