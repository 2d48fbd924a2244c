package launch

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lowFds are the descriptors that become the child's 0, 1, 2 and further ones, all
// above those.
func (p *Program) lowFds(opt *ForkOptions, peer int, files []*os.File) (fds []int, closeAll func(), err error) {
	fds, closeStdio, err := p.stdioFds(opt)
	if err != nil {
		return nil, nil, err
	}
	fds, closeExtra, err := opt.addExtra(fds, peer, files)
	if err != nil {
		closeStdio()
		return nil, nil, err
	}
	return fds, func() { closeExtra(); closeStdio() }, nil
}

// stdioFds returns descriptors above 2 for the child's stdio, and a function
// that closes those it opened. Pipes and terminals are given to the
// container's user, so that it can open /dev/stdout.
func (p *Program) stdioFds(opt *ForkOptions) (fds []int, closeAll func(), err error) {
	fds = make([]int, 3)
	var opened []int
	closeAll = func() {
		for _, fd := range opened {
			unix.Close(fd)
		}
	}
	null := -1
	if f := opt.Forker; f != nil && int(f.null.Fd()) >= 3+len(opt.Extra) { // not where the others go
		null = int(f.null.Fd())
	}
	for i, f := range []*os.File{opt.Stdin, opt.Stdout, opt.Stderr} {
		if f == nil {
			if null < 0 {
				if null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
					break
				}
				opened = append(opened, null)
			}
			fds[i] = null
			continue
		}
		fds[i] = int(f.Fd())
		if err = p.giveAway(fds[i]); err != nil {
			break
		}
		if fds[i] < 3 {
			if fds[i], err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3); err != nil {
				break
			}
			opened = append(opened, fds[i])
		}
	}
	if err != nil {
		closeAll()
		return fds, func() {}, fmt.Errorf("stdio: %w", err)
	}
	return fds, closeAll, nil
}

// giveAway makes the container's user own a pipe, socket or terminal.
func (p *Program) giveAway(fd int) error {
	if p.owner == uint32(os.Geteuid()) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFIFO && t != unix.S_IFSOCK {
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return nil
		}
	}
	err := unix.Fchown(fd, int(p.owner), -1)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EINVAL) {
		return nil // not ours to give: the container can still use the descriptor
	}
	return err
}
