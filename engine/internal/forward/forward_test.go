package forward

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
)

// TestPort forwards a connection whose client is done long before the server
// has answered.
func TestPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		request, _ := io.ReadAll(conn) // ends with the client's half-close
		conn.Write([]byte("you said " + string(request)))
	}()
	client := &duplex{in: strings.NewReader("hello")}
	if err := Port(t.Context(), "", int32(l.Addr().(*net.TCPAddr).Port), client); err != nil {
		t.Fatal(err)
	}
	if got := client.out.String(); got != "you said hello" {
		t.Errorf("got %q", got)
	}
}

// A server may listen on one of the loopback addresses only.
func TestDialEitherFamily(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Skip(err) // a machine without IPv6
		}
		defer l.Close()
		c, err := dial("", int32(l.Addr().(*net.TCPAddr).Port))
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		c.Close()
	}
}

// duplex is a client's stream that has its input at once.
type duplex struct {
	in  io.Reader
	out bytes.Buffer
}

func (d *duplex) Read(p []byte) (int, error)  { return d.in.Read(p) }
func (d *duplex) Write(p []byte) (int, error) { return d.out.Write(p) }
func (d *duplex) Close() error                { return nil }
