package launch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestHostileRoot launches containers whose images try to make the runtime
// touch the host, by way of links where it mounts, makes and hides things.
func TestHostileRoot(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, root, host string)
		change  func(spec *specs.Spec, host string)
		want    string // error, "" for none
	}{
		{"proc is a link", link("proc", "/tmp"), nil, "make directory /proc: too many levels of symbolic links"},
		{"sys is a link", link("sys", "/tmp"), nil, "make directory /sys: too many levels of symbolic links"},
		{"dev is a link, no mount", link("dev", "HOST"), func(s *specs.Spec, _ string) {
			s.Mounts = s.Mounts[:1]
		}, "make directory /dev: too many levels of symbolic links"},
		{"destination leads to the host", link("data", "HOST"), func(s *specs.Spec, host string) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data/new", Type: "tmpfs"})
		}, ""},
		{"destination climbs", link("data", "../../../../../../HOST"), func(s *specs.Spec, host string) {
			s.Mounts = append(s.Mounts, bind("/usr", "/data/new"))
		}, ""},
		{"destination dangles", link("data", "HOST/no/such"), func(s *specs.Spec, host string) {
			s.Mounts = append(s.Mounts, bind("/usr", "/data"), bind("/bin/busybox", "/data2/file"))
			s.Process.Args[2] = "test -d /data/bin && test -d " + host + "/no/such/bin && test -f /data2/file"
		}, ""},
		{"link loop", func(t *testing.T, root, host string) {
			link("a", "b")(t, root, host)
			link("b", "a")(t, root, host)
		}, func(s *specs.Spec, host string) { s.Mounts = append(s.Mounts, bind("/usr", "/a/c")) }, "too many levels of symbolic links"},
		{"file destination dangles", link("etc/resolv.conf", "../run/stub/resolv.conf"), func(s *specs.Spec, host string) {
			s.Mounts = append(s.Mounts, bind("/bin/busybox", "/etc/resolv.conf"))
			s.Process.Args[2] = "test -s /run/stub/resolv.conf"
		}, ""},
		{"magic link", link("data", "/proc/1/root"), func(s *specs.Spec, host string) {
			s.Mounts = append(s.Mounts, bind("/usr", "/data/x"))
		}, "too many levels of symbolic links"},
		{"destination leads into proc", link("data", "proc/sys"), func(s *specs.Spec, host string) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "tmpfs"})
		}, "mount point /data leads into /proc"},
		{"bind leads into proc", link("data", "/proc/sys/kernel"), func(s *specs.Spec, host string) {
			s.Mounts = append(s.Mounts, bind(host, "/data"))
		}, "mount point /data leads into /proc"},
		{"cwd leads to the host", link("work", "HOST"), func(s *specs.Spec, host string) {
			s.Process.Cwd = "/work/dir"
		}, ""},
		{"masked path leads to the host", link("secret", "HOST"), func(s *specs.Spec, host string) {
			s.Linux.MaskedPaths = []string{"/secret"}
		}, ""},
		{"device is a file", func(t *testing.T, root, host string) {
			mustMkdir(t, filepath.Join(root, "dev"))
			mustWrite(t, filepath.Join(root, "dev/null"))
		}, func(s *specs.Spec, host string) { s.Mounts = s.Mounts[:1] }, "make device /dev/null: file exists"},
		{"device is a link", func(t *testing.T, root, host string) {
			mustMkdir(t, filepath.Join(root, "dev"))
			link("dev/null", "HOST/victim")(t, root, host)
		}, func(s *specs.Spec, host string) { s.Mounts = s.Mounts[:1] }, "make device /dev/null: file exists"},
		{"ptmx is a file", func(t *testing.T, root, host string) {
			mustMkdir(t, filepath.Join(root, "dev"))
			link("dev/ptmx", "HOST/victim")(t, root, host)
		}, func(s *specs.Spec, host string) { s.Mounts = s.Mounts[:1] }, ""},
		{"console is a link", func(t *testing.T, root, host string) {
			mustMkdir(t, filepath.Join(root, "dev"))
			link("dev/console", "HOST/victim")(t, root, host)
		}, func(s *specs.Spec, host string) {
			s.Mounts = append(s.Mounts[:1], s.Mounts[2])
			s.Process.Terminal = true
		}, "bind /dev/console: too many levels of symbolic links"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, host := rootfs(t), t.TempDir()
			mustWrite(t, filepath.Join(host, "victim"))
			c.prepare(t, root, host)
			spec := testSpec(root, "exit 0")
			if c.change != nil {
				c.change(spec, host)
			}
			before := fingerprint(t, host)
			p, err := Compile(spec, Options{ID: "box"})
			if err != nil {
				t.Fatal(err)
			}
			_, status, err := execute(t, p)
			if err == nil && status.ExitStatus() != 0 {
				t.Errorf("status %v", status)
			}
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
			if after := fingerprint(t, host); after != before {
				t.Errorf("the host changed from %s to %s", before, after)
			}
		})
	}
}

// link makes a symbolic link in the image; HOST stands for a directory of the
// host's.
func link(name, target string) func(t *testing.T, root, host string) {
	return func(t *testing.T, root, host string) {
		target := strings.ReplaceAll(target, "HOST", host)
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func mustMkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// fingerprint lists a directory.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			b.WriteString(path + " " + info.Mode().String() + "; ")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestWorkingDirectoryOutside starts a process whose working directory is not
// below its root, as a leaked descriptor would have it (CVE-2024-21626).
func TestWorkingDirectoryOutside(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	for _, cwd := range []string{"/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/8", "/proc/1/fd/9"} {
		spec := testSpec(root, "pwd")
		spec.Process.Cwd = cwd
		expectError(t, spec, Options{}, "working directory "+cwd)
	}
}

// TestNoDescriptorLeaks lists what an ordinary process finds open.
func TestNoDescriptorLeaks(t *testing.T) {
	needRoot(t)
	f, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil { // not close-on-exec
		t.Fatal(err)
	}
	spec := testSpec(rootfs(t), "exec ls /proc/self/fd")
	// 3 is the directory that ls reads.
	expectOutput(t, spec, Options{}, "0\n1\n2\n3\n")
}

// TestMaskedPaths reads what is hidden, and writes what is read-only.
func TestMaskedPaths(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	mustWrite(t, filepath.Join(root, "etc/secret"))
	if err := os.WriteFile(filepath.Join(root, "etc/secret"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := testSpec(root, `
cat /etc/secret
ls /tmp
touch /tmp/x 2>&1
echo 1 2>/dev/null > /proc/sys/kernel/shm_rmid_forced || echo read-only
echo x > /proc/keys; wc -c < /proc/keys`)
	mustWrite(t, filepath.Join(root, "tmp/hidden"))
	spec.Linux.MaskedPaths = append(spec.Linux.MaskedPaths, "/etc/secret", "/tmp", "/etc/secret/not/a/directory")
	expectOutput(t, spec, Options{}, "touch: /tmp/x: Read-only file system\nread-only\n0\n")
}
