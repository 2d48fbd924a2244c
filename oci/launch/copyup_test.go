package launch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func tmpfs(dest string, options ...string) specs.Mount {
	return specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options}
}

// TestCopyUp compares a tree of every kind of file with its copy in a tmpfs.
func TestCopyUp(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	data := filepath.Join(root, "data")
	mustMkdir(t, data)
	deep := data
	for range 20 {
		deep = filepath.Join(deep, "deep")
		mustMkdir(t, deep)
	}
	big := strings.Repeat("0123456789abcde\n", 1<<16)
	for name, content := range map[string]string{"big": big, "empty": "", "suid": "x", "deep/deep/file": "here\n"} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	// More names than are read at once, on both sides of a directory.
	for i := range 600 {
		mustWrite(t, filepath.Join(deep, strings.Repeat("n", 50)+string(rune('a'+i%26))+strings.Repeat("z", i/26)))
	}
	sparse, err := os.Create(filepath.Join(data, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	if _, err := sparse.WriteAt([]byte("island"), 1<<32); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Truncate(1 << 33); err != nil {
		t.Fatal(err)
	}
	old := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
	for _, err := range []error{
		os.Symlink("/etc/../nowhere", filepath.Join(data, "link")),
		unix.Mkfifo(filepath.Join(data, "fifo"), 0o600),
		unix.Mknod(filepath.Join(data, "device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		os.Chown(filepath.Join(data, "suid"), 7, 8),
		os.Lchown(filepath.Join(data, "link"), 9, 10),
		os.Chmod(filepath.Join(data, "suid"), 0o755|os.ModeSetuid),
		os.Chown(data, 11, 12),
		os.Chmod(data, 0o751),
		unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(data, "link"), old, unix.AT_SYMLINK_NOFOLLOW),
		unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(data, "fifo"), old, unix.AT_SYMLINK_NOFOLLOW),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	list := "cd /$0 && stat -c '%n %a %u %g %s %Y' . big empty suid link fifo sparse && cat big deep/deep/file && readlink link && ls -R deep"
	show := func(mounts ...specs.Mount) string {
		spec := testSpec(root, list)
		spec.Process.Args = append(spec.Process.Args, "data")
		spec.Mounts = append(spec.Mounts, mounts...)
		out, status := run(t, spec, Options{})
		if status.ExitStatus() != 0 {
			t.Fatalf("status %#x: %.500s", status, out)
		}
		// The size of a directory is the file system's business.
		_, rest, _ := strings.Cut(out, "\n")
		return rest
	}
	if want, got := show(), show(tmpfs("/data", "tmpcopyup", "size=64m")); got != want {
		t.Errorf("the copy differs:\n%.800s\nwant\n%.800s", got, want)
	}
	spec := testSpec(root, "stat -c '%a %u %g' /data; ls /data/device; echo > /data/new && ls /data/new; grep ' /data ' /proc/self/mountinfo | cut -d' ' -f5-6; stat -c '%b' /data/sparse")
	spec.Mounts = append(spec.Mounts, tmpfs("/data", "tmpcopyup", "nodev", "nosuid"))
	expectOutput(t, spec, Options{}, "751 11 12\nls: /data/device: No such file or directory\n/data/new\n/data rw,nosuid,nodev,relatime\n8\n")
	if _, err := os.Stat(filepath.Join(data, "new")); err == nil {
		t.Error("the image was written to")
	}
}

// TestCopyUpOptions gives the tmpfs a mode and an owner of its own, makes it
// read-only, too small, or has nothing to copy.
func TestCopyUpOptions(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	mustMkdir(t, filepath.Join(root, "data"))
	if err := os.WriteFile(filepath.Join(root, "data/file"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := testSpec(root, "stat -c '%a %u %g' /data; touch /data/new 2>&1; ls /data /none")
	spec.Mounts = append(spec.Mounts, tmpfs("/data", "ro", "mode=711", "uid=5", "tmpcopyup"), tmpfs("/none", "tmpcopyup"))
	out, _ := run(t, spec, Options{})
	if want := "711 5 0\ntouch: /data/new: Read-only file system\n/data:\nfile\n\n/none:\n"; out != want {
		t.Errorf("output %q, want %q", out, want)
	}
	spec = testSpec(root, "true")
	spec.Mounts = append(spec.Mounts, tmpfs("/data", "size=64k", "tmpcopyup"))
	expectError(t, spec, Options{}, "copy /data into its tmpfs: no space left on device")
}

// TestCopyUpInUserNamespace copies files of owners that the user namespace has
// and has not.
func TestCopyUpInUserNamespace(t *testing.T) {
	needRoot(t)
	spec := withUserns(testSpec(rootfs(t), "stat -c '%a %u %g %n' /data /data/file /data/foreign"))
	root := spec.Root.Path
	uid, gid := int(spec.Linux.UIDMappings[0].HostID), int(spec.Linux.GIDMappings[0].HostID)
	mustMkdir(t, filepath.Join(root, "data"))
	mustWrite(t, filepath.Join(root, "data/file"))
	mustWrite(t, filepath.Join(root, "data/foreign"))
	for _, err := range []error{
		os.Chown(root, uid, gid),
		os.Chown(filepath.Join(root, "data"), uid+1, gid+2),
		os.Chown(filepath.Join(root, "data/file"), uid+3, gid+4),
		os.Chmod(filepath.Join(root, "data/file"), 0o755|os.ModeSetuid),
		os.Chmod(filepath.Join(root, "data/foreign"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	spec.Mounts = append(spec.Mounts, tmpfs("/data", "tmpcopyup"))
	expectOutput(t, spec, Options{}, "755 1 2 /data\n4755 3 4 /data/file\n644 65534 65534 /data/foreign\n")
}

// TestRemount changes mounts of the container's and leaves alone what the host
// has.
func TestRemount(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	spec := testSpec(rootfs(t), "grep -E ' /(data|bound) ' /proc/self/mountinfo | cut -d' ' -f5-6; touch /data/x /bound/x 2>&1; stat -f -c '%b' /data")
	remount := func(m specs.Mount, options ...string) specs.Mount {
		m.Options = append(options, "remount")
		return m
	}
	spec.Mounts = append(spec.Mounts,
		tmpfs("/data", "size=1m", "nosuid"), remount(tmpfs("/data"), "ro", "noatime", "size=64k"),
		bind(host, "/bound"), remount(bind(host, "/bound"), "bind", "ro", "nodev"))
	out, _ := run(t, spec, Options{})
	atime := "relatime" // as the file system has it
	var fs unix.Statfs_t
	if err := unix.Statfs(host, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Flags&unix.ST_NOATIME != 0 {
		atime = "noatime"
	}
	want := "/data ro,nosuid,noatime\n/bound ro,nodev," + atime + "\ntouch: /data/x: Read-only file system\ntouch: /bound/x: Read-only file system\n16\n"
	if out != want {
		t.Errorf("output %q, want %q", out, want)
	}
	mustWrite(t, filepath.Join(host, "still-writable"))
	for _, c := range []struct {
		m    specs.Mount
		want string
	}{
		{remount(tmpfs("/etc")), "mounts[10].options: remount: none of the mounts before is at /etc"},
		{remount(bind(host, "/bound"), "bind", "size=1"), `mounts[10].options: a bind mount has no file system option "size=1"`},
		{remount(tmpfs("/data"), "tmpcopyup"), "mounts[10].options: tmpcopyup is for a new tmpfs"},
		{bind(host, "/x", "tmpcopyup"), "mounts[10].options: tmpcopyup is for a new tmpfs"},
		{remount(tmpfs("/data"), "nonsense=1"), "remount /data: option nonsense=1: invalid argument"},
	} {
		refused := *spec
		refused.Mounts = append(append([]specs.Mount(nil), spec.Mounts...), c.m)
		expectError(t, &refused, Options{}, c.want)
	}
}

// TestCopyUpRaces has the image change while it is copied: what is a file one
// moment is a link to the host, a device or a pipe the next.
func TestCopyUpRaces(t *testing.T) {
	needRoot(t)
	root, host := rootfs(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "secret"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(root, "data")
	mustMkdir(t, data)
	mustMkdir(t, filepath.Join(data, "dir"))
	mustWrite(t, filepath.Join(data, "file"))
	for _, err := range []error{
		os.Symlink(host, filepath.Join(root, "link")),
		os.Symlink(filepath.Join(host, "secret"), filepath.Join(root, "secret")),
		unix.Mkfifo(filepath.Join(root, "fifo"), 0o600),
		unix.Mknod(filepath.Join(root, "full"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 7))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			for _, swap := range [][2]string{{"dir", "link"}, {"file", "secret"}, {"file", "fifo"}, {"file", "full"}} {
				select {
				case <-stop:
					return
				default:
				}
				a, b := filepath.Join(data, swap[0]), filepath.Join(root, swap[1])
				for range 2 { // there and back
					if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
						t.Error(err)
						return
					}
				}
			}
		}
	}()
	spec := testSpec(root, "for f in /data/* /data/dir/*; do if test -f $f && ! test -L $f; then cat $f; fi; done")
	spec.Mounts = append(spec.Mounts, tmpfs("/data", "tmpcopyup", "size=1m"))
	p := mustCompile(t, spec)
	copied := 0
	for range 100 {
		out, _, err := execute(t, p)
		if strings.Contains(out, "secret") {
			t.Fatal("what the host has was copied")
		}
		if err == nil {
			copied++
		} else if !strings.Contains(err.Error(), "copy /data into its tmpfs: ") {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
	t.Logf("%d of 100 copies went well", copied)
}
