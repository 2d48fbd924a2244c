package oci

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func tmpfs(dest string, options ...string) specs.Mount {
	return specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options}
}

// A tmpfs over what the image has starts with a copy of it, as podman's --tmpfs
// and --read-only ask for.
func TestTmpCopyUp(t *testing.T) {
	onBoth(t, func(b *box) {
		for _, err := range []error{
			os.MkdirAll(b.inside("var/sub"), 0o755),
			os.WriteFile(b.inside("var/sub/file"), []byte("from the image\n"), 0o640),
			os.Symlink("sub/file", b.inside("var/link")),
			os.Chmod(b.inside("var"), 0o711),
		} {
			if err != nil {
				b.Fatal(err)
			}
		}
		b.spec.Root.Readonly = true
		b.spec.Mounts = append(b.spec.Mounts, tmpfs("/var", "rw", "rprivate", "nosuid", "nodev", "tmpcopyup", "size=1m"))
		b.script("cat /var/link && touch /var/new && ls -ld /var | head -c10 && ls -l /var/sub/file | head -c10")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); r.stdout != "from the image\ndrwx--x--x-rw-r-----" {
			b.Errorf("%+v", r)
		}
		if b.has("var/new") {
			b.Error("the image was written to")
		}
	})
}

// The label of a process is not passed over where nobody heeds it; that of files
// is, with a warning.
func TestLabelsWithoutSELinux(t *testing.T) {
	if hasSELinux() {
		t.Skip("the kernel has SELinux")
	}
	onBoth(t, func(b *box) {
		b.script("echo > /ran")
		b.spec.Process.SelinuxLabel = "system_u:system_r:container_t:s0"
		b.write()
		b.fails([]string{"process.selinuxLabel"}, "run", "-b", b.bundle, b.id)
		if b.has("ran") {
			b.Error("the process ran")
		}
		b.notRunc("refuses linux.mountLabel too")
		b.spec.Process.SelinuxLabel, b.spec.Linux.MountLabel = "", "system_u:object_r:container_file_t:s0"
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); r.code != 0 || !strings.Contains(r.stderr, "linux.mountLabel") {
			b.Errorf("%+v", r)
		}
		if !b.has("ran") {
			b.Error("the process did not run")
		}
	})
}

func TestRemount(t *testing.T) {
	onBoth(t, func(b *box) {
		b.spec.Mounts = append(b.spec.Mounts, tmpfs("/var", "nosuid"), tmpfs("/var", "remount", "ro", "nosuid"))
		b.script("touch /var/new; ls /var")
		b.write()
		if r := b.run("run", "-b", b.bundle, b.id); r.stdout != "" || !strings.Contains(r.stderr, "Read-only file system") {
			b.Errorf("%+v", r)
		}
	})
}

// TestSharedMounts: without a mount namespace of its own a container has its
// mounts in the host's, or in one that it joins, and none are left in the end.
// What is exec'd in it is in its root too.
func TestSharedMounts(t *testing.T) {
	onBoth(t, func(b *box) {
		b.notRunc("leaves the mounts")
		t.Cleanup(func() { unix.Unmount(b.inside(""), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }) // should it fail
		other := exec.Command("unshare", "-m", "sleep", "1000")
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { other.Process.Kill(); other.Wait() })
		path := fmt.Sprintf("/proc/%d/ns/mnt", other.Process.Pid)
		own, _ := os.Readlink("/proc/self/ns/mnt")
		b.eventually("a mount namespace", func() bool { link, err := os.Readlink(path); return err == nil && link != own })
		i := slices.IndexFunc(b.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.MountNamespace })
		joined := slices.Clone(b.spec.Linux.Namespaces)
		joined[i].Path = path
		inherited := slices.Delete(slices.Clone(joined), i, i+1)
		for want, list := range map[string][]specs.LinuxNamespace{"/proc/self/ns/mnt": inherited, path: joined} {
			b.spec.Linux.Namespaces = list
			b.up()
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", b.state().Pid))
			if link, _ := os.Readlink(want); err != nil || ns != link {
				t.Errorf("mount namespace %s, %v, want %s", ns, err, link)
			}
			if got := b.must("exec", b.id, "sh", "-c", "ls -d /bin/busybox /etc /proc/self 2>&1; pwd"); got != "ls: /etc: No such file or directory\n/bin/busybox\n/proc/self\n/\n" {
				t.Errorf("exec'd in another root: %s", got)
			}
			b.must("delete", "--force", b.id)
			for _, file := range []string{"/proc/self/mountinfo", fmt.Sprintf("/proc/%d/mountinfo", other.Process.Pid)} {
				if data, err := os.ReadFile(file); err != nil || strings.Contains(string(data), b.bundle) {
					t.Errorf("left in %s: %s, %v", file, data, err)
				}
			}
			b.script("exit 1")
			b.spec.Process.Args[0] = "/no/such"
			b.write()
			b.fails([]string{"/no/such"}, "run", "-b", b.bundle, b.id)
			if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(data), b.bundle) {
				t.Errorf("left: %s, %v", data, err)
			}
			b.script("sleep 1000")
		}
	})
}
