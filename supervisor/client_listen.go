package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Listen returns the listener stored under name, or makes it and stores it, so
// that clients that connect while no engine runs wait instead of failing. A
// unix socket is made with mode 0600; network is "unix" or "tcp". Closing the
// listener leaves the stored one open; Drop closes that.
func (c *Client) Listen(ctx context.Context, name, network, address string) (net.Listener, error) {
	files, err := c.Take(ctx, name)
	if errors.Is(err, os.ErrNotExist) {
		return c.listenNew(ctx, name, network, address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", name, err)
	}
	defer sys.CloseAll(files)
	l, err := net.FileListener(files[0])
	if err != nil {
		return nil, fmt.Errorf("listen %s: stored descriptor: %w", name, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, nil
}

func (c *Client) listenNew(ctx context.Context, name, network, address string) (l net.Listener, err error) {
	var file *os.File
	switch network {
	case "unix":
		l, file, err = listenUnix(ctx, address)
	case "tcp", "tcp4", "tcp6":
		if l, err = new(net.ListenConfig).Listen(ctx, network, address); err == nil {
			file, err = l.(*net.TCPListener).File()
		}
	default:
		err = net.UnknownNetworkError(network)
	}
	if err == nil {
		err = c.Store(ctx, name, file)
		file.Close()
	}
	if err != nil {
		if l != nil {
			l.Close()
		}
		return nil, fmt.Errorf("listen %s: %w", name, err)
	}
	return l, nil
}

// listenUnix makes a socket with mode 0600 from its first moment, in place of a
// dead one.
func listenUnix(ctx context.Context, path string) (net.Listener, *os.File, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, nil, &os.PathError{Op: "listen", Path: path, Err: unix.EADDRINUSE}
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&os.ModeSocket == 0 {
			return nil, nil, &os.PathError{Op: "listen", Path: path, Err: os.ErrExist}
		}
		os.Remove(path)
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var merr error
		// bind takes the mode of the name from that of the socket.
		err := raw.Control(func(fd uintptr) { merr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, merr)
	}}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	file, err := u.File()
	if err != nil {
		l.Close()
		os.Remove(path)
		return nil, nil, err
	}
	return l, file, nil
}
