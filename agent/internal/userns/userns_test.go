package userns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// files writes subuid and subgid.
func files(t *testing.T, uids, gids string) (subuid, subgid string) {
	t.Helper()
	dir := t.TempDir()
	subuid, subgid = filepath.Join(dir, "subuid"), filepath.Join(dir, "subgid")
	for name, content := range map[string]string{subuid: uids, subgid: gids} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return subuid, subgid
}

func take(t *testing.T, b *Blocks, uid string) uint32 {
	t.Helper()
	if err := os.MkdirAll(b.podDir(uid), 0o755); err != nil {
		t.Fatal(err)
	}
	ns, err := b.Take(uid)
	if err != nil {
		t.Fatal(err)
	}
	if u, g := ns.Uids[0], ns.Gids[0]; u.HostId != g.HostId || u.Length != Length || u.ContainerId != 0 {
		t.Fatalf("%+v", ns)
	}
	return ns.Uids[0].HostId
}

func TestBlocksAreOnesOwn(t *testing.T) {
	dir := t.TempDir()
	subuid, subgid := files(t, "kubelet:65536:196608\n", "kubelet:65536:196608\n") // three blocks
	b, err := New(dir, subuid, subgid, 0)
	if err != nil {
		t.Fatal(err)
	}
	one, two, three := take(t, b, "one"), take(t, b, "two"), take(t, b, "three")
	if one == two || two == three || one == three {
		t.Errorf("%d, %d, %d", one, two, three)
	}
	for _, first := range []uint32{one, two, three} {
		if first%Length != 0 || first < 65536 || first >= 65536+196608 {
			t.Errorf("%d is not kubelet's", first)
		}
	}
	if err := os.Mkdir(b.podDir("four"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Take("four"); err == nil || !strings.Contains(err.Error(), "all 3 blocks") {
		t.Errorf("the fourth of three: %v", err)
	}
	// Another agent, later, finds the pods with their blocks.
	if b, err = New(dir, subuid, subgid, 0); err != nil {
		t.Fatal(err)
	}
	if again := take(t, b, "two"); again != two {
		t.Errorf("two has %d, had %d", again, two)
	}
	os.RemoveAll(b.podDir("one"))
	b.Release("one")
	if four := take(t, b, "four"); four != one {
		t.Errorf("four has %d, free was %d", four, one)
	}
}

func TestBlocksLeaveOthersAlone(t *testing.T) {
	subuid, subgid := files(t, "# people\nann:100000:65536\n", "bob:65536:1\nann:200000:100000\n")
	free, err := available(subuid, subgid, Length)
	if err != nil {
		t.Fatal(err)
	}
	taken := map[uint32]bool{}
	for _, s := range free {
		taken[uint32(s.first)] = true
	}
	for first, want := range map[uint32]bool{1 << 16: false, 2 << 16: false, 3 << 16: false, 4 << 16: false, 5 << 16: true, 6 << 16: true} {
		if taken[first] != want {
			t.Errorf("block %d: %t", first>>16, taken[first])
		}
	}
	for _, c := range []struct{ uids, gids, want string }{
		{"ann:1", "", ":1: want NAME:FIRST:COUNT"},
		{"ann:x:1", "", "invalid syntax"},
		{"kubelet:65536:65536", "kubelet:131072:65536", "the same ones in both"},
		{"kubelet:65536:65536", "", "the same ones in both"},
		{"kubelet:65537:65536", "kubelet:65537:65536", "multiple of 65536"},
		{"all:0:4294967295", "", "leave no user IDs for pods"},
	} {
		subuid, subgid := files(t, c.uids, c.gids)
		if _, err := available(subuid, subgid, Length); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %q: %v, want %s", c.uids, c.gids, err, c.want)
		}
	}
}

// TestLengthChanges: pods keep their blocks, of whatever length, when new ones get
// others, and no two have the same IDs.
func TestLengthChanges(t *testing.T) {
	dir := t.TempDir()
	subuid, subgid := files(t, "kubelet:65536:327680\n", "kubelet:65536:327680\n") // five times 65536
	b, err := New(dir, subuid, subgid, 0)
	if err != nil {
		t.Fatal(err)
	}
	old := take(t, b, "old")
	if b, err = New(dir, subuid, subgid, 2*Length); err != nil {
		t.Fatal(err)
	}
	if again := take(t, b, "old"); again != old {
		t.Errorf("old has %d, had %d", again, old)
	}
	// Of the two blocks of twice the length one may be partly the old pod's.
	var spans []span
	for _, uid := range []string{"a", "b"} {
		if err := os.Mkdir(b.podDir(uid), 0o755); err != nil {
			t.Fatal(err)
		}
		ns, err := b.Take(uid)
		if err != nil {
			continue
		}
		if ns.Uids[0].Length != 2*Length {
			t.Errorf("%s has %d IDs", uid, ns.Uids[0].Length)
		}
		spans = append(spans, span{uint64(ns.Uids[0].HostId), uint64(ns.Uids[0].Length)})
	}
	if len(spans) == 0 || len(spans) == 2 && spans[0].overlaps(spans[1]) {
		t.Errorf("%v", spans)
	}
	for _, s := range spans {
		if s.overlaps(span{uint64(old), Length}) {
			t.Errorf("%v are the old pod's %d, too", s, old)
		}
	}
}
