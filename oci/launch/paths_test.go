package launch

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var pathRounds = flag.Int("paths", 40, "how many random roots TestPathModel launches in")

// modelNode is a file of an image, or what has come in its place.
type modelNode struct {
	parent  *modelNode
	entries map[string]*modelNode // of a directory
	link    string                // of a symbolic link
	over    *modelNode            // what is mounted on it
}

func modelDir(parent *modelNode) *modelNode {
	n := &modelNode{parent: parent, entries: map[string]*modelNode{}}
	if parent == nil {
		n.parent = n
	}
	return n
}

var (
	errModelLoop = errors.New("too many links")
	errModelKind = errors.New("wrong kind of file")
)

// find resolves a path as in a root of its own and makes what is missing: the
// directories, and at the end a directory or a file. It returns the path without
// links.
func (root *modelNode) find(p string, dir bool) (at *modelNode, canonical string, err error) {
	parts, names := strings.Split(p, "/"), []string{}
	at = root.top()
	for links := 0; len(parts) > 0; {
		name, last := parts[0], len(parts) == 1
		parts = parts[1:]
		if at.entries == nil {
			return nil, "", errModelKind
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if len(names) > 0 {
				names, at = names[:len(names)-1], root.walk(names[:len(names)-1])
			}
			continue
		}
		next := at.entries[name]
		switch {
		case next == nil && (dir || !last):
			next = modelDir(at)
			at.entries[name] = next
		case next == nil:
			next = &modelNode{parent: at}
			at.entries[name] = next
		case next.link != "":
			if links++; links > 40 {
				return nil, "", errModelLoop
			}
			parts = append(strings.Split(next.link, "/"), parts...)
			if next.link[0] == '/' {
				names, at = nil, root.top()
			}
			continue
		}
		names, at = append(slices.Clip(names), name), next.top()
	}
	if dir && at.entries == nil {
		return nil, "", errModelKind
	}
	return at, "/" + strings.Join(names, "/"), nil
}

// top is what is seen at a node.
func (n *modelNode) top() *modelNode {
	for n.over != nil {
		n = n.over
	}
	return n
}

func (root *modelNode) walk(names []string) *modelNode {
	n := root.top()
	for _, name := range names {
		n = n.entries[name].top()
	}
	return n
}

// list writes what is in the image itself, without what is mounted.
func (n *modelNode) list(prefix string, to map[string]string) {
	for name, e := range n.entries {
		p := prefix + "/" + name
		switch {
		case e.link != "":
			to[p] = "link " + e.link
		case e.entries == nil:
			to[p] = "file"
		default:
			to[p] = "directory"
			e.list(p, to)
		}
	}
}

// load makes the model of a tree on disk.
func (n *modelNode) load(t *testing.T, dir string) {
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		p := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			n.entries[e.Name()] = modelDir(n)
			n.entries[e.Name()].load(t, p)
		case e.Type()&os.ModeSymlink != 0:
			link, err := os.Readlink(p)
			if err != nil {
				t.Fatal(err)
			}
			n.entries[e.Name()] = &modelNode{parent: n, link: link}
		default:
			n.entries[e.Name()] = &modelNode{parent: n}
		}
	}
}

// randomTree fills a directory with links that lead anywhere, directories and
// files, four names in each.
func randomTree(t *testing.T, r *rand.Rand, dir, host string, depth int) {
	for _, name := range pathNames {
		p := filepath.Join(dir, name)
		var err error
		switch r.IntN(6) {
		case 0, 1, 2:
			err = os.Symlink(randomTarget(r, host), p)
		case 3:
			if err = os.Mkdir(p, 0o755); err == nil && depth > 0 {
				randomTree(t, r, p, host, depth-1)
			}
		case 4:
			err = os.WriteFile(p, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

var pathNames = []string{"a", "b", "c", "d"}

func randomTarget(r *rand.Rand, host string) string {
	var parts []string
	for range 1 + r.IntN(4) {
		parts = append(parts, append(pathNames, "..", "..", ".", "etc")[r.IntN(8)])
	}
	target := strings.Join(parts, "/")
	switch r.IntN(5) {
	case 0:
		return "/" + target
	case 1:
		return host + "/" + target
	case 2:
		return strings.Repeat("../", r.IntN(12)) + strings.TrimPrefix(host, "/") + "/" + target
	}
	return target
}

// TestPathModel launches containers in random roots full of links, with mounts at
// random paths, and compares with a model: where the mounts are, where the process
// is, and what was made in the image. The host must not change.
func TestPathModel(t *testing.T) {
	needRoot(t)
	plain := strings.Split(pathOutput(t, rootfs(t), nil, "/").mounts, "\n")
	for seed := range uint64(*pathRounds) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			root, host := rootfs(t), t.TempDir()
			mustWrite(t, filepath.Join(host, "victim"))
			mustMkdir(t, filepath.Join(host, "a"))
			randomTree(t, r, root, host, 2)
			model := modelDir(nil)
			model.load(t, root)
			before := fingerprint(t, host)

			mounts, want := randomMounts(r, model, host)
			cwd := path.Clean("/" + randomTarget(r, host))
			_, cwdAt, err := model.find(strings.TrimPrefix(cwd, "/"), true)
			if err != nil {
				want.refused = true
			}
			got := pathOutput(t, root, mounts, cwd)
			if after := fingerprint(t, host); after != before {
				t.Fatalf("the host changed from %s to %s", before, after)
			}
			if want.anything {
				return
			}
			if (got.err != nil) != want.refused {
				t.Fatalf("error %v, want one: %t", got.err, want.refused)
			}
			if want.refused {
				return
			}
			points := slices.Sorted(slices.Values(append(slices.Clone(plain), want.points...)))
			if have := slices.Sorted(slices.Values(strings.Split(got.mounts, "\n"))); !slices.Equal(have, points) {
				t.Errorf("mounted at %v, want %v", have, points)
			}
			if got.cwd != cwdAt {
				t.Errorf("working directory %s, want %s", got.cwd, cwdAt)
			}
			compareTree(t, model, root)
		})
	}
}

// TestPathsBesideRenames: the kernel breaks off lookups with ".." while anything
// is renamed anywhere, see sys.Openat2. No container may fail for that.
func TestPathsBesideRenames(t *testing.T) {
	needRoot(t)
	root, dir := rootfs(t), t.TempDir()
	mustMkdir(t, root+"/a")
	mustMkdir(t, dir+"/0")
	if err := os.Symlink(strings.Repeat("a/../", 40)+"a", root+"/link"); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := os.Rename(fmt.Sprint(dir, "/", i), fmt.Sprint(dir, "/", i+1)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 20 {
		if got := pathOutput(t, root, []specs.Mount{tmpfs("/link/b", "size=64k")}, "/link"); got.err != nil || got.cwd != "/a" {
			t.Fatalf("in %q, error %v", got.cwd, got.err)
		}
	}
}

// expectation is what the model says of a launch.
type expectation struct {
	points            []string // of mounts
	refused, anything bool
}

// randomMounts are mounts of new file systems and of files, and what comes of them.
func randomMounts(r *rand.Rand, model *modelNode, host string) (list []specs.Mount, want expectation) {
	for range 1 + r.IntN(5) {
		dest, dir := path.Clean("/"+randomTarget(r, host)), r.IntN(2) == 0
		if dest == "/" {
			continue
		}
		m := tmpfs(dest, "size=64k")
		if !dir {
			m = specs.Mount{Destination: dest, Source: host + "/victim", Options: []string{"bind"}}
		}
		list = append(list, m)
		if want.refused {
			continue
		}
		at, canonical, err := model.find(strings.TrimPrefix(dest, "/"), dir)
		switch {
		case err != nil, (at.entries != nil) != dir:
			want.refused = true
		case canonical == "/": // over the root: no container comes of it that could be foretold
			want.anything = true
			return list, want
		case dir:
			at.over = modelDir(at.parent)
			want.points = append(want.points, canonical)
		default:
			at.over = &modelNode{parent: at.parent}
			want.points = append(want.points, canonical)
		}
	}
	return list, want
}

// compareTree compares what was made in the image, but for what every container
// has.
func compareTree(t *testing.T, model *modelNode, root string) {
	t.Helper()
	now := modelDir(nil)
	now.load(t, root)
	have, want := map[string]string{}, map[string]string{}
	now.list("", have)
	model.list("", want)
	for p, what := range have {
		top, _, _ := strings.Cut(p[1:], "/")
		if want[p] != what && !slices.Contains([]string{"proc", "sys", "dev"}, top) {
			t.Errorf("%s: %s, want %q", p, what, want[p])
		}
	}
	for p, what := range want {
		if have[p] == "" {
			t.Errorf("%s: nothing, want %s", p, what)
		}
	}
}

// seen is what a process in a root sees.
type seen struct {
	mounts, cwd string
	err         error
}

func pathOutput(t *testing.T, root string, mounts []specs.Mount, cwd string) (s seen) {
	t.Helper()
	spec := testSpec(root, "cut -d' ' -f5 /proc/self/mountinfo; echo; pwd")
	spec.Mounts, spec.Process.Cwd = append(spec.Mounts, mounts...), cwd
	p, err := Compile(spec, Options{ID: "paths"})
	if err != nil {
		return seen{err: err}
	}
	out, _, err := execute(t, p)
	if err != nil {
		return seen{err: err}
	}
	s.mounts, s.cwd, _ = strings.Cut(strings.TrimSpace(out), "\n\n")
	return s
}

// TestPathRaces launches containers while another process swaps what their mount
// points lead through: directories, and links to the host (CVE-2018-15664,
// CVE-2021-30465, CVE-2024-45310). The mounts are in the root or nowhere, and
// nothing is made on the host.
func TestPathRaces(t *testing.T) {
	needRoot(t)
	if os.Getenv(attackVariable) != "" {
		swapForEver(t, os.Getenv(attackVariable))
		return
	}
	root, host := rootfs(t), t.TempDir()
	data := filepath.Join(root, "data")
	for _, dir := range []string{data, data + "/dir", data + "/dir/sub", host + "/sub"} {
		mustMkdir(t, dir)
	}
	mustWrite(t, host+"/sub/file")
	link("data/link", host)(t, root, host)
	link("data/up", strings.Repeat("../", 20)+host)(t, root, host)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	attacker := exec.Command(self, "-test.run=^TestPathRaces$")
	attacker.Env = append(os.Environ(), attackVariable+"="+data)
	if err := attacker.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		attacker.Process.Kill()
		attacker.Wait()
	}()
	before := fingerprint(t, host)
	mounts := []specs.Mount{
		tmpfs("/data/dir/sub", "size=64k"), tmpfs("/data/dir/new/deep", "size=64k"),
		{Destination: "/data/dir/sub2/file", Source: "/bin/busybox", Options: []string{"bind"}},
	}
	for range 150 {
		s := pathOutput(t, root, mounts, "/data/dir/cwd")
		if after := fingerprint(t, host); after != before {
			t.Fatalf("the host changed from %s to %s", before, after)
		}
		if s.err == nil && (strings.Count(s.mounts, "/sub") != 2 || strings.Count(s.mounts, "/new/deep") != 1 || !strings.HasSuffix(s.cwd, "/cwd")) {
			t.Fatalf("mounted outside of the root: %+v", s)
		}
	}
}

// attackVariable makes the test an attacker on a directory.
const attackVariable = "PODSTEAD_TEST_ATTACK"

// swapForEver swaps dir with links, there and back, until it is killed.
func swapForEver(t *testing.T, data string) {
	dir := filepath.Join(data, "dir")
	for {
		for _, name := range []string{"link", "up"} {
			for range 2 {
				err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, filepath.Join(data, name), unix.RENAME_EXCHANGE)
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
