// Package peer runs other people's container runtimes, where they are
// installed, in directories of their own, so that our tests can be checked on
// them and our numbers set beside theirs. It is to be used inside a host made by
// package host: a runtime's bridge and firewall rules are not private otherwise.
package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podstead/test/host"
)

// ErrNotInstalled says that a peer is not on this machine.
var ErrNotInstalled = errors.New("not installed")

// bridge is the name of the peer's bridge.
const bridge = "peer0"

// Containerd is a running containerd with runc and the CNI bridge plugin.
type Containerd struct {
	Endpoint string // unix:///…/containerd.sock
	Version  string
	programs string // the directory of its programs; "" for those on the PATH
	dir, run string
	cmd      *exec.Cmd
	ended    chan struct{} // closed when the daemon has exited
}

// cniDirs are where distributions put the CNI plugins.
var cniDirs = []string{"/usr/lib/cni", "/opt/cni/bin"}

// StartContainerd starts the one that is installed, with its images and
// containers below dir, and its sockets and mounts below /run, as on a node. It
// returns when the daemon answers. sandboxImage is the reference of the image
// for pods' pause processes.
func StartContainerd(ctx context.Context, dir, sandboxImage string) (*Containerd, error) {
	return StartContainerdOn(ctx, "runc", dir, sandboxImage)
}

// StartContainerdOn is StartContainerd with another OCI runtime in runc's place.
func StartContainerdOn(ctx context.Context, runtime, dir, sandboxImage string) (*Containerd, error) {
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "ctr", runtime, "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%s: %w", program, ErrNotInstalled)
		}
	}
	return startContainerd(ctx, "", runtime, dir, sandboxImage)
}

// StartContainerdFrom is StartContainerd with containerd, containerd-shim-runc-v2,
// ctr and runc from a directory of programs.
func StartContainerdFrom(ctx context.Context, programs, dir, sandboxImage string) (*Containerd, error) {
	return startContainerd(ctx, programs, "runc", dir, sandboxImage)
}

func startContainerd(ctx context.Context, programs, runtime, dir, sandboxImage string) (*Containerd, error) {
	plugins := findDir(cniDirs, "bridge")
	if plugins == "" {
		return nil, fmt.Errorf("CNI plugins: %w", ErrNotInstalled)
	}
	run, err := os.MkdirTemp("/run", "peer-")
	if err != nil {
		return nil, err
	}
	// As on a node: the root of a pod's user namespace walks through both.
	if err := errors.Join(os.MkdirAll(dir, 0o711), os.Chmod(run, 0o711)); err != nil {
		return nil, err
	}
	c := &Containerd{programs: programs, dir: dir, run: run, Endpoint: "unix://" + run + "/containerd.sock", ended: make(chan struct{})}
	if err := c.configure(plugins, runtime, sandboxImage); err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func findDir(dirs []string, file string) string {
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			return dir
		}
	}
	return ""
}

// configure writes containerd's and CNI's configuration: the defaults, as a
// node has them, but for the directories, what a machine without
// CAP_SYS_RESOURCE and AppArmor needs, limits of huge pages, which containerd
// passes over unless told not to, and plugins that want to probe devices.
func (c *Containerd) configure(plugins, runtime, sandboxImage string) error {
	config := fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = %[3]q
[ttrpc]
  address = %[4]q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[5]q
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[6]q
    conf_dir = %[7]q
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %[8]q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = %[9]q
`, c.dir+"/root", c.run+"/state", c.run+"/containerd.sock", c.run+"/containerd.ttrpc.sock",
		sandboxImage, plugins, c.dir+"/cni", c.CertsDir(), runtime)
	const network = `{"cniVersion": "0.4.0", "name": "peer", "plugins": [
  {"type": "bridge", "bridge": "` + bridge + `", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`
	for _, dir := range []string{c.dir + "/cni", c.CertsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(c.dir+"/config.toml", []byte(config), 0o600),
		os.WriteFile(c.dir+"/cni/10-peer.conflist", []byte(network), 0o600))
}

// CertsDir is where the daemon looks for registries' hosts.toml.
func (c *Containerd) CertsDir() string { return c.dir + "/certs.d" }

func (c *Containerd) start(ctx context.Context) error {
	log, err := os.Create(c.dir + "/log")
	if err != nil {
		return err
	}
	defer log.Close()
	c.cmd = exec.Command(filepath.Join(c.programs, "containerd"), "--config", c.dir+"/config.toml", "--log-level", "warn")
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if c.programs != "" {
		c.cmd.Env = append(os.Environ(), "PATH="+c.programs+":"+os.Getenv("PATH"))
	}
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	go func() {
		defer close(c.ended)
		c.cmd.Wait()
	}()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		out, err := c.ctr(ctx, "version").Output()
		if err == nil {
			c.Version = serverVersion(string(out))
			return nil
		}
		select {
		case <-c.ended:
			return fmt.Errorf("containerd ended: %s", c.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("containerd does not answer: %w: %s", err, c.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// serverVersion finds the daemon's version in what "ctr version" prints.
func serverVersion(out string) string {
	_, server, _ := strings.Cut(out, "Server:")
	_, version, _ := strings.Cut(server, "Version:")
	version, _, _ = strings.Cut(version, "\n")
	return strings.TrimSpace(version)
}

// ctr is containerd's own command line, as the CRI's namespace sees it.
func (c *Containerd) ctr(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"--address", c.run + "/containerd.sock", "--namespace", "k8s.io"}, args...)
	return exec.CommandContext(ctx, filepath.Join(c.programs, "ctr"), args...)
}

// Import loads an archive of images.
func (c *Containerd) Import(ctx context.Context, archive string) error {
	if out, err := c.ctr(ctx, "images", "import", archive).CombinedOutput(); err != nil {
		return fmt.Errorf("import %s: %w: %s", archive, err, bytes.TrimSpace(out))
	}
	return nil
}

// Pid is the daemon's.
func (c *Containerd) Pid() int { return c.cmd.Process.Pid }

// Shims lists the processes of its shims.
func (c *Containerd) Shims() []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(dir + "/cmdline")
		args := strings.Split(string(cmdline), "\x00")
		if err != nil || filepath.Base(args[0]) != "containerd-shim-runc-v2" || !strings.Contains(string(cmdline), c.run+"/") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// LogTail is the end of the daemon's log.
func (c *Containerd) LogTail() string {
	log, _ := os.ReadFile(c.dir + "/log")
	return string(log[max(0, len(log)-4000):])
}

// Stop ends the daemon and what is left of its pods, and removes its state.
func (c *Containerd) Stop() error {
	if c.cmd != nil && c.cmd.Process != nil {
		c.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.ended:
		case <-time.After(patience):
			c.cmd.Process.Kill()
			<-c.ended
		}
		for _, pid := range c.Shims() {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	return errors.Join(RemoveLink(bridge), host.UnmountBelow(c.run), os.RemoveAll(c.run), host.UnmountBelow(c.dir), os.RemoveAll(c.dir))
}

// RemoveLink removes a bridge, which was made with the first pod at the latest.
func RemoveLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}
