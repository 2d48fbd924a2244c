package agent

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/client"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/probe"
	"podstead/cri"
)

const (
	// maxMessage and maxLogMessage bound termination messages, maxLogLines what
	// of a log becomes one: the kubelet's numbers.
	maxMessage    = 4 << 10
	maxLogMessage = 2 << 10
	maxLogLines   = 80
)

// observe looks at all that the runtime has of the pod.
func (w *worker) observe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.node.limits.look)
	defer cancel()
	mine := map[string]string{observe.LabelPodUID: w.uid, observe.LabelAgent: w.node.request.AgentID}
	sandboxes, err := w.node.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: mine}})
	if err != nil {
		return err
	}
	containers, err := w.node.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{LabelSelector: mine}})
	if err != nil {
		return err
	}
	seen := observe.Pod{UID: w.uid, Namespace: w.pod.Namespace, Name: w.pod.Name}
	for _, s := range sandboxes.Items {
		sandbox, err := w.sandbox(ctx, s)
		if err != nil {
			return err
		}
		seen.Sandboxes = append(seen.Sandboxes, sandbox)
	}
	known := map[string]observe.Container{}
	for _, c := range containers.Containers {
		container, there, err := w.container(ctx, c)
		if err != nil {
			return err
		}
		if there {
			known[c.Id] = container
			seen.Containers = append(seen.Containers, container)
		}
	}
	w.remember(&seen, known)
	seen.Sort()
	w.seen, w.known = seen, known
	return nil
}

// sandbox adds the addresses, which only the status has and which stay.
func (w *worker) sandbox(ctx context.Context, s *runtimeapi.PodSandbox) (observe.Sandbox, error) {
	out := observe.FromSandbox(s)
	if ips, ok := w.ips[s.Id]; ok {
		out.IPs = ips
		return out, nil
	}
	if !out.Ready {
		return out, nil
	}
	st, err := w.node.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.Id})
	if cri.IsNotFound(err) {
		out.Ready = false
		return out, nil
	}
	if err != nil {
		return out, err
	}
	if net := st.GetStatus().GetNetwork(); net.GetIp() != "" {
		out.IPs = append(out.IPs, net.Ip)
		for _, ip := range net.AdditionalIps {
			out.IPs = append(out.IPs, ip.Ip)
		}
	}
	w.ips[s.Id] = out.IPs
	return out, nil
}

// container asks for a container's status only if its state is new.
func (w *worker) container(ctx context.Context, c *runtimeapi.Container) (out observe.Container, there bool, err error) {
	out = observe.FromContainer(c)
	old, known := w.known[c.Id]
	if known && !old.Remembered && old.State == out.State {
		return old, true, nil
	}
	resp, err := w.node.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
	if cri.IsNotFound(err) {
		return out, false, nil // removed meanwhile
	}
	if err != nil {
		return out, false, err
	}
	out.Complete(resp.GetStatus())
	if known && old.Resources != (observe.Resources{}) {
		out.Resources = old.Resources // it may have been resized since it was made
	}
	if out.Dead() {
		if out.Finished.IsZero() {
			out.Finished = time.Now()
		}
		if m := w.message(&out, resp.GetStatus().GetAnnotations()); m != "" {
			out.Message = m
		}
		if !known || !old.Dead() {
			w.node.metrics.Terminated(kindOf(w.pod, out.Name), out.ExitCode, out.Reason)
			w.flight.Add(client.FlightEntry{At: out.Finished, Kind: client.FlightNews, Container: out.Name,
				What: fmt.Sprintf("ended with %d (%s)", out.ExitCode, out.Reason)})
			w.node.log.Info("container ended", "pod", w.name(), "container", out.Name, "exit", out.ExitCode, "why", out.Reason)
		}
	}
	return out, true, nil
}

// remember adds the instances that the runtime has forgotten, e.g. by a reboot,
// so that counts and ends are not lost: of each container the newest, and below
// a newer one the last before it. Who was never started leaves nothing behind.
func (w *worker) remember(seen *observe.Pod, known map[string]observe.Container) {
	forgotten := slices.Collect(maps.Values(w.known))
	slices.SortFunc(forgotten, func(a, b observe.Container) int { return int(b.Restarts - a.Restarts) })
	seen.Sort()
	for _, old := range forgotten {
		if _, still := known[old.ID]; still || old.State == observe.Created {
			continue
		}
		latest := seen.Latest(old.Name)
		if latest != nil && old.Restarts <= latest.Restarts &&
			(latest.Remembered || old.Restarts == latest.Restarts || seen.Previous(old.Name) != nil) {
			continue
		}
		if !old.Dead() {
			old.State, old.ExitCode = observe.Unknown, 137
			old.Finished = time.Now()
		}
		old.Remembered = true
		known[old.ID] = old
		seen.Containers = append(seen.Containers, old)
		seen.Sort()
	}
}

// message reads what a container said about its end.
func (w *worker) message(c *observe.Container, annotations map[string]string) string {
	text := ""
	if path := annotations[observe.AnnotationMessageFile]; path != "" && within(w.node.podDir(w.uid), path) {
		text = readTail(path, maxMessage, false)
	}
	policy := annotations[observe.AnnotationMessagePolicy]
	if text != "" || policy != string(corev1.TerminationMessageFallbackToLogsOnError) || !c.Failed() || c.LogPath == "" {
		return text
	}
	var lines []string
	for line := range strings.Lines(readTail(c.LogPath, 2*maxLogMessage+maxLogLines*64, false)) {
		// "<time> stdout F text"
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			continue
		}
		if strings.HasPrefix(f[2], "P") { // of a line that goes on
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		lines = append(lines, f[3])
	}
	out := strings.Join(lines[max(0, len(lines)-maxLogLines):], "")
	return out[max(0, len(out)-maxLogMessage):]
}

func within(dir, path string) bool {
	return strings.HasPrefix(filepath.Clean(path), dir+string(filepath.Separator))
}

// readTail reads at most n bytes of a regular file, its head or its end; the
// file is the container's to write and may be anything.
func readTail(path string, n int64, head bool) string {
	f, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return ""
	}
	if !head && st.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return ""
		}
	}
	data, _ := io.ReadAll(io.LimitReader(f, n))
	return strings.ToValidUTF8(string(data), "\uFFFD")
}

// watch keeps probes on exactly the containers that run in the newest sandbox.
func (w *worker) watch(ctx context.Context) {
	run := map[string]bool{}
	for i := range w.seen.Containers {
		c := &w.seen.Containers[i]
		if c.State != observe.Running || c != w.seen.Latest(c.Name) {
			continue
		}
		run[c.ID] = true
		if w.hooking(c.Name) {
			continue
		}
		spec := w.spec(c.Name)
		if w.probes[c.ID] != nil || spec == nil {
			continue
		}
		var carry *probe.State
		if old, ok := w.carried[c.ID]; ok {
			carry = &probe.State{Started: old.Started, Ready: old.Ready}
		}
		w.probes[c.ID] = w.probe(ctx, spec, c, carry)
	}
	for id, p := range w.probes {
		if !run[id] {
			p.Stop()
			delete(w.probes, id)
		} else if w.ending != nil {
			p.Ending()
		}
	}
	if err := w.counts.Only(run); err != nil {
		w.node.log.Warn("what is over is still counted", "pod", w.name(), "error", err)
	}
	w.carried = nil
}

// hooking tells whether a container may be at its postStart hook.
func (w *worker) hooking(name string) bool {
	r := w.busy[name]
	return r != nil && r.step.Kind == plan.Start && plan.HasPostStart(r.job.spec)
}

func (w *worker) probe(ctx context.Context, spec *corev1.Container, c *observe.Container, carry *probe.State) *probe.Container {
	pod, id := w.pod, c.ID
	return probe.Watch(ctx, probe.Config{
		ID: c.ID, Spec: spec, StartedAt: c.Started, Carry: carry,
		Target:  w.target(spec, c.ID),
		Changed: w.poke,
		Counts:  w.counts.Of(id),
		Keep: func(kind string, count probe.Count) {
			if err := w.counts.Keep(id, kind, count); err != nil {
				w.node.log.Warn("a restart of the agent would begin to count anew", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			}
		},
		Failure: func(message string) {
			w.node.event(pod, spec.Name, corev1.EventTypeWarning, "Unhealthy", "%s", message)
		},
		Result: func(kind string, ok bool, err error, took time.Duration) {
			w.node.metrics.Probe(pod, spec.Name, kind, ok, err, took)
		},
	})
}

// reprobe lets edited probes begin, from the state that the old ones left.
func (w *worker) reprobe(next *corev1.Pod) {
	for id, p := range w.probes {
		c, ok := w.known[id]
		if !ok {
			continue
		}
		before, after := w.spec(c.Name), find(next, c.Name)
		if before == nil || after == nil || sameProbes(before, after) {
			continue
		}
		p.Stop()
		delete(w.probes, id)
		s := p.State()
		if w.carried == nil {
			w.carried = map[string]carriedProbe{}
		}
		w.carried[id] = carriedProbe{Started: s.Started, Ready: s.Ready}
	}
}

// target is where probes and hooks of a container go.
func (w *worker) target(spec *corev1.Container, id string) probe.Target {
	ip := ""
	if w.pod.Spec.HostNetwork {
		ip = w.node.hostIPs[0]
	} else if s := w.seen.Sandbox(); s != nil && len(s.IPs) > 0 {
		ip = s.IPs[0]
	}
	return probe.Target{Spec: spec, PodIP: ip, Exec: w.node.exec(id)}
}

// exec runs commands in a container.
func (n *node) exec(id string) func(context.Context, []string, time.Duration) ([]byte, int32, error) {
	return func(ctx context.Context, command []string, timeout time.Duration) ([]byte, int32, error) {
		seconds := int64((timeout + time.Second - 1) / time.Second)
		resp, err := n.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: seconds})
		if err != nil {
			return nil, 0, fmt.Errorf("exec in container: %w", err)
		}
		return append(resp.Stdout, resp.Stderr...), resp.ExitCode, nil
	}
}

func (w *worker) spec(name string) *corev1.Container { return find(w.pod, name) }

func find(pod *corev1.Pod, name string) *corev1.Container { return plan.Find(pod, name) }
