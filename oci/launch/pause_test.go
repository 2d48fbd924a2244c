package launch

import (
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestPause(t *testing.T) {
	needRoot(t)
	spec := &specs.Spec{
		Hostname: "pod",
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
		}},
	}
	p, err := CompilePause(spec, Options{ID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	pause := start(t, p)
	status, err := os.ReadFile(procFile(pause, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Name:\tmemfd:pause", "Uid:\t65535\t65535", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in %s", want, status)
		}
	}

	// A container in its pid namespace leaves an orphan behind.
	c := testSpec(rootfs(t), "(sleep 0.05 &) ; exec true")
	c.Linux.Namespaces[0].Path = procFile(pause, "ns/pid")
	if _, status := run(t, c, Options{}); status.ExitStatus() != 0 {
		t.Errorf("status %v", status)
	}
	c = testSpec(rootfs(t), "i=0; while ps | grep -q '[s]leep' && [ $((i+=1)) -lt 3000 ]; do sleep 0.01; done; ps; ls -l /proc/1/root 2>&1")
	c.Linux.Namespaces[0].Path = procFile(pause, "ns/pid")
	out, _ := run(t, c, Options{})
	if !strings.Contains(out, "pause") || strings.Contains(out, "Z") {
		t.Errorf("processes: %s", out)
	}

	unix.Kill(pause, unix.SIGTERM)
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pause, &ws, 0, nil); err != nil || !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("after SIGTERM: %v %v", ws, err)
	}
}
