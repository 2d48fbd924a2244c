package daemon

import (
	"errors"
	"io"
	"log/slog"

	"golang.org/x/sys/unix"

	"podstead/supervisor/internal/protocol"
)

// conn is a connected client. It belongs to the loop.
type conn struct {
	d     *daemon
	fd    int
	token token
	pid   int // of the peer
	// queue holds what the socket would not take yet; its descriptors are
	// copies.
	queue []*protocol.Packet
	// watch is the request that asked for events, watching whether there is one.
	watch    uint32
	watching bool
	attached map[uint32]*attachment
	closed   bool
}

// maxQueue is how many messages wait for a client that does not read before it
// is cut off. It learns what it missed by listing after it has reconnected.
const maxQueue = 10000

// maxConns bounds the clients.
const maxConns = 200

// accept takes all waiting clients that may talk to the supervisor: those of
// its own user, and root.
func (d *daemon) accept() {
	for {
		fd, _, err := unix.Accept4(d.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			if err != unix.EAGAIN && err != unix.EINTR {
				d.log.Warn("accept client", "err", err)
			}
			return
		}
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || cred.Uid != 0 && int(cred.Uid) != unix.Geteuid() || len(d.conns) >= maxConns {
			d.log.Warn("client refused", "cred", cred, "clients", len(d.conns))
			unix.Close(fd)
			continue
		}
		if _, err := d.addConn(fd, int(cred.Pid)); err != nil {
			d.log.Warn("client refused", "err", err)
			unix.Close(fd)
		}
	}
}

func (d *daemon) addConn(fd, pid int) (*conn, error) {
	c := &conn{d: d, fd: fd, pid: pid, attached: map[uint32]*attachment{}}
	var err error
	if c.token, err = d.poll.add(fd, unix.EPOLLIN, c.ready); err != nil {
		return nil, err
	}
	d.conns[c] = true
	if d.idle != nil && d.idle.Stop() {
		d.idle = nil
	}
	return c, nil
}

// ready reads one message, or writes what is queued.
func (c *conn) ready(events uint32) {
	if events&unix.EPOLLOUT != 0 {
		c.flush()
	}
	if c.d.quiet && events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.close(io.EOF)
	}
	if c.closed || c.d.quiet || events&^unix.EPOLLOUT == 0 {
		return
	}
	p, err := protocol.RecvPacket(c.fd, c.d.recvBuf[:])
	switch {
	case err == unix.EAGAIN:
	case err != nil:
		c.close(err)
	default:
		c.d.handle(c, p)
	}
}

// answer answers a request: OK with body and descriptors, or Fail.
func (c *conn) answer(seq uint32, body protocol.Coded, err error, fds ...int) {
	p := &protocol.Packet{Op: protocol.OK, Seq: seq, Fds: fds}
	if err != nil {
		p.Op, p.Fds, body = protocol.Fail, nil, protocol.FailureOf(err)
	}
	if body != nil {
		p.Body = protocol.Encode(body)
	}
	c.send(p)
}

// send sends a packet without waiting; the caller keeps its descriptors.
func (c *conn) send(p *protocol.Packet) {
	if c.closed {
		return
	}
	if len(c.queue) == 0 {
		err := protocol.SendPacket(c.fd, p)
		if err == nil {
			return
		}
		if err != unix.EAGAIN {
			c.close(err)
			return
		}
		c.d.poll.arm(c.fd, c.token, unix.EPOLLIN|unix.EPOLLOUT)
	}
	if len(c.queue) >= maxQueue {
		c.close(errors.New("client does not read"))
		return
	}
	held := *p
	held.Fds = nil
	for _, fd := range p.Fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			protocol.CloseFds(held.Fds)
			c.close(err)
			return
		}
		held.Fds = append(held.Fds, dup)
	}
	c.queue = append(c.queue, &held)
}

// flush sends what is queued.
func (c *conn) flush() {
	for len(c.queue) > 0 {
		err := protocol.SendPacket(c.fd, c.queue[0])
		if err == unix.EAGAIN {
			return
		}
		if err != nil {
			c.close(err)
			return
		}
		protocol.CloseFds(c.queue[0].Fds)
		c.queue = c.queue[1:]
	}
	c.queue = nil
	c.d.poll.arm(c.fd, c.token, unix.EPOLLIN)
}

// close drops a client and its attachments. What it asked for goes on.
func (c *conn) close(err error) {
	if c.closed {
		return
	}
	c.closed = true
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		c.d.log.Warn("client dropped", slog.Int("pid", c.pid), slog.Any("err", err))
	}
	for _, a := range c.attached {
		c.d.detach(a)
	}
	for _, p := range c.queue {
		protocol.CloseFds(p.Fds)
	}
	c.queue = nil
	c.d.poll.remove(c.fd, c.token)
	unix.Close(c.fd)
	delete(c.d.conns, c)
	c.d.frontGone(c)
}
