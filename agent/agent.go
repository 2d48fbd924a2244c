// Package agent is the node agent: it makes the pods of its sources real
// through cri.Runtime and reports how they are. One select loop, one worker per
// pod; decisions are pure (internal/plan, internal/status) and acted on
// elsewhere. It never knows which runtime is behind the seam.
package agent

import (
	"context"
	"log/slog"
	"net"

	"podstead/cgroup"
	"podstead/cri"
)

// Config of an Agent.
type Config struct {
	Runtime     cri.Runtime
	ManifestDir string // watched; "" for none
	StateDir    string // pod volumes, checkpointed status, applied manifests
	RunDir      string
	PodLogsDir  string // /var/log/pods
	NodeName    string
	// Cgroups is where the kubepods tree is made, below CgroupRoot.
	Cgroups    *cgroup.Hierarchy
	CgroupRoot string
	// Listener serves the agent's API (unix socket, mode 0600); nil for none.
	Listener net.Listener
	Log      *slog.Logger
}

// Agent runs the pods of one node.
type Agent struct{}

// New prepares an agent; Run does the work.
func New(cfg Config) (*Agent, error) { panic("not yet") }

// Run reconciles until ctx ends. Pods go on running then.
func (a *Agent) Run(ctx context.Context) error { panic("not yet") }
