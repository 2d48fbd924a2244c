package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podstead/test/host"
)

// Docker is a running Docker Engine with a containerd of its own.
type Docker struct {
	Endpoint string // unix:///…/docker.sock
	dir, run string
	cmd      *exec.Cmd
	ended    chan struct{} // closed when cmd has exited
	// forwarding are the firewalls' policies before Docker came, by tool.
	forwarding map[string]string
}

// StartDocker starts one whose images and containers are below dir, and whose
// sockets and mounts are below /run, as on a node, with a bridge of its own. It
// returns when the daemon answers. Settings are those of daemon.json.
func StartDocker(ctx context.Context, dir string, settings map[string]any) (*Docker, error) {
	for _, program := range []string{"dockerd", "docker-proxy", "containerd", "containerd-shim-runc-v2", "runc", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%s: %w", program, ErrNotInstalled)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	run, err := os.MkdirTemp("/run", "peer-")
	if err != nil {
		return nil, err
	}
	d := &Docker{dir: dir, run: run, Endpoint: "unix://" + run + "/docker.sock", forwarding: forwarding()}
	config, err := json.Marshal(settings)
	if err == nil {
		err = os.WriteFile(dir+"/daemon.json", config, 0o600)
	}
	if err == nil {
		err = d.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// patience is how long a daemon may take to start or end, on however slow a
// machine.
const patience = 5 * time.Minute

// Start starts the daemon, again if it was halted.
func (d *Docker) Start(ctx context.Context) error {
	log, err := os.OpenFile(d.dir+"/log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"--host", d.Endpoint, "--data-root", d.dir + "/root", "--exec-root", d.run + "/exec",
		"--pidfile", d.run + "/docker.pid", "--config-file", d.dir + "/daemon.json", "--bip", "10.90.0.1/16",
		"--log-level", "warn", "--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", dockerCgroup()}
	// Docker before 25 has a score of its own, and lowering one takes CAP_SYS_RESOURCE.
	if DockerHas("--oom-score-adjust") {
		args = append(args, "--oom-score-adjust", "0")
	}
	cmd := exec.Command("dockerd", args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start dockerd: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	d.cmd, d.ended = cmd, ended
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := d.ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("dockerd ended: %s", d.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("dockerd does not answer: %w: %s", err, d.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// DockerHas tells whether the daemon that is installed knows a flag.
func DockerHas(flag string) bool {
	help, err := exec.Command("dockerd", "--help").Output()
	return err == nil && bytes.Contains(help, []byte(flag))
}

// Halt ends the daemon; its state stays, and its containers end unless
// "live-restore" is among its settings.
func (d *Docker) Halt() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.cmd.Process.Kill()
		<-d.ended
	}
}

func (d *Docker) ping(ctx context.Context) error {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(d.Endpoint, "unix://"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// LogTail is the end of the daemon's log.
func (d *Docker) LogTail() string {
	log, _ := os.ReadFile(d.dir + "/log")
	return string(log[max(0, len(log)-4000):])
}

// Lines are what it has logged of a container, by its "json-file" driver.
func (d *Docker) Lines(id string) (lines []string, err error) {
	file, err := os.Open(filepath.Join(d.dir, "root", "containers", id, id+"-json.log"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for in := json.NewDecoder(file); ; {
		var entry struct{ Log string }
		switch err := in.Decode(&entry); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // the last is being written
			return lines, nil
		case err != nil:
			return nil, err
		}
		lines = append(lines, strings.TrimSuffix(entry.Log, "\n"))
	}
}

// Stop ends the daemon and what is left of its containers, and removes its
// state.
func (d *Docker) Stop() error {
	if d.cmd != nil {
		d.Halt()
		for _, pid := range processesOf(d.run + "/") {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	errs := []error{RemoveLink("docker0"), d.restoreForwarding(), removeCgroup(dockerCgroup())}
	for _, dir := range []string{d.run, d.dir, "/run/docker"} {
		errs = append(errs, host.UnmountBelow(dir), os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// dockerCgroup has the containers that name no other group.
func dockerCgroup() string { return host.Cgroup() + "/docker" }

// removeCgroup removes a group that runc made on the way to a container's, which
// stays empty, from all hierarchies.
func removeCgroup(path string) error {
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + path)
	errs := []error{err}
	for _, dir := range append(dirs, "/sys/fs/cgroup"+path) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// forwarding is what the firewalls do with what is forwarded, by tool: Docker
// has it dropped, and leaves that so.
func forwarding() map[string]string {
	out := map[string]string{}
	for _, tool := range []string{"iptables", "ip6tables"} {
		rules, err := exec.Command(tool, "-S", "FORWARD").Output()
		if policy, _, _ := strings.Cut(string(rules), "\n"); err == nil && strings.HasPrefix(policy, "-P FORWARD ") {
			out[tool] = strings.TrimPrefix(policy, "-P FORWARD ")
		}
	}
	return out
}

func (d *Docker) restoreForwarding() error {
	var errs []error
	for tool, policy := range d.forwarding {
		if said, err := exec.Command(tool, "-P", "FORWARD", policy).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("%s -P FORWARD %s: %w: %s", tool, policy, err, said))
		}
	}
	return errors.Join(errs...)
}

// processesOf lists processes that have a path among their arguments: shims
// and a containerd that outlived the daemon.
func processesOf(path string) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var pid int
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !strings.Contains(string(cmdline), path) {
			continue
		}
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
