package podman

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/peer"
	"podstead/test/programs"
)

// podsteadVariable hands the path of our programs to the tests inside the host.
const podsteadVariable = "PODSTEAD_TEST_PODSTEAD"

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(podsteadVariable) == "" {
		path, err := programs.Podstead()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(podsteadVariable, path)
	}
	host.Main(m)
}

// client is a command line, of podman or of Docker.
type client struct {
	*testing.T
	program     string
	global, env []string
}

// podman is an installation of its own.
type podman struct{ client }

const image = "localhost/box"

// patience bounds every wait.
const patience = 5 * time.Minute

func newPodman(t *testing.T) *podman {
	t.Helper()
	host.Require(t)
	if _, err := exec.LookPath("podman"); err != nil {
		t.Skip("podman is not installed")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { // root of a user namespace walks through it
			t.Fatal(err)
		}
	}
	run, err := os.MkdirTemp("/run", "podman-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(run, 0o755); err != nil {
		t.Fatal(err)
	}
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	giveRange(t, dir)
	// There is no systemd to run timers, and no kernel log that we may not see.
	p := &podman{client{T: t, program: "podman", env: []string{"DISABLE_HC_SYSTEMD=true"}, global: []string{
		"--root", dir + "/root", "--runroot", run + "/root", "--tmpdir", run + "/tmp", "--storage-driver", "overlay",
		"--runtime", runtimePath(),
		"--cgroup-manager", "cgroupfs", "--events-backend", "file",
	}}}
	t.Cleanup(func() {
		p.must("rm", "--all", "--force", "--time", "0")
		p.eventually("the last of conmon and podman", func() bool { return !mentioned(run) })
		// Which may leave the storage's directory mounted onto itself.
		if err := unix.Unmount(dir+"/root/overlay", unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			t.Error(err)
		}
	})
	box, err := peer.Busybox()
	if err != nil {
		t.Skip(err)
	}
	archive := filepath.Join(dir, "box.tar")
	if err := peer.Archive(archive, map[string]v1.Image{image: box}); err != nil {
		t.Fatal(err)
	}
	p.must("load", "--input", archive)
	return p
}

// giveRange has podman find ids for --userns=auto.
func giveRange(t *testing.T, dir string) {
	t.Helper()
	file := filepath.Join(dir, "range")
	if err := os.WriteFile(file, []byte("containers:300000:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/etc/subuid", "/etc/subgid"} {
		if err := unix.Mount(file, name, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(os.NewSyscallError("mount "+name, err))
		}
		t.Cleanup(func() {
			if err := unix.Unmount(name, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
}

func runtimePath() string {
	return filepath.Join(filepath.Dir(os.Getenv(podsteadVariable)), "podstead-oci")
}

// mentioned tells whether a process has a path among its arguments.
func mentioned(path string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return slices.ContainsFunc(files, func(f string) bool {
		b, _ := os.ReadFile(f)
		return bytes.Contains(b, []byte(path))
	})
}

// result is what a command came to.
type result struct {
	stdout, stderr string
	code           int
}

// run runs a command, with nothing as input.
func (c *client) run(args ...string) result { return c.runWith("", args...) }

func (c *client) runWith(stdin string, args ...string) result {
	c.Helper()
	return c.runIn(nil, stdin, args...)
}

// runIn has more in the environment.
func (c *client) runIn(env []string, stdin string, args ...string) result {
	c.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program, append(c.global[:len(c.global):len(c.global)], args...)...)
	cmd.Env = slices.Concat(os.Environ(), c.env, env)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		c.Fatal(err)
	} else if errors.Is(err, exec.ErrWaitDelay) {
		c.Errorf("%v: somebody keeps its output open", args)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command that has to succeed, and returns what it wrote.
func (c *client) must(args ...string) string {
	c.Helper()
	r := c.run(args...)
	if r.code != 0 {
		c.Fatalf("%s %s: exit code %d: %s", c.program, strings.Join(args, " "), r.code, r.stderr)
	}
	return r.stdout
}

// inspect is a field of a container.
func (c *client) inspect(name, field string) string {
	c.Helper()
	return strings.TrimSpace(c.must("inspect", "--format", "{{"+field+"}}", name))
}

func (c *client) eventually(what string, ok func() bool) {
	c.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			c.Fatalf("waited in vain for %s", what)
		}
	}
}
