// Package conformance tests what a kubelet and its users notice of a
// cri.Runtime: lifecycles, error codes, repeated and concurrent calls, filters,
// exec, logs, stopping, exit codes, streams, limits, stats and events. It is run
// on every implementation of the interface, and on containerd, to check the
// suite itself.
//
// A test states what the CRI asks for (its .proto comments, critest, what the
// kubelet relies on), never what one runtime happens to do. Where a target is
// known to deviate it says so in Target.Known, with the reason.
//
// Everything that the suite makes it removes; the last test looks for leftovers.
package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// Target is a runtime and what the suite must know about its surroundings.
type Target struct {
	Runtime cri.Runtime
	// Image names a local image of busybox: the shell and the usual commands in
	// /bin, root (0) and user (1000, also in group extra, 2000) in /etc/passwd
	// and /etc/group, FROM_IMAGE=yes in its environment, and no entry point but
	// the command "sh".
	Image string
	// PullImage names an image that the runtime can pull and that nothing uses;
	// "" skips the tests that pull.
	PullImage string
	// Handler names a handler beside the default one; "" skips what needs it.
	Handler string
	// Private is an image that can be pulled with credentials alone.
	Private Private
	// CgroupParent is below which the suite's pods get their cgroups.
	CgroupParent string
	// Proves says that the target has this version of the API: a test that names
	// a field as shown fails unless the field was sent to the target, or came
	// from it.
	Proves bool
	// Bulk is how many times 10 MiB are much and 20 streams are many; 0 is 1.
	Bulk int
	// CDIDir is one of the runtime's directories of CDI files, which the suite
	// may write to; "" skips the tests that do.
	CDIDir string
	// LateLog: an exit may be reported before the last output is in the log, as
	// containerd does, which copies it from one goroutine to another.
	LateLog bool
	// StopsTwice: the stop of a sandbox may have to be asked for again, as a kubelet
	// does, when a process ends at the same moment: "ttrpc: closed" of containerd 1.6.
	StopsTwice bool
	// Known maps names of tests ("exec/inherited output") to why the target is
	// known to fail them. They are skipped.
	Known map[string]string
	// Groups are those of the suite that are run, besides the last; none: all.
	Groups []string
}

// Private is an image that its registry gives to one user only. The zero value
// skips the tests that need one.
type Private struct{ Image, Username, Password string }

// patience bounds every wait for something that should come soon. It is long
// because the machine may be busy, and costs nothing when all is well.
const patience = 5 * time.Minute

// suite is one run of the tests on a target.
type suite struct {
	Target
	run     string // tells this run's objects from those of others
	n       atomic.Int64
	traffic *traffic // of the test under way
	// canCheckpoint is the target's side of checkpoints, nil if it has none.
	canCheckpoint cri.Checkpoints
}

// runLabel is on everything that the suite makes.
const runLabel = "podstead.test/run"

// test is one named test.
type test struct {
	name string
	// shows lists the rows of docs/cri.md that it is evidence for: verbs, and
	// fields as in "Mount.{image,readonly} PodIP.*". May be empty.
	shows string
	run   func(*testing.T, *suite)
}

// groups are all tests, in the order in which they run.
func groups() []group {
	return []group{
		{"runtime", runtimeTests},
		{"sandbox", sandboxTests},
		{"network", networkTests},
		{"container", containerTests},
		{"process", processTests},
		{"security", securityTests},
		{"mount", mountTests},
		{"userns", userNamespaceTests},
		{"stop", stopTests},
		{"exec", execTests},
		{"stream", streamTests},
		{"bulk", bulkTests},
		{"log", logTests},
		{"cdi", cdiTests},
		{"checkpoint", checkpointTests},
		{"resources", resourceTests},
		{"stats", statsTests},
		{"figures", figureTests},
		{"metrics", metricTests},
		{"events", eventTests},
		{"image", imageTests},
		{"contract", contractTests},
		{"concurrent", concurrentTests},
		{"end", endTests},
	}
}

type group struct {
	name  string
	tests []test
}

// Run runs the suite.
func Run(t *testing.T, target Target) {
	s := &suite{Target: target, run: fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano()), traffic: &traffic{}}
	if k, ok := target.Runtime.(cri.Checkpoints); ok {
		s.canCheckpoint = checkpointRecorder{k, s.traffic}
	}
	s.Runtime = recorder{target.Runtime, s.traffic}
	used := map[string]bool{}
	for _, group := range groups() {
		if len(s.Groups) > 0 && group.name != "end" && !slices.Contains(s.Groups, group.name) {
			continue
		}
		for _, test := range group.tests {
			name := group.name + "/" + test.name
			t.Run(name, func(t *testing.T) {
				if why := s.Known[name]; why != "" {
					used[name] = true
					t.Skip("known: " + why)
				}
				s.traffic.reset()
				test.run(t, s)
				if s.Proves {
					s.prove(t, test.shows)
				}
			})
		}
	}
	if testing.Short() || t.Skipped() {
		return
	}
	for name := range s.Known {
		if !used[name] && !filtered() && len(s.Groups) == 0 {
			t.Errorf("Known names %q, which is not a test", name)
		}
	}
}

// prove fails a test that says to show rows and did not touch them. Rows that
// need something that not every host has are taken on trust.
func (s *suite) prove(t *testing.T, shows string) {
	t.Helper()
	list, err := rows(shows)
	if err != nil {
		t.Fatal(err)
	}
	says, _, err := readSupport()
	if err != nil {
		t.Fatal(err)
	}
	list = slices.DeleteFunc(list, func(row string) bool { return strings.HasPrefix(says[row], "needs") })
	if missing := s.traffic.missing(list); len(missing) > 0 {
		t.Errorf("it says that it shows rows which were neither sent nor received: %s", strings.Join(missing, " "))
	}
}

// filtered tells whether only some tests were asked for.
func filtered() bool {
	for _, arg := range os.Args {
		if strings.HasPrefix(arg, "-test.run") || strings.HasPrefix(arg, "-test.skip") {
			return true
		}
	}
	return false
}

// pod is a sandbox that a test made.
type pod struct {
	*suite
	id     string
	config *runtimeapi.PodSandboxConfig
}

// podConfig makes a configuration like the kubelet's, for a new pod.
func (s *suite) podConfig(t *testing.T) *runtimeapi.PodSandboxConfig {
	t.Helper()
	uid := fmt.Sprintf("%s-%d", s.run, s.n.Add(1))
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod-" + uid, Namespace: "conformance", Uid: uid},
		Hostname:     "conformance-host",
		LogDirectory: t.TempDir(),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"test.local"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{runLabel: s.run, "uid": uid},
		Annotations:  map[string]string{"podstead.test/note": "kept as it is: \"x\"\n"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: s.CgroupParent + "/pod" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

// pod runs a sandbox until the test ends. change may alter its configuration.
func (s *suite) pod(t *testing.T, change ...func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	config := s.podConfig(t)
	for _, f := range change {
		f(config)
	}
	return s.podOf(t, config)
}

func (s *suite) podOf(t *testing.T, config *runtimeapi.PodSandboxConfig) *pod {
	t.Helper()
	r, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run sandbox: %v", err)
	}
	p := &pod{suite: s, id: r.GetPodSandboxId(), config: config}
	t.Cleanup(func() { s.removePod(t, p.id) })
	return p
}

// removePod stops and removes a sandbox, also after the test's context ended.
func (s *suite) removePod(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stop := &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}
	_, err := s.Runtime.StopPodSandbox(ctx, stop)
	if err != nil && s.StopsTwice {
		_, err = s.Runtime.StopPodSandbox(ctx, stop)
	}
	// One that is gone need not be stopped; "sandbox/unknown id" is about that.
	if err != nil && !cri.IsNotFound(err) {
		t.Errorf("stop sandbox: %v", err)
	}
	if _, err := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Errorf("remove sandbox: %v", err)
	}
}

// container is a container that a test made. It goes with its pod.
type container struct {
	*pod
	id      string
	logFile string
}

// script makes the configuration of a container that runs a shell script.
func (p *pod) script(name, script string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: name},
		Image:       &runtimeapi.ImageSpec{Image: p.Image, UserSpecifiedImage: p.Image},
		Command:     []string{"sh", "-c", script},
		Labels:      map[string]string{runLabel: p.run, "container": name},
		Annotations: map[string]string{"podstead.test/note": "kept, too"},
		LogPath:     name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			},
		},
	}
}

// create makes a container and does not start it.
func (p *pod) create(t *testing.T, config *runtimeapi.ContainerConfig) *container {
	t.Helper()
	r, err := p.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.id, Config: config, SandboxConfig: p.config,
	})
	if err != nil {
		t.Fatalf("create container %s: %v", config.GetMetadata().GetName(), err)
	}
	return &container{pod: p, id: r.GetContainerId(), logFile: filepath.Join(p.config.GetLogDirectory(), config.GetLogPath())}
}

// start creates and starts a container.
func (p *pod) start(t *testing.T, config *runtimeapi.ContainerConfig) *container {
	t.Helper()
	c := p.create(t, config)
	c.start(t)
	return c
}

// sh starts a container with a script, and change applied to its configuration.
func (p *pod) sh(t *testing.T, script string, change ...func(*runtimeapi.ContainerConfig)) *container {
	t.Helper()
	config := p.script(fmt.Sprintf("c%d", p.n.Add(1)), script)
	for _, f := range change {
		f(config)
	}
	return p.start(t, config)
}

func (c *container) start(t *testing.T) {
	t.Helper()
	if _, err := c.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatalf("start container: %v", err)
	}
}

// status asks for a container's status, which must be complete.
func (c *container) status(t *testing.T) *runtimeapi.ContainerStatus {
	t.Helper()
	r, err := c.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("container status: %v", err)
	}
	return r.GetStatus()
}

// await waits until a container is in a state.
func (c *container) await(t *testing.T, state runtimeapi.ContainerState) *runtimeapi.ContainerStatus {
	t.Helper()
	var status *runtimeapi.ContainerStatus
	eventually(t, "container is "+state.String(), func() bool {
		status = c.status(t)
		return status.GetState() == state
	})
	return status
}

// exited waits until a container has ended.
func (c *container) exited(t *testing.T) *runtimeapi.ContainerStatus {
	t.Helper()
	return c.await(t, runtimeapi.ContainerState_CONTAINER_EXITED)
}

// output waits until a container has ended with code 0, and returns its log
// without what the log format adds.
func (c *container) output(t *testing.T) string {
	t.Helper()
	if status := c.exited(t); status.GetExitCode() != 0 {
		t.Fatalf("container exited with %d (%s: %s); its log:\n%s", status.GetExitCode(), status.GetReason(), status.GetMessage(), c.log(t))
	}
	out := c.log(t)
	for n := 0; c.LateLog && n < 40; n++ { // two seconds, for one that says nothing
		time.Sleep(50 * time.Millisecond)
		before := out
		if out = c.log(t); out != "" && out == before {
			break
		}
	}
	return out
}

// exec runs a command in the container, which must succeed, and returns its
// standard output without the last newline.
func (c *container) exec(t *testing.T, cmd ...string) string {
	t.Helper()
	r, err := c.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: cmd, Timeout: int64(patience.Seconds())})
	if err != nil {
		t.Fatalf("exec %q: %v", cmd, err)
	}
	if r.GetExitCode() != 0 {
		t.Fatalf("exec %q exited with %d: %s%s", cmd, r.GetExitCode(), r.GetStdout(), r.GetStderr())
	}
	return strings.TrimSuffix(string(r.GetStdout()), "\n")
}

// eventually waits until f holds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// wantCode fails the test unless err has one of the codes.
func wantCode(t *testing.T, what string, err error, want ...codes.Code) {
	t.Helper()
	for _, code := range want {
		if cri.Code(err) == code {
			return
		}
	}
	t.Errorf("%s: error is %v (%v), want %v", what, err, cri.Code(err), want)
}

// wantError fails the test if there is no error. Where the CRI names no code
// there is none to insist on.
func wantError(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s succeeded, want an error", what)
	}
}
