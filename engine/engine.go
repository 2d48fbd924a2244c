// Package engine is the container runtime: it implements cri.Runtime on the
// project's own supervisor, image store, network and launch program, one file
// per CRI verb. It is restartable at any moment: its truth is the kernel and
// the supervisor first, its records second.
package engine

import (
	"context"
	"log/slog"

	"podstead/cgroup"
	"podstead/image"
	"podstead/network"
	"podstead/supervisor"
)

// Config of an Engine: its parts, made by cmd/podstead, and its directories.
type Config struct {
	StateDir   string // survives a reboot: records of pods, writable layers
	RunDir     string // tmpfs: namespaces, bundles
	Images     *image.Store
	Network    *network.Network
	Cgroups    *cgroup.Hierarchy
	Supervisor *supervisor.Client
	// StreamAddress is where exec, attach and port-forward URLs lead,
	// "127.0.0.1:0" if empty.
	StreamAddress string
	// LogMaxBytes and LogMaxFiles bound container logs.
	LogMaxBytes int64
	LogMaxFiles int
	Log         *slog.Logger
}

// Engine implements cri.Runtime.
type Engine struct{}

// New loads the records, reconciles them with the kernel and is ready to serve.
func New(ctx context.Context, cfg Config) (*Engine, error) { panic("not yet") }

// Close stops serving streams and following events; containers go on.
func (e *Engine) Close() error { panic("not yet") }
