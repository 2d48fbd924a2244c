package leak

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"podstead/test/host"
)

// A host of its own: other tests' processes come and go on the machine.
func TestMain(m *testing.M) { host.Main(m) }

func TestSinceNamesWhatIsLeft(t *testing.T) {
	host.Require(t)
	dir := t.TempDir()
	s := Scope{Dirs: []string{dir}, Settle: time.Millisecond}
	before := Take(s)
	if left := Since(before, s); len(left) > 0 {
		t.Fatalf("nothing happened, and there is %q", left)
	}
	name := filepath.Join(dir, "left")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	left := Since(before, s)
	for _, want := range []string{"file " + name, "descriptor " + name} {
		if !slices.ContainsFunc(left, func(l string) bool { return strings.HasPrefix(l, want) }) {
			t.Errorf("no %q in %q", want, left)
		}
	}
	f.Close()
	os.Remove(name)
	s.Settle = 10 * time.Second
	if left := Since(before, s); len(left) > 0 {
		t.Errorf("all is gone, and there is %q", left)
	}
}
