package hostile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/client"
	"podstead/cri/remote"
	"podstead/image/imagetest"
	"podstead/test/host"
	"podstead/test/leak"
	testnode "podstead/test/node"
	"podstead/test/programs"
)

// programVariable hands the path of our program to the tests inside the host.
const programVariable = "PODSTEAD_TEST_PODSTEAD"

// bound is how long anything may take before it counts as hanging.
const bound = 5 * time.Minute

// busybox is the image that most containers here run.
const busybox = "localhost/busybox:latest"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(programVariable) == "" && os.Geteuid() == 0 {
		path, err := programs.Podstead()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(programVariable, path)
	}
	host.Main(m)
}

// node is a "podstead node" under attack.
type node struct {
	*testing.T
	service   *testnode.Node
	rt        *remote.Runtime
	agent     *client.Client
	manifests string
	calm      leak.Snapshot // before anything happened
	scope     leak.Scope
	engine    int           // its process
	pods      *atomic.Int64 // made so far, by all subtests
}

// start starts a node. At the end of the test everything must be as it was
// when the node had done nothing yet, apart from images and logs, and after the
// node's own end as it was before.
func start(t *testing.T, args ...string) *node {
	t.Helper()
	return startIn(t, filepath.Join(t.TempDir(), "node"), args...)
}

// startIn starts a node whose directory is dir.
func startIn(t *testing.T, dir string, args ...string) *node {
	t.Helper()
	host.Require(t)
	leak.Check(t, leak.Scope{Dirs: []string{"/run"}})
	n := &node{T: t, manifests: t.TempDir(), pods: new(atomic.Int64)}
	var err error
	args = append([]string{"--manifests", n.manifests, "--node-name", "testnode"}, args...)
	n.service, err = testnode.Start(t.Context(), os.Getenv(programVariable), dir, "node", args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the node's log ends with:\n%s", n.service.LogTail())
		}
		if err := n.service.Stop(); err != nil {
			t.Error(err)
		}
	})
	if n.rt, err = remote.New(n.service.Endpoint()); err != nil {
		t.Fatal(err)
	}
	n.agent = client.New(n.service.Run + "/agent.sock")
	n.load(imagetest.ArchiveBytes(t, imagetest.Busybox(t), busybox))
	n.warmUp()
	t.Cleanup(func() {
		n.check()
		n.rt.Close()
		n.agent.Close()
	})
	return n
}

// warmUp makes what a node makes once and keeps, and takes the picture that the
// end of the test is compared with.
func (n *node) warmUp() {
	n.Helper()
	n.works()
	n.scope = leak.Scope{Cgroup: n.cgroup(), Dirs: []string{n.service.Run, n.service.State + "/state/agent/pods", n.service.State + "/state/network", n.service.State + "/state/images/staging"}}
	n.calm = n.take()
	n.engine = n.find("podstead", "node")
}

// take is leak.Take and what only a node has.
func (n *node) take() leak.Snapshot {
	s := leak.Take(n.scope)
	n.withoutSlots(s)
	rules, _ := exec.Command("nft", "list", "ruleset").Output()
	for line := range strings.Lines(string(rules)) {
		if !strings.Contains(line, "counter") {
			s["nft "+strings.TrimSpace(line)]++
		}
	}
	if pid := n.find("podstead-supervisor", "daemon"); pid != 0 {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		s["descriptors of the supervisor"] = len(fds)
	}
	return s
}

// withoutSlots takes the links of namespaces out of a picture that the network
// keeps ready for pods to come, as many as there may be.
func (n *node) withoutSlots(s leak.Snapshot) {
	const ready = 8 // network.readySlots of the configuration
	links := 0
	for what, count := range s {
		if strings.HasPrefix(what, "network interface veth") {
			links += count
			delete(s, what)
		}
	}
	if links > ready {
		s["network interface veth"] = links
	}
}

// check demands that the node works, in the same process if that was not
// killed, and that it has returned to calm.
func (n *node) check() {
	n.Helper()
	if n.Failed() {
		return
	}
	n.works()
	if pid := n.find("podstead", "node"); n.engine != 0 && pid != n.engine {
		n.Errorf("the engine was process %d and is %d: it crashed", n.engine, pid)
	}
	var left []string
	n.eventually("nothing is left", func() error {
		left = nil
		for what, count := range n.take() {
			if more := count - n.calm[what]; more > 0 && !n.passing(what) {
				left = append(left, fmt.Sprintf("%s (%d)", what, more))
			}
		}
		if len(left) > 0 {
			return errors.New(strings.Join(left, "\n\t"))
		}
		return nil
	})
}

// passing tells what may come and go although nothing happens: processes that
// the supervisor keeps ready, and this process's own connections.
func (n *node) passing(what string) bool {
	return strings.HasPrefix(what, "descriptor socket") || strings.HasPrefix(what, "descriptor /tmp") ||
		strings.HasPrefix(what, "process ") && strings.Contains(what, "podstead") ||
		strings.HasPrefix(what, "descriptors of the supervisor")
}

// cgroup is where the node's pods are, below each hierarchy.
func (n *node) cgroup() string {
	sum := sha256.Sum256([]byte(n.service.Run))
	return "/ps" + hex.EncodeToString(sum[:4])
}

// find returns the pid of a process of the node.
func (n *node) find(program, part string) int {
	for _, pid := range n.service.Pids() {
		cmdline, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		parent, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if testnode.Program(pid) != program || !bytes.Contains(cmdline, []byte("\x00"+part+"\x00")) {
			continue
		}
		// The front is this test's child, and the engine the supervisor's.
		if _, after, _ := strings.Cut(string(parent), ") "); !strings.HasPrefix(after[1:], fmt.Sprintf(" %d ", os.Getpid())) {
			return pid
		}
	}
	return 0
}

// works runs a container to its end.
func (n *node) works() {
	n.Helper()
	p := n.pod()
	out, code := p.run(&runtimeapi.ContainerConfig{Image: spec(busybox), Command: []string{"echo", "works"}})
	if code != 0 || out != "works\n" {
		n.Errorf("a container that should echo ended with %d and printed %q", code, out)
	}
	p.remove()
}

func spec(image string) *runtimeapi.ImageSpec { return &runtimeapi.ImageSpec{Image: image} }

// load loads an image archive, which must succeed.
func (n *node) load(archive []byte) {
	n.Helper()
	if err := n.tryLoad(archive); err != nil {
		n.Fatal(err)
	}
}

func (n *node) tryLoad(archive []byte) error {
	_, err := n.agent.LoadImages(n.ctx(), bytes.NewReader(archive))
	return err
}

// ctx bounds one call.
func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	n.Cleanup(cancel)
	return ctx
}

// eventually waits for check to be content.
func (n *node) eventually(what string, check func() error) {
	n.Helper()
	deadline := time.After(bound)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			n.Fatalf("%s: not within %s: %v", what, bound, err)
		}
	}
}

// pod is a sandbox made through CRI, as a kubelet would.
type pod struct {
	*node
	id     string
	config *runtimeapi.PodSandboxConfig
	count  int
}

func (n *node) podConfig() *runtimeapi.PodSandboxConfig {
	name := fmt.Sprintf("pod%d", n.pods.Add(1))
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "hostile", Uid: name},
		LogDirectory: filepath.Join(n.service.State, "pod-logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.cgroup() + "/" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

// pod runs a sandbox.
func (n *node) pod(change ...func(*runtimeapi.PodSandboxConfig)) *pod {
	n.Helper()
	config := n.podConfig()
	for _, f := range change {
		f(config)
	}
	r, err := n.rt.RunPodSandbox(n.ctx(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		n.Fatal(err)
	}
	p := &pod{node: n, id: r.GetPodSandboxId(), config: config}
	return p
}

func (p *pod) remove() {
	p.Helper()
	if _, err := p.rt.StopPodSandbox(p.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.Error(err)
	}
	if _, err := p.rt.RemovePodSandbox(p.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.Error(err)
	}
}

// create makes a container with a name of its own.
func (p *pod) create(c *runtimeapi.ContainerConfig) (string, error) {
	p.count++
	name := fmt.Sprintf("c%d", p.count)
	c.Metadata = &runtimeapi.ContainerMetadata{Name: name}
	c.LogPath = name + ".log"
	if c.Linux == nil {
		c.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if c.Linux.SecurityContext == nil {
		c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}
	}
	r, err := p.rt.CreateContainer(p.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	return r.GetContainerId(), err
}

// try creates and starts a container.
func (p *pod) try(c *runtimeapi.ContainerConfig) (id string, err error) {
	if id, err = p.create(c); err == nil {
		_, err = p.rt.StartContainer(p.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	return id, err
}

// start is try for what must succeed.
func (p *pod) start(c *runtimeapi.ContainerConfig) string {
	p.Helper()
	id, err := p.try(c)
	if err != nil {
		p.Fatal(err)
	}
	return id
}

// sh is a container that runs a script in busybox.
func sh(script string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Image: spec(busybox), Command: []string{"sh", "-c", script}}
}

// run runs a container to its end and returns what it printed.
func (p *pod) run(c *runtimeapi.ContainerConfig) (output string, code int32) {
	p.Helper()
	id := p.start(c)
	code = p.exited(id).GetExitCode()
	return p.log(c), code
}

func (p *pod) status(id string) *runtimeapi.ContainerStatus {
	p.Helper()
	r, err := p.rt.ContainerStatus(p.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		p.Fatal(err)
	}
	return r.GetStatus()
}

// exited waits for a container's end.
func (p *pod) exited(id string) (status *runtimeapi.ContainerStatus) {
	p.Helper()
	p.eventually("the container has ended", func() error {
		if status = p.status(id); status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			return errors.New(status.GetState().String())
		}
		return nil
	})
	return status
}

// log returns what a container printed, without what the log's format adds.
func (p *pod) log(c *runtimeapi.ContainerConfig) string {
	p.Helper()
	data, err := os.ReadFile(filepath.Join(p.config.LogDirectory, c.LogPath))
	if err != nil {
		p.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			out.WriteString(f[3])
		}
	}
	return out.String()
}

func (p *pod) exec(id string, cmd ...string) (*runtimeapi.ExecSyncResponse, error) {
	return p.rt.ExecSync(p.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64(bound.Seconds())})
}

// wantError demands an error that names its cause, once and in bearable length.
func wantError(t testing.TB, what string, err error, causes ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s succeeded", what)
		return
	}
	for _, cause := range causes {
		if !strings.Contains(err.Error(), cause) {
			t.Errorf("%s: the error does not name %q: %.1000v", what, cause, err)
		}
	}
	if len(err.Error()) > 5000 {
		t.Errorf("%s: the error has %d bytes: %.300v…", what, len(err.Error()), err)
	}
}
