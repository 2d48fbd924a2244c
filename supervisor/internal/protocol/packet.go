package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// The header is op, flags, and the request's number as 4 bytes little-endian.
const (
	headerSize   = 6
	flagInMemfd  = 1 // the body is in the first descriptor
	maxOnTheWire = headerSize + inline
)

// ErrMalformed says that a peer does not keep to the protocol.
var ErrMalformed = errMalformed

// SendPacket sends p on the socket fd; the caller keeps its descriptors. It does not
// wait: it may return unix.EAGAIN, and then nothing was sent.
func SendPacket(fd int, p *Packet) error {
	if len(p.Body) > MaxBody {
		return fmt.Errorf("message of %d bytes exceeds %d", len(p.Body), MaxBody)
	}
	if len(p.Fds) > MaxFds {
		return fmt.Errorf("message with %d descriptors exceeds %d", len(p.Fds), MaxFds)
	}
	msg := make([]byte, headerSize, headerSize+min(len(p.Body), inline))
	msg[0] = byte(p.Op)
	binary.LittleEndian.PutUint32(msg[2:], p.Seq)
	fds := p.Fds
	if len(p.Body) <= inline {
		msg = append(msg, p.Body...)
	} else {
		memfd, err := bodyToMemfd(p.Body)
		if err != nil {
			return err
		}
		defer unix.Close(memfd)
		msg[1] |= flagInMemfd
		fds = append([]int{memfd}, fds...)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(fd, msg, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return err
		}
	}
}

// RecvPacket receives one message. It returns io.EOF when the peer is gone and
// unix.EAGAIN when there is none. buf is scratch
// space, of BufferSize at least; Body may alias it.
func RecvPacket(fd int, buf []byte) (*Packet, error) {
	var oob [BufferOOB]byte
	var n, oobn, flags int
	var err error
	for {
		n, oobn, flags, _, err = unix.Recvmsg(fd, buf, oob[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	fds, err := rights(oob[:oobn])
	switch {
	case err != nil:
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = fmt.Errorf("truncated: %w", errMalformed)
	case n == 0 && len(fds) == 0:
		return nil, io.EOF
	case n < headerSize:
		err = errMalformed
	}
	p := &Packet{Fds: fds}
	if err == nil {
		p.Op, p.Seq, p.Body = Op(buf[0]), binary.LittleEndian.Uint32(buf[2:]), buf[headerSize:n]
		if buf[1]&flagInMemfd != 0 {
			err = p.bodyFromMemfd()
		}
	}
	if err != nil {
		CloseFds(p.Fds)
		return nil, err
	}
	return p, nil
}

// BufferSize is what RecvPacket needs; BufferOOB has room for MaxFds+1
// descriptors.
const (
	BufferSize = maxOnTheWire
	BufferOOB  = 16 + (MaxFds+1)*4 + 4
)

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, errors.Join(errMalformed, err)
	}
	var all []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return all, errors.Join(errMalformed, err)
		}
		all = append(all, fds...)
	}
	return all, nil
}

func bodyToMemfd(body []byte) (int, error) {
	fd, err := unix.MemfdCreate("podstead-message", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	if err := WriteFull(fd, body); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("write message to memfd: %w", err)
	}
	return fd, nil
}

func (p *Packet) bodyFromMemfd() error {
	if len(p.Fds) == 0 {
		return errMalformed
	}
	fd := p.Fds[0]
	p.Fds = p.Fds[1:]
	defer unix.Close(fd)
	body, err := ReadMemfd(fd)
	p.Body = body
	return err
}

// ReadMemfd reads a whole memfd from its start. Anything else than a memory
// file would let a peer make the reader wait.
func ReadMemfd(fd int) ([]byte, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil {
		return nil, fmt.Errorf("body is not in a memfd: %w", errMalformed)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat memfd: %w", err)
	}
	if st.Size > MaxBody {
		return nil, fmt.Errorf("message of %d bytes: %w", st.Size, errMalformed)
	}
	b := make([]byte, st.Size)
	for off := 0; off < len(b); {
		n, err := unix.Pread(fd, b[off:], int64(off))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read memfd: %w", err)
		}
		if n == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		off += n
	}
	return b, nil
}

// WriteFull writes all of b to a blocking descriptor.
func WriteFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// CloseFds closes descriptors, negative ones excepted.
func CloseFds(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
