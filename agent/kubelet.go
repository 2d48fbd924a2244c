package agent

import (
	"context"
	"io"
	"net"
	"path"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/fsusage"
	"podstead/agent/internal/hostpath"
	"podstead/agent/internal/kubeletapi"
	"podstead/agent/internal/metric"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/stats"
	"podstead/agent/internal/volume"
)

// KubeletAPI is how the kubelet's HTTP API is served.
type KubeletAPI = kubeletapi.Settings

// newMetrics makes the agent's metrics, if somebody could ask for them.
func (a *Agent) newMetrics() *metric.Metrics {
	if a.cfg.Kubelet == nil {
		return nil
	}
	version := 1
	if a.cfg.Cgroups != nil && a.cfg.Cgroups.Unified() {
		version = 2
	}
	return metric.New(a.cfg.NodeName, a.cfg.Version, version, a.board.list)
}

// newKubelet makes the server of the kubelet's API.
func (a *Agent) newKubelet() (*kubeletapi.Server, error) {
	if a.cfg.Kubelet == nil {
		return nil, nil
	}
	n := a.node
	mine := map[string]string{observe.LabelAgent: n.request.AgentID}
	s, err := kubeletapi.New(kubeletapi.Config{
		Settings: *a.cfg.Kubelet, NodeName: a.cfg.NodeName, Version: a.cfg.Version, Began: a.began, Addrs: n.hostIPs,
		Dir: filepath.Join(a.cfg.StateDir, "pki"), LogDir: "/var/log", Checkpoints: filepath.Join(a.cfg.StateDir, "checkpoints"),
		API: a.handler(), Healthy: backend{a}.Healthy, Pods: a.board.list,
		Runtime: a.cfg.Runtime, Labels: mine, Stats: a.figures, Metrics: n.metrics, Log: a.cfg.Log,
	})
	if err != nil && a.cfg.Kubelet.Lenient {
		a.cfg.Log.Error("the kubelet's API is not served", "error", err)
		return nil, nil
	}
	return s, err
}

// newFigures tells what the node and its pods use.
func (a *Agent) newFigures() *stats.Source {
	n := a.node
	mine := map[string]string{observe.LabelAgent: n.request.AgentID}
	figures := &stats.Source{
		Runtime: a.cfg.Runtime, Node: a.cfg.NodeName, Labels: mine, Pods: a.board.list, NodeFs: n.podsDir,
		Logs: func(pod *corev1.Pod, container string) string {
			return path.Join(n.request.LogDirectory(pod), container)
		},
		Volumes: a.places, Measure: n.measureVolume, Ask: n.askVolume, Every: a.cfg.Policy.VolumeStatsPeriod, Log: a.cfg.Log,
	}
	if n.cgroups.hierarchy != nil {
		figures.PodsCgroup = n.cgroups.hierarchy.Group(n.cgroups.path())
		if name := a.cfg.Policy.OwnCgroup; name != "" {
			figures.OwnCgroup = n.cgroups.hierarchy.Group(name)
		}
		if name := a.cfg.Policy.SystemCgroup; name != "" {
			figures.SystemCgroup = n.cgroups.hierarchy.Group(name)
		}
	}
	return figures
}

// loopSoon is how long figures wait for the loop.
const loopSoon = time.Second

// places tells where volumes of pods can be measured. Where the storage of claims
// is, the loop knows.
func (a *Agent) places(ctx context.Context, pods []*corev1.Pod) map[string]map[string]volume.Place {
	out := map[string]map[string]volume.Place{}
	var objs objects
	ctx, cancel := context.WithTimeout(ctx, loopSoon) // figures are told without claims, too
	defer cancel()
	if err := a.do(ctx, func(context.Context) { objs = a.wanted }); err != nil {
		return out
	}
	for _, pod := range pods {
		out[string(pod.UID)] = job{node: a.node, pod: pod, objs: objs}.volumes().Places()
	}
	return out
}

// askVolume tells how full a volume is.
func (n *node) askVolume(ctx context.Context, at volume.Place) (fsusage.Usage, error) {
	if at.CSI {
		return n.csi.Stats(ctx, at.Path)
	}
	return n.asker.Ask(ctx, at.Path)
}

// CheckHostPath writes what is wrong with a path of the host that is to be of a
// type, for the agent that has asked for it (Config.HostPathCheck).
func CheckHostPath(w io.Writer, path, kind string) error {
	return hostpath.Answer(w, path, corev1.HostPathType(kind))
}

// FileSystemUsage writes how full the file system at a path is, for the agent
// that has asked for it (Config.FileSystemUsage).
func FileSystemUsage(w io.Writer, path string) error { return fsusage.Answer(w, path) }

// KubeletAddr is where the kubelet's API of a field of its configuration ("port",
// "readOnlyPort", "healthzPort") is served, nil if it is not yet.
func (a *Agent) KubeletAddr(field string) net.Addr {
	if a.kubelet == nil {
		return nil
	}
	return a.kubelet.Addr(field)
}
