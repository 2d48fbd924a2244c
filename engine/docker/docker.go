// Package docker implements cri.Runtime on a Docker Engine, through its API on
// a unix socket: what dockershim and cri-dockerd were. It is called by
// cri/server, in a process of its own that may be killed at any moment.
//
//	pod sandbox   a container k8s_POD_… that runs our pause program
//	container     a container k8s_NAME_… that joins its namespaces
//
// What is known of both is in labels, under the keys that dockershim used where
// it had one, so that `docker ps --filter label=io.kubernetes.pod.name=…` works.
// Who starts therefore begins by listing. The Docker Engine may be away then, and
// go and come back at any time (presence.go). Labels cannot change, so what does
// is in Config.StateDir:
//
//	sandboxes/ID    addresses that Docker did not give
//	containers/ID   resources as they were updated, how far the log is copied
//	mounts/KEY/N    what is mounted for a container and Docker has no words for
//	events          up to when events have been told
//
// Docker writes logs in a format of its own; while this package runs it copies
// them, as they grow, to where and how the CRI wants them (log.go).
//
// The Docker Engine must be on this machine, for its processes' namespaces and
// cgroups and its log files are used directly. What Docker cannot do is refused
// by name (check.go); docs/docker.md lists it.
package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"podstead/cgroup"
	"podstead/cri"
	"podstead/engine/internal/cdi"
	"podstead/engine/internal/disk"
	"podstead/engine/internal/event"
	"podstead/engine/internal/metric"
	"podstead/engine/internal/stream"
	"podstead/network"
)

// Config of a Runtime.
type Config struct {
	// Endpoint of the Docker Engine, "unix:///var/run/docker.sock" if empty.
	Endpoint string
	StateDir string // survives a reboot, as Docker's containers do
	// CDIDirs have the files that describe devices, for a Docker Engine that does
	// not read them itself.
	CDIDirs []string
	// Connect says who connects pods; ConnectAuto if empty. Network is ours, with
	// its plugins; it may be nil where there is no need for it.
	Connect Connect
	Network *network.Network
	Cgroups *cgroup.Hierarchy
	// StreamAddress is where exec, attach and port-forward URLs lead,
	// "127.0.0.1:0" if empty.
	StreamAddress string
	// PullTimeout ends a pull that makes no progress; 5 minutes if zero.
	PullTimeout time.Duration
	Log         *slog.Logger
}

const (
	defaultEndpoint    = "unix:///var/run/docker.sock"
	defaultPullTimeout = 5 * time.Minute
)

// Runtime implements cri.Runtime. It may be shared.
type Runtime struct {
	cfg Config
	log *slog.Logger

	presence       presence
	sandboxState   *states[sandboxState]
	containerState *states[containerState]
	flights        flights
	accounts       accountCache
	imageUsers     imageUsers
	disk           diskUsage
	gauges         gauges
	surveyor       *disk.Surveyor
	cdi            *cdi.Registry
	metrics        *metric.Set
	stops          stops
	starts         starts
	onceScore      sync.Once
	logs           *logs
	events         *event.Hub
	eventMark      *event.Mark
	streams        *stream.Server

	// life ends with Close; work that outlives its caller runs under it.
	life   context.Context
	end    context.CancelFunc
	worker sync.WaitGroup
}

var _ cri.Runtime = (*Runtime)(nil)

// New connects to the Docker Engine and goes on copying the logs of its
// containers. One that does not answer is waited for meanwhile, and Status tells
// why; one that can never be used is an error.
func New(ctx context.Context, cfg Config) (*Runtime, error) {
	if cfg.Endpoint == "" {
		cfg.Endpoint = defaultEndpoint
	}
	if cfg.StreamAddress == "" {
		cfg.StreamAddress = "127.0.0.1:0"
	}
	if cfg.PullTimeout == 0 {
		cfg.PullTimeout = defaultPullTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Connect == "" {
		cfg.Connect = ConnectAuto
	}
	if err := cfg.Connect.valid(cfg.Network); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(cfg.Endpoint, "unix://") {
		return nil, fmt.Errorf("docker endpoint %q: only unix:// is possible, since the engine must be on this machine", cfg.Endpoint)
	}
	r := &Runtime{cfg: cfg, log: cfg.Log, cdi: cdi.New(cfg.CDIDirs)}
	r.life, r.end = context.WithCancel(context.WithoutCancel(ctx))
	r.surveyor, r.metrics = disk.NewSurveyor(r.life, r.worker.Go, r.log, nil), metric.NewSet()
	if err := r.open(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Runtime) open(ctx context.Context) (err error) {
	if r.presence.api, err = r.newClient(); err != nil {
		return err
	}
	if r.sandboxState, err = openStates[sandboxState](filepath.Join(r.cfg.StateDir, "sandboxes"), "sandbox", r.unreadable); err != nil {
		return err
	}
	if r.containerState, err = openStates[containerState](filepath.Join(r.cfg.StateDir, "containers"), "container", r.unreadable); err != nil {
		return err
	}
	if r.logs, err = newLogs(r.containerState.dir.Path, r.log); err != nil {
		return err
	}
	if r.eventMark, err = event.OpenMark(filepath.Join(r.cfg.StateDir, "events")); err != nil {
		return err
	}
	r.events = event.NewHub(r.eventMark)
	met := r.meet(ctx)
	if errors.As(met, new(unfitError)) {
		return met
	}
	if r.streams, err = r.serveStreams(); err != nil {
		return err
	}
	r.worker.Go(func() { r.attend(met == nil) })
	return nil
}

// Close ends streams and the copying of logs; containers go on, and Docker
// keeps what they write until the next start.
func (r *Runtime) Close() error {
	r.end()
	var errs []error
	if r.events != nil {
		r.events.Close()
	}
	if r.streams != nil {
		errs = append(errs, r.streams.Close())
	}
	r.worker.Wait()
	if r.logs != nil {
		errs = append(errs, r.logs.close())
	}
	errs = append(errs, r.eventMark.Close())
	if api := r.api(); api != nil {
		errs = append(errs, api.Close())
	}
	return errors.Join(errs...)
}

// hasSecurity tells whether the Docker Engine has a security module.
func (r *Runtime) hasSecurity(module string) bool {
	return slices.ContainsFunc(r.info().SecurityOptions, func(o string) bool {
		return o == "name="+module || strings.HasPrefix(o, "name="+module+",")
	})
}

// systemdCgroups tells whether the Docker Engine lets systemd make cgroups.
func (r *Runtime) systemdCgroups() bool { return r.info().CgroupDriver == "systemd" }
