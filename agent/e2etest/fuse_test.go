package e2etest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// hungFS is a file system that does not answer, as a network's whose server is
// away: the requests that it holds keep their processes in the kernel. It has a
// file "hang" whose reading never ends, and as a whole does not answer while hung.
// (Requests and answers are as in linux/fuse.h.)
type hungFS struct {
	dir  string
	fd   int
	hung atomic.Bool
}

const (
	fuseLookup  = 1
	fuseForget  = 2
	fuseGetattr = 3
	fuseOpen    = 14
	fuseRead    = 15
	fuseStatfs  = 17
	fuseRelease = 18
	fuseFlush   = 25
	fuseInit    = 26
	fuseOpendir = 27

	fuseRootNode, fuseHangNode = 1, 2
)

// mountHungFS mounts one at dir; release lets go of all that it holds, for good.
func mountHungFS(t testing.TB, dir string) (fs *hungFS, release func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("/dev/fuse: %v", err)
	}
	fs = &hungFS{dir: dir, fd: fd}
	if err := unix.Mount("hung", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		fs.serve()
	}()
	release = func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE); err != nil && err != unix.EINVAL {
			t.Error(err)
		}
		<-done // the connection is aborted, and reading it ends
		unix.Close(fd)
	}
	return fs, release
}

func (fs *hungFS) serve() {
	buf := make([]byte, 128<<10)
	for {
		n, err := unix.Read(fs.fd, buf)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN, err == unix.ENOENT:
			continue
		case err != nil:
			return
		case n < 40:
			continue
		}
		opcode, unique, node := binary.NativeEndian.Uint32(buf[4:]), binary.NativeEndian.Uint64(buf[8:]), binary.NativeEndian.Uint64(buf[16:])
		if opcode == fuseForget || opcode == fuseRead || opcode != fuseInit && fs.hung.Load() {
			continue
		}
		var body any = []byte{}
		errno := syscall.Errno(0)
		switch opcode {
		case fuseInit:
			body = [16]uint32{7, 31, 0, 0, 0, 4096}
		case fuseGetattr:
			body = [2]any{[2]uint64{}, attributes(node)}
		case fuseLookup:
			if body = [2]any{[5]uint64{fuseHangNode}, attributes(fuseHangNode)}; string(bytes.TrimRight(buf[40:n], "\x00")) != "hang" {
				errno = unix.ENOENT
			}
		case fuseOpen, fuseOpendir:
			body = [4]uint32{}
		case fuseStatfs: // 1000 blocks of 4096 bytes, 600 of them free
			body = [2]any{[5]uint64{1000, 600, 600, 100, 50}, [10]uint32{4096, 255, 4096}}
		case fuseRelease, fuseFlush:
		default:
			errno = unix.ENOSYS
		}
		fs.answer(unique, errno, body)
	}
}

// attributes are a struct fuse_attr: three of 64 bits, three times, …
func attributes(node uint64) any {
	mode := uint32(unix.S_IFDIR | 0o755)
	if node == fuseHangNode {
		mode = unix.S_IFREG | 0o644
	}
	return [2]any{[6]uint64{node, 4096, 8}, [10]uint32{0, 0, 0, mode, 1, 0, 0, 0, 4096}}
}

func (fs *hungFS) answer(unique uint64, errno syscall.Errno, body any) {
	var b bytes.Buffer
	if errno == 0 {
		put(&b, body)
	}
	head := make([]byte, 16, 16+b.Len())
	binary.NativeEndian.PutUint32(head, uint32(16+b.Len()))
	binary.NativeEndian.PutUint32(head[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(head[8:], unique)
	unix.Write(fs.fd, append(head, b.Bytes()...))
}

func put(b *bytes.Buffer, v any) {
	if pair, ok := v.([2]any); ok {
		put(b, pair[0])
		put(b, pair[1])
		return
	}
	binary.Write(b, binary.NativeEndian, v)
}
