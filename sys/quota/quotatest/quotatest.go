// Package quotatest makes file systems with project quotas for tests: an image in
// a file, behind a loop device. It skips where the kernel or a program for it is
// missing; in the virtual machine of test/vm/run, all is there.
package quotatest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	testhost "podstead/test/host"
)

// Kinds are the file systems that have project quotas.
var Kinds = []string{"ext4", "xfs"}

// Mount mounts a new file system of that kind at dir, until the test ends.
func Mount(t testing.TB, kind, dir string) {
	t.Helper()
	testhost.Require(t)
	image := filepath.Join(t.TempDir(), "image")
	mkfs, options, size := exec.Command("mkfs.xfs", "-q", image), "prjquota", int64(400<<20)
	if kind == "ext4" { // to count it needs no option, only to limit
		mkfs, options = exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "quota,project", "-E", "quotatype=prjquota", image), ""
	}
	if _, err := exec.LookPath(mkfs.Path); err != nil {
		t.Skipf("needs %s", mkfs.Path)
	}
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", mkfs, err, out)
	}
	device := attach(t, image)
	if err := unix.Mount(device, dir, kind, 0, options); err != nil {
		t.Skipf("this kernel mounts no %s with project quotas: %v", kind, err)
	}
	_ = os.Remove(filepath.Join(dir, "lost+found")) // ext4 has one
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// attach gives an image a loop device, which the kernel takes back when nothing
// uses it any more.
func attach(t testing.TB, image string) string {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		_ = exec.Command("modprobe", "loop").Run()
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	defer control.Close()
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatalf("find a free loop device: %v", err)
		}
		name := "/dev/loop" + strconv.Itoa(n)
		device, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		c := unix.LoopConfig{Fd: uint32(file.Fd())}
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(device.Fd()), &c)
		if errors.Is(err, unix.EBUSY) { // somebody was faster
			device.Close()
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(func() { device.Close() }) // after the unmount
		return name
	}
}

// Used are the projects that have files, below a directory's file system.
func Used(t testing.TB, dir string) []uint32 {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What <linux/quota.h> has: Q_GETNEXTQUOTA for projects, struct if_nextdqblk.
	const getNextQuota = 0x800009<<8 | 2
	var out []uint32
	for next := uint32(1); ; {
		var d struct {
			limits      [2]uint64
			space       uint64
			inodeLimits [2]uint64
			inodes      uint64
			times       [2]uint64
			valid, id   uint32
		}
		_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), getNextQuota, uintptr(next), uintptr(unsafe.Pointer(&d)), 0, 0)
		if errno == unix.ENOENT || errno == unix.ESRCH { // no more
			return out
		}
		if errno != 0 {
			t.Fatalf("quotas of %s: %v", dir, errno)
		}
		if d.space|d.inodes != 0 {
			out = append(out, d.id)
		}
		next = d.id + 1
	}
}
