// Package agent is the node agent: it makes the pods of its sources real
// through cri.Runtime and reports how they are. One select loop, one worker per
// pod; decisions are pure (internal/plan, internal/status) and acted on
// elsewhere. It never knows which runtime is behind the seam.
//
// Its clients talk to it by package agent/client.
package agent

import (
	"context"
	"io"
	"log/slog"
	"net"

	"podstead/agent/client"
	"podstead/cgroup"
	"podstead/cri"
)

// Config of an Agent.
type Config struct {
	Runtime     cri.Runtime
	ManifestDir string // watched; "" for none
	StateDir    string // pod volumes, checkpointed status, applied manifests
	RunDir      string
	PodLogsDir  string // "" for /var/log/pods
	NodeName    string // "" for the host's name
	Version     string // of the program, for the API
	// Cgroups is where the kubepods tree is made, below CgroupRoot; nil: pods
	// get no cgroups of their own from the agent.
	Cgroups    *cgroup.Hierarchy
	CgroupRoot string
	// Images is what the runtime can do with images beyond CRI; nil: nothing.
	Images ImageExtras
	// Listener serves the agent's API (unix socket, mode 0600); nil for none.
	// Run closes it.
	Listener net.Listener
	Log      *slog.Logger
}

// ImageExtras is what a runtime at home offers beyond CRI's image service.
type ImageExtras interface {
	// Load imports OCI and docker archives and returns the images' names.
	Load(ctx context.Context, r io.Reader) (names []string, err error)
	// Save writes images as one OCI archive.
	Save(ctx context.Context, w io.Writer, names []string) error
	// Pulls tells how far the pulls under way are.
	Pulls() []client.PullProgress
}

// Agent runs the pods of one node.
type Agent struct{}

// New prepares an agent; Run does the work.
func New(cfg Config) (*Agent, error) { panic("not yet") }

// Run reconciles until ctx ends. Pods go on running then.
func (a *Agent) Run(ctx context.Context) error { panic("not yet") }
