package launch

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// conversation is with a running container.
type conversation struct {
	t   testing.TB
	out *bufio.Reader
	pid int
}

// startTalking starts a container whose stdin and stdout are pipes. It ends
// with the test.
func startTalking(t testing.TB, p *Program) (stdin *os.File, c *conversation) {
	t.Helper()
	files, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	child, err := Fork(p, files, Stdio{Stdin: inR, Stdout: outW, Stderr: outW})
	for _, f := range append(files, inR, outW) {
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		inW.Close()
		outR.Close()
		unix.PidfdSendSignal(int(child.Pidfd.Fd()), unix.SIGKILL, nil, 0)
		unix.Wait4(child.Pid, nil, 0, nil)
		child.Pidfd.Close()
	})
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	outR.SetReadDeadline(time.Now().Add(time.Minute))
	return inW, &conversation{t: t, out: bufio.NewReader(outR), pid: child.Pid}
}

// line is the next line of the container's output.
func (c *conversation) line() string {
	c.t.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("read %q: %v", s, err)
	}
	return strings.TrimSpace(s)
}
