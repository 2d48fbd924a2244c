package oci

import (
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
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

// Labels are never passed over where nobody heeds them.
func TestLabelsWithoutSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("the kernel has SELinux")
	}
	onBoth(t, func(b *box) {
		b.script("echo > /ran")
		b.spec.Process.SelinuxLabel = "system_u:system_r:container_t:s0"
		b.write()
		b.fails([]string{"process.selinuxLabel"}, "run", "-b", b.bundle, b.id)
		b.spec.Process.SelinuxLabel, b.spec.Linux.MountLabel = "", "system_u:object_r:container_file_t:s0"
		b.write()
		b.fails([]string{"linux.mountLabel"}, "run", "-b", b.bundle, b.id)
		if b.has("ran") {
			b.Error("the process ran")
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
