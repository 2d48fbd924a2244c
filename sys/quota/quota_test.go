package quota

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"podstead/sys/quota/quotatest"
	testhost "podstead/test/host"
)

func TestMain(m *testing.M) { testhost.Main(m) }

func TestStructsAreTheKernels(t *testing.T) {
	if n := unsafe.Sizeof(dqblk{}); n != 72 {
		t.Errorf("if_dqblk has %d bytes", n)
	}
	if n := unsafe.Sizeof(fsxattr{}); n != 28 {
		t.Errorf("fsxattr has %d bytes", n)
	}
}

func TestListed(t *testing.T) {
	for _, c := range []struct {
		text  string
		field int
		want  []uint32
	}{
		{"10:/srv/a\n11:/srv/b:c\n", 0, []uint32{10, 11}},
		{"a:10\nb: 11 # of b\n", 1, []uint32{10, 11}},
		{"# 10:/srv\n\n:\nten:/srv\n0x10:/srv\n4294967295:/x\n4294967296:/x\n-1:/x", 0, []uint32{16, 4294967295}},
		{"name\n", 1, nil},
	} {
		got := map[uint32]bool{}
		listed(c.text, c.field, got)
		if g := slices.Sorted(maps.Keys(got)); !slices.Equal(g, c.want) {
			t.Errorf("%q: %v, want %v", c.text, g, c.want)
		}
	}
}

func TestOpenWithoutQuotas(t *testing.T) {
	testhost.Require(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, 0)
	if _, err := Open(dir); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("tmpfs: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// onEach runs a test on each kind of file system that counts projects.
func onEach(t *testing.T, test func(t *testing.T, dir string)) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "mnt")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			quotatest.Mount(t, kind, dir)
			test(t, dir)
		})
	}
}

func mustOpen(t *testing.T, dir, etc string) *Pool {
	t.Helper()
	p, err := open(dir, etc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// directory makes one of a new project.
func (p *Pool) directory(t *testing.T, path string) uint32 {
	t.Helper()
	project, err := p.Take()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(path, 0o755), Assign(path, project)); err != nil {
		t.Fatal(err)
	}
	return project
}

func (p *Pool) mustUsage(t *testing.T, project uint32) Usage {
	t.Helper()
	u, err := p.Usage(project)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// becomes waits for XFS, which frees what was deleted a moment later.
func (p *Pool) becomes(t *testing.T, project uint32, want Usage) {
	t.Helper()
	deadline := time.After(time.Minute)
	for got := p.mustUsage(t, project); got != want; got = p.mustUsage(t, project) {
		select {
		case <-deadline:
			t.Fatalf("usage is %+v, want %+v", got, want)
		case <-time.After(time.Millisecond):
		}
	}
}

// du is what the program of that name says.
func du(t *testing.T, dir string) Usage {
	t.Helper()
	var u Usage
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(path, &st)); err != nil {
			return err
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			u.Bytes += uint64(st.Blocks) * 512
			u.Inodes++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestUsageIsThatOfDu: hard links once, sparse files by their blocks, and what is
// deleted only when nobody has it open.
func TestUsageIsThatOfDu(t *testing.T) {
	onEach(t, func(t *testing.T, mnt string) {
		p := mustOpen(t, mnt, t.TempDir())
		dir := filepath.Join(mnt, "dir")
		project := p.directory(t, dir)
		script := `mkdir -p a/b; for i in $(seq 300); do echo $i >a/$i; done
			dd if=/dev/zero of=a/b/big bs=1M count=3 2>/dev/null; ln a/b/big again; mv a/b c
			dd if=/dev/zero of=sparse bs=1 count=1 seek=1000000000 2>/dev/null
			ln -s /etc/passwd link; mkfifo pipe; mknod device c 1 3`
		cmd := exec.Command("sh", "-euc", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		unix.Sync() // XFS gives back what it has kept ready
		want := du(t, dir)
		if got := p.mustUsage(t, project); got != want {
			t.Errorf("the kernel counts %+v, du %+v", got, want)
		}
		open, err := os.Open(filepath.Join(dir, "again"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(open.Name()), os.Remove(filepath.Join(dir, "c/big"))); err != nil {
			t.Fatal(err)
		}
		after := du(t, dir)
		if got := p.mustUsage(t, project); got.Bytes < after.Bytes+3<<20 || got.Inodes != after.Inodes+1 {
			t.Errorf("with an open file that is deleted the kernel counts %+v, du %+v", got, after)
		}
		open.Close()
		p.becomes(t, project, after)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		p.becomes(t, project, Usage{})
	})
}

// TestWhatIsMovedIn keeps its project, so it is not let in.
func TestWhatIsMovedIn(t *testing.T) {
	onEach(t, func(t *testing.T, mnt string) {
		p := mustOpen(t, mnt, t.TempDir())
		dir := filepath.Join(mnt, "dir")
		p.directory(t, dir)
		file := filepath.Join(mnt, "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(file, filepath.Join(dir, "file")); !errors.Is(err, unix.EXDEV) {
			t.Errorf("link: %v", err)
		}
		if err := os.Rename(file, filepath.Join(dir, "file")); !errors.Is(err, unix.EXDEV) {
			t.Errorf("rename: %v", err)
		}
	})
}

func TestPool(t *testing.T) {
	onEach(t, func(t *testing.T, mnt string) {
		etc := t.TempDir()
		p := mustOpen(t, mnt, etc)
		dir := filepath.Join(mnt, "dir")
		a := p.directory(t, dir)
		b, err := p.Take()
		if err != nil || a == b || a < first || b < first {
			t.Fatalf("projects %d and %d, %v", a, b, err)
		}
		// Given back with files in it, it is not given out; without, it is.
		p.Give(a)
		c, err := p.Take()
		if err != nil || c == a || c == b {
			t.Fatalf("after %d and %d: %d, %v", a, b, c, err)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		p.becomes(t, a, Usage{})
		var again []uint32 // the one that Open has tried with may come first
		for range 2 {
			project, err := p.Take()
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, project)
		}
		if !slices.Contains(again, a) {
			t.Errorf("%d is free, taken are %d", a, again)
		}
		// Nor is one that has a name.
		p.Give(b)
		if err := os.WriteFile(filepath.Join(etc, "projid"), []byte("mine:"+strconv.Itoa(int(b))+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := p.Take(); err != nil || d == b {
			t.Errorf("%d has a name, taken is %d, %v", b, d, err)
		}
		// Nor what a former process has in use.
		q := mustOpen(t, mnt, t.TempDir())
		for _, project := range q.free {
			q.Keep(project)
			if e, err := q.Take(); err != nil || e == project {
				t.Errorf("%d is in use, taken is %d, %v", project, e, err)
			}
		}
	})
}

// TestDirectoryIsTheRecord of its project, for pools of later processes, too.
func TestDirectoryIsTheRecord(t *testing.T) {
	onEach(t, func(t *testing.T, mnt string) {
		p := mustOpen(t, mnt, t.TempDir())
		dirs := map[string]uint32{}
		for _, name := range []string{"a", "b", "c"} {
			dir := filepath.Join(mnt, name)
			if err := errors.Join(os.Mkdir(dir, 0o777), p.Add(dir)); err != nil {
				t.Fatal(err)
			}
			project, err := projectOf(dir)
			if err != nil || project < first {
				t.Fatalf("%s has project %d, %v", name, project, err)
			}
			dirs[name] = project
		}
		if dirs["a"] == dirs["b"] || dirs["b"] == dirs["c"] || dirs["a"] == dirs["c"] {
			t.Errorf("projects are %v", dirs)
		}
		if err := os.WriteFile(filepath.Join(mnt, "a", "file"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		q := mustOpen(t, mnt, t.TempDir())
		for name, inodes := range map[string]uint64{"a": 2, "b": 1} {
			if u, ok := q.Measure(filepath.Join(mnt, name)); !ok || u.Inodes != inodes {
				t.Errorf("%s: %+v, %v, want %d inodes", name, u, ok, inodes)
			}
		}
		for _, other := range []string{mnt, filepath.Join(mnt, "none"), filepath.Join(mnt, "a", "file")} {
			if u, ok := q.Measure(other); ok {
				t.Errorf("%s: %+v", other, u)
			}
		}
	})
}

// TestOwnersCanChangeProjects shows what the package warns of: who owns a file
// can take it out of its project, through an overlay, too, unless they are in a
// user namespace.
func TestOwnersCanChangeProjects(t *testing.T) {
	if os.Getenv("QUOTA_TEST_FILE") != "" {
		f, err := os.OpenFile(os.Getenv("QUOTA_TEST_FILE"), os.O_RDWR, 0)
		if err == nil {
			err = setProject(f, 7, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	onEach(t, func(t *testing.T, mnt string) {
		p := mustOpen(t, mnt, t.TempDir())
		dir := filepath.Join(mnt, "dir")
		project := p.directory(t, dir)
		var parts []string
		for _, name := range []string{"lower", "upper", "work", "root"} {
			path := filepath.Join(dir, name)
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			if name != "root" {
				parts = append(parts, name+"dir="+path)
			}
		}
		root := filepath.Join(dir, "root")
		if err := unix.Mount("overlay", root, "overlay", 0, strings.Join(parts, ",")); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(root, 0)
		file := filepath.Join(root, "file")
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o666); err != nil {
			t.Fatal(err)
		}
		before := p.mustUsage(t, project)
		change := func(flags uintptr) error {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestOwnersCanChangeProjects$")
			cmd.Env = append(os.Environ(), "QUOTA_TEST_FILE="+file)
			inUserNamespace(cmd, flags)
			return cmd.Run()
		}
		if err := change(unix.CLONE_NEWUSER); err == nil {
			t.Error("a user namespace does not keep root from changing the project of a file")
		}
		if now := p.mustUsage(t, project); now.Bytes+1<<19 < before.Bytes {
			t.Errorf("usage was %+v and is %+v", before, now)
		}
		if err := change(0); err != nil {
			t.Fatal(err)
		}
		if now := p.mustUsage(t, project); now.Bytes+1<<20 > before.Bytes {
			t.Errorf("usage was %+v and is %+v: root cannot change a project any more?", before, now)
		}
	})
}

// inUserNamespace has root in a user namespace of its own run a command.
func inUserNamespace(cmd *exec.Cmd, flags uintptr) {
	if flags == 0 {
		return
	}
	ids := []syscall.SysProcIDMap{{Size: 1 << 16}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, UidMappings: ids, GidMappings: ids}
}
