package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/eviction"
	"podstead/agent/internal/pressure"
	"podstead/agent/internal/request"
	"podstead/sys/quota"
)

// openProjects has emptyDirs of pods with a user namespace counted by the file
// system, if it counts projects: their users cannot take files out of them, as
// those of other pods can (KEP-1029). It is open as long as the process runs.
func (n *node) openProjects() {
	err := os.MkdirAll(n.podsDir, 0o750)
	if err == nil {
		n.projects, err = quota.Open(n.podsDir)
	}
	if err != nil {
		level := slog.LevelWarn
		if errors.Is(err, errors.ErrUnsupported) {
			level = slog.LevelDebug // as nearly everywhere
		}
		n.log.Log(context.Background(), level, "emptyDirs are measured by walking them", "reason", err)
	}
}

// projectsFor gives emptyDirs of a pod to projects; nil: of this pod's, none.
func (n *node) projectsFor(pod *corev1.Pod) *quota.Pool {
	if request.HostUsers(pod) {
		return nil
	}
	return n.projects
}

// measureVolume tells what is in an emptyDir of the pod: what the kernel counts,
// or what a walk finds.
func (n *node) measureVolume(ctx context.Context, pod *corev1.Pod, dir string) (eviction.Disk, error) {
	if p := n.projectsFor(pod); p != nil {
		if u, ok := p.Measure(dir); ok {
			return eviction.Disk{Bytes: int64(u.Bytes), Inodes: int64(u.Inodes)}, nil
		}
	}
	return pressure.Measure(ctx, dir)
}
