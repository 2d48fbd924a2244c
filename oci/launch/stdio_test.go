package launch

import (
	"os"
	"slices"
	"testing"
)

// TestNullInTheWay: the forker's /dev/null is the child's stdio, unless its number
// is one that a further descriptor of the child gets.
func TestNullInTheWay(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	n := int(null.Fd())
	for extra, want := range map[int]bool{0: true, n - 3: true, n - 2: false, n: false} {
		fds, closeAll, err := new(Program).stdioFds(&ForkOptions{Forker: &Forker{null: null}, Extra: make([]*os.File, extra)})
		if err != nil {
			t.Fatal(err)
		}
		closeAll()
		if got := slices.Contains(fds, n); got != want {
			t.Errorf("with %d more descriptors, stdio is %v and /dev/null %d", extra, fds, n)
		}
	}
}
