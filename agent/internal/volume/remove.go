package volume

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Remove unmounts and removes the pod's directory. It never deletes across a
// mount: what is mounted there by others is named in the error, and all stays.
func Remove(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if !ours(dir, m) {
			continue
		}
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err != nil {
			// In use from within a container that is going away.
			if err = unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
	}
	if left, err := mountsBelow(dir); err != nil || len(left) > 0 {
		if err == nil {
			err = mounted(dir, left)
		}
		return err
	}
	err = sys.RemoveTree(dir)
	if errors.Is(err, unix.EXDEV) {
		left, _ := mountsBelow(dir)
		return mounted(dir, left)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func mounted(dir string, left []string) error {
	return fmt.Errorf("remove %s: something is mounted in it (%s); unmount it, nothing behind it was deleted", dir, strings.Join(left, ", "))
}

// ours tells whether a mount is one that Setup or Mounts made.
func ours(dir, mount string) bool {
	rel, err := filepath.Rel(dir, mount)
	if err != nil {
		return false
	}
	parts := strings.Split(rel, "/")
	return (parts[0] == "volumes" && len(parts) == 3) || (parts[0] == "volume-subpaths" && len(parts) == 4)
}

// mountsBelow lists the mount points below dir, deepest first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		real = dir
	}
	var out []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 5 {
			continue
		}
		at := unescape(fields[4])
		if rel, ok := strings.CutPrefix(at, real+"/"); ok {
			out = append(out, filepath.Join(dir, rel))
		}
	}
	slices.Reverse(out)
	slices.SortStableFunc(out, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	return out, sc.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
