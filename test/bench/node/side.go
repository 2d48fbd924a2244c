package main

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
	"syscall"
	"time"

	"podstead/test/host"
	"podstead/test/node"
	"podstead/test/peer"
)

// side is one of those that are compared, and its figures.
type side struct {
	name, short string
	pids        func() []int // all processes that are its own
	// apply brings a manifest up; end takes it down.
	apply func(name, manifest string) (end func() error, err error)
	// endAll, if not nil, takes all pods down at once.
	endAll func() error
	stop   func()

	up, again []time.Duration
	idle      []idle
}

// idle is what a side uses for pods that do nothing.
type idle struct {
	pods   int
	memory int64         // bytes, proportional set size
	cpu    time.Duration // a second
}

// files runs what is in a directory.
func files(dir string) func(name, manifest string) (func() error, error) {
	return func(name, manifest string) (func() error, error) {
		path := filepath.Join(dir, name+".yaml")
		return func() error { return os.Remove(path) }, os.WriteFile(path, []byte(manifest), 0o644)
	}
}

func startOurs(ctx context.Context, dir, _ string) (*side, error) {
	manifests := filepath.Join(dir, "ours")
	if err := os.Mkdir(manifests, 0o755); err != nil {
		return nil, err
	}
	n, err := node.Start(ctx, os.Getenv(podsteadVariable), dir+"/podstead", "node", "--manifests", manifests, "--node-name", "ours")
	if err != nil {
		return nil, err
	}
	return &side{name: "podstead node", short: "p", pids: n.Pids, apply: files(manifests), stop: func() {
		if err := n.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stop podstead:", err)
		}
	}}, nil
}

const kubeletConfig = `
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
staticPodPath: %[1]s/pods
fileCheckFrequency: 1s
podLogsDir: %[1]s/logs
containerRuntimeEndpoint: %[2]s
cgroupRoot: %[3]s
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
maxPods: 250
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%}
`

func startKubelet(ctx context.Context, dir, registry string) (*side, error) {
	program := os.Getenv(kubeletVariable)
	if program == "" {
		return nil, fmt.Errorf("kubelet (%s): %w", kubeletVariable, peer.ErrNotInstalled)
	}
	c, err := peer.StartContainerdFrom(ctx, os.Getenv(containerdVariable), dir+"/containerd", registry+"/pause:1")
	if err != nil {
		return nil, err
	}
	home := filepath.Join(dir, "kubelet")
	if err := os.MkdirAll(filepath.Join(home, "pods"), 0o755); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	groups := makeCgroups()
	config, log := filepath.Join(home, "config.yaml"), filepath.Join(home, "log")
	if err := os.WriteFile(config, fmt.Appendf(nil, kubeletConfig, home, c.Endpoint, host.Cgroup()), 0o644); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	out, err := os.Create(log)
	if err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	defer out.Close()
	cmd := exec.Command(program, "--config", config, "--root-dir", filepath.Join(home, "root"), "--hostname-override", "theirs")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return &side{
		name: "kubelet 1.36 + containerd " + c.Version, short: "k", apply: files(filepath.Join(home, "pods")),
		pids: func() []int {
			return slices.Concat([]int{cmd.Process.Pid, c.Pid()}, c.Shims(), node.Processes("/pause", ""))
		},
		stop: func() {
			pods, _ := filepath.Glob(filepath.Join(home, "pods", "*"))
			for _, p := range pods {
				os.Remove(p)
			}
			if len(pods) > 0 {
				time.Sleep(20 * time.Second)
			}
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
			syscall.Unmount(filepath.Join(home, "root"), syscall.MNT_DETACH)
			if err := c.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "bench: stop containerd:", err)
			}
			groups()
		},
	}, nil
}

// makeCgroups makes the kubelet's root in every hierarchy, and returns what
// removes it again.
func makeCgroups() (remove func()) {
	tops, _ := filepath.Glob("/sys/fs/cgroup/*")
	var made []string
	for _, top := range append(tops, "/sys/fs/cgroup") {
		if _, err := os.Stat(filepath.Join(top, "cgroup.procs")); err != nil {
			continue
		}
		path := filepath.Join(top, host.Cgroup())
		if os.MkdirAll(path, 0o755) == nil {
			made = append(made, path)
		}
	}
	return func() {
		for _, root := range made {
			var dirs []string
			filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() && p != root {
					dirs = append(dirs, p)
				}
				return nil
			})
			for _, d := range slices.Backward(dirs) {
				os.Remove(d)
			}
		}
	}
}

func startPodman(_ context.Context, dir, registry string) (*side, error) {
	if _, err := exec.LookPath("podman"); err != nil {
		return nil, fmt.Errorf("podman: %w", peer.ErrNotInstalled)
	}
	home := filepath.Join(dir, "podman")
	run, err := os.MkdirTemp("/run", "podman-")
	if err != nil {
		return nil, err
	}
	// Without these it wants to build an image with Debian's catatonit for the pause.
	config := filepath.Join(run, "containers.conf")
	content := fmt.Sprintf("[engine]\ninfra_image = %q\ninfra_command = \"/pause\"\n[engine.runtimes]\nrunc = [\"/usr/sbin/runc\", \"/usr/bin/runc\"]\n[containers]\nlog_driver = \"k8s-file\"\n", registry+"/pause:1")
	if err := os.WriteFile(config, []byte(content), 0o644); err != nil {
		return nil, err
	}
	podman := func(args ...string) (string, error) {
		args = append([]string{"--root", home, "--runroot", run, "--tmpdir", run + "/tmp", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}, args...)
		cmd := exec.Command("podman", args...)
		cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+config)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("podman %s: %w: %s", strings.Join(args[10:], " "), err, errs.String())
		}
		return strings.TrimSpace(string(out)), err
	}
	for _, image := range []string{"busybox", "pause"} {
		if _, err := podman("pull", "-q", "--tls-verify=false", registry+"/"+image+":1"); err != nil {
			return nil, err
		}
	}
	version, _ := podman("version", "--format", "{{.Client.Version}}")
	return &side{
		name: "podman kube play " + version, short: "m",
		pids: func() []int {
			return slices.Concat(node.Processes("/usr/bin/conmon", run), node.Processes("/pause", ""))
		},
		apply: func(name, manifest string) (func() error, error) {
			path := filepath.Join(dir, "podman-"+name+".yaml")
			if err := os.WriteFile(path, []byte(manifest), 0o644); err != nil {
				return nil, err
			}
			go func() { // what counts is when the process runs
				if _, err := podman("kube", "play", path); err != nil {
					fmt.Fprintln(os.Stderr, "bench:", err)
				}
			}()
			return func() error { _, err := podman("pod", "rm", "-f", "-t", "0", name); return err }, nil
		},
		endAll: func() error { _, err := podman("pod", "rm", "-f", "-a", "-t", "0"); return err },
		stop: func() {
			podman("pod", "rm", "-f", "-a", "-t", "0")
			podman("rmi", "-f", "-a")
			host.UnmountBelow(home)
			host.UnmountBelow(run)
			os.RemoveAll(run)
		},
	}, nil
}
