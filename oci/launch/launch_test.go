package launch

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const busybox = "/bin/busybox"

func TestMain(m *testing.M) {
	if os.Getenv("PODSTEAD_TEST_SWAP") != "" {
		swapper(os.Args[1], os.Args[2])
	}
	os.Exit(m.Run())
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// rootfs makes a root directory with busybox.
func rootfs(t testing.TB) string {
	dir := t.TempDir()
	for _, d := range []string{"bin", "etc", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "id", "ls", "true", "cut", "sleep", "mount", "hostname", "stat", "grep", "echo", "touch", "readlink", "tty", "stty", "ps", "wc"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// testSpec is an ordinary container that runs a shell script.
func testSpec(root, script string) *specs.Spec {
	return &specs.Spec{
		Root: &specs.Root{Path: root},
		Process: &specs.Process{
			Args: []string{"sh", "-c", script},
			Env:  []string{"PATH=/usr/bin:/bin"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: defaultCaps, Permitted: defaultCaps, Effective: defaultCaps,
			},
			NoNewPrivileges: true,
		},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware", "/proc/no-such"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// run compiles and runs a container to its end.
func run(t testing.TB, spec *specs.Spec, opt Options) (output string, status unix.WaitStatus) {
	t.Helper()
	opt.ID = t.Name()
	p, err := Compile(spec, opt)
	if err != nil {
		t.Fatal(err)
	}
	output, status, err = execute(t, p)
	if err != nil {
		t.Fatal(err)
	}
	return output, status
}

func execute(t testing.TB, p *Program) (output string, status unix.WaitStatus, err error) {
	t.Helper()
	return executeWith(t, p, ForkOptions{})
}

// executeWith is execute by a fork with further wishes than for its output.
func executeWith(t testing.TB, p *Program, opt ForkOptions) (output string, status unix.WaitStatus, err error) {
	t.Helper()
	files, err := p.Open()
	if err != nil {
		return "", 0, err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	opt.Stdio = Stdio{Stdout: w, Stderr: w}
	c, err := ForkWith(p, files, opt)
	w.Close()
	if err != nil {
		return "", 0, err
	}
	defer c.Pidfd.Close()
	err = c.Start()
	out, _ := io.ReadAll(r)
	if _, werr := unix.Wait4(c.Pid, &status, 0, nil); werr != nil {
		t.Errorf("wait: %v", werr)
	}
	return string(out), status, err
}

func TestHello(t *testing.T) {
	needRoot(t)
	out, status := run(t, testSpec(rootfs(t), "echo hello; hostname; id -u; echo $$; ls /; ls -l /dev /proc/self/fd; cat /proc/self/mountinfo /proc/self/status; exit 3"), Options{})
	t.Log(out)
	if status.ExitStatus() != 3 || !strings.HasPrefix(out, "hello\nbox\n0\n1\n") {
		t.Errorf("status %v, output %q", status, out)
	}
}
