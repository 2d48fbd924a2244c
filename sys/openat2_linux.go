package sys

import "golang.org/x/sys/unix"

// openTries bounds how often a lookup is begun anew.
const openTries = 1000

// Openat2 is openat2(2) for lookups that must not leave a directory
// (RESOLVE_IN_ROOT, RESOLVE_BENEATH). The kernel breaks one with ".." in it off
// with EAGAIN when something, anywhere, is mounted or a directory is renamed
// meanwhile, as on a busy node there always is; it is then begun anew.
func Openat2(dir int, path string, how *unix.OpenHow) (fd int, err error) {
	for range openTries {
		fd, err = unix.Openat2(dir, path, how)
		if err != unix.EINTR && err != unix.EAGAIN {
			break
		}
	}
	return fd, err
}
