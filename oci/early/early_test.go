package early

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain plays the program that is executed anew, which prints what it sees.
func TestMain(m *testing.M) {
	if !slices.Contains(os.Args, "--see") {
		os.Exit(m.Run())
	}
	var st unix.Statfs_t
	if err := unix.Statfs(self[:len(self)-1], &st); err != nil {
		fmt.Println(err)
	}
	exe, _ := os.Readlink(self[:len(self)-1])
	fmt.Printf("read-only %v\nat %s\nargs %q\nenv %q\n", st.Flags&unix.ST_RDONLY != 0, exe, os.Args, os.Environ())
}

// TestExecutesAnew has the program of this test call itself with commands of
// podstead-oci.
func TestExecutesAnew(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	long := "LONG=" + strings.Repeat("x", 20_000)
	for _, c := range []struct {
		args, env []string
		readOnly  bool
		wantEnv   []string
	}{
		{[]string{"--root", "", "exec", "a b", "--see"}, []string{"A=1", long, "B="}, true, []string{"A=1", long, "B=", "GOMAXPROCS=01"}},
		{[]string{"create", "--see"}, []string{"GOMAXPROCS=2"}, true, []string{"GOMAXPROCS=2"}},
		{[]string{"state", "--see"}, []string{"A=1"}, false, []string{"A=1"}},
	} {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, c.args...)
		cmd.Env = c.env
		out, err := cmd.CombinedOutput()
		at := exe
		if c.readOnly {
			at = exe[strings.LastIndexByte(exe, '/'):]
		}
		want := fmt.Sprintf("read-only %v\nat %s\nargs %q\nenv %q\n", c.readOnly, at, append([]string{exe}, c.args...), c.wantEnv)
		if err != nil || string(out) != want {
			t.Errorf("%v: %v\n%s\nwant\n%s", c.args, err, out, want)
		}
	}
}
