package oci

import (
	"bufio"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// withHome gives a process HOME, if its environment does not say where that is:
// from the container's own /etc/passwd by the user's number, "/" if it is not
// there. root is the container's root directory as it is seen from here.
func withHome(p *specs.Process, root string) *specs.Process {
	if slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		return p
	}
	q := *p
	q.Env = append(slices.Clone(p.Env), "HOME="+homeOf(p.User.UID, root))
	return &q
}

// passwdLimit is how much of a passwd file is looked at. The file is the
// image's: it may be huge, a link to the host's, or no file at all.
const passwdLimit = 1 << 20

func homeOf(uid uint32, root string) string {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "/"
	}
	defer unix.Close(dir)
	fd, err := sys.Openat2(dir, "etc/passwd", &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "/"
	}
	f := os.NewFile(uintptr(fd), "passwd")
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "/"
	}
	return homeIn(io.LimitReader(f, passwdLimit), uid)
}

func homeIn(passwd io.Reader, uid uint32) string {
	want := strconv.FormatUint(uint64(uid), 10)
	lines := bufio.NewScanner(passwd)
	for lines.Scan() {
		// name:password:uid:gid:comment:home:shell
		f := strings.Split(lines.Text(), ":")
		if len(f) >= 6 && f[2] == want && strings.HasPrefix(f[5], "/") && !strings.ContainsRune(f[5], 0) {
			return f[5]
		}
	}
	return "/"
}
