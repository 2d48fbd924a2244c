// Package engine is the container runtime: it implements cri.Runtime on the
// project's own supervisor, image store, network and launch program, one file
// per CRI verb. It is called in process by the node agent or through cri/server.
//
//	sandbox     creating ──▶ ready ──▶ stopped ──▶ (removed)
//	                └───────────────────▲            failed or crashed half-way
//
//	container   creating ──▶ created ──▶ running ──▶ exited ──▶ (removed)
//	                └──────────┴───────────────────────▲
//
// The engine may be killed at any moment. Its truth is the kernel and the
// supervisor first, its records second: an intent is recorded before the kernel
// is changed, and one way of taking an object apart, which asks for nothing to
// be there, serves a failed creation, a stop, a removal and the next start
// alike (releaseSandbox, releaseContainer).
//
// What lives where:
//
//	StateDir/sandboxes/ID    record, resolv.conf, hosts, hostname   survives a reboot
//	StateDir/containers/ID   record, specification, upper, work     survives a reboot
//	RunDir/sandboxes/ID      namespaces (net, ipc, uts), shm        ends with the pod
//	supervisor               processes, exit codes, logs, stdio     survives the engine
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"podstead/cgroup"
	"podstead/cri"
	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/engine/internal/cdi"
	"podstead/engine/internal/disk"
	"podstead/engine/internal/event"
	"podstead/engine/internal/metric"
	"podstead/engine/internal/nri"
	"podstead/engine/internal/store"
	"podstead/engine/internal/stream"
	"podstead/image"
	"podstead/network"
	"podstead/oci/launch"
	"podstead/supervisor"
	"podstead/sys/quota"
)

// Config of an Engine: its parts, made by cmd/podstead, and its directories.
type Config struct {
	StateDir   string // survives a reboot: records of pods, writable layers
	RunDir     string // tmpfs: namespaces, shared memory
	Images     *image.Store
	ImageDir   string // image.Config.Dir, for ImageFsInfo
	Network    *network.Network
	Cgroups    *cgroup.Hierarchy
	Supervisor *supervisor.Client
	// CgroupParent holds the pods whose request names no cgroup_parent, one
	// group each; "/podstead" if empty.
	CgroupParent string
	// Settings are the configuration file; zero: config.Default. What of it
	// concerns other boxes has been given to them. See Reload.
	Settings config.Config
	// Program is the file of podstead's own program, which stands for containers
	// of shims; what runs now if empty.
	Program string
	Version string // of the program, for the verb Version
	Log     *slog.Logger
}

// Engine implements cri.Runtime. It may be shared; what persists is in the
// directories above.
type Engine struct {
	cfg      Config
	log      *slog.Logger
	recent   recent // of log
	started  time.Time
	host     host
	bootID   string
	devices  *cdi.Registry
	plugins  *nri.Plugins
	settings atomic.Pointer[settings] // replaced as a whole by Reload
	note     atomic.Pointer[ConfigNote]
	builtin  *handler.Builtin
	seed     *os.File // mount namespace that containers start from, see launch.NewSeed

	sandboxRecords   *store.Dir[sandboxRecord]
	containerRecords *store.Dir[containerRecord]
	podCgroups       turns
	labelling        sync.Mutex // while a pod chooses its SELinux level
	sandboxRuns      runs       // RunPodSandbox by pod identity and attempt
	containerRuns    runs       // CreateContainer by sandbox, name and attempt
	accounts         accountCache
	profiles         profileCache
	exits            exits
	events           *event.Hub
	eventMark        *event.Mark
	metrics          *metric.Set
	projects         *quota.Pool // of writable layers; nil: they have none
	surveyor         *disk.Surveyor
	streams          *stream.Server
	supervisorGone   atomic.Bool // since its events ended, until they come again

	// life ends with Close; work that outlives its caller runs under it.
	life   context.Context
	end    context.CancelFunc
	worker sync.WaitGroup

	mu         sync.Mutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
	retired    []namedHandler // of the records, not of the configuration
}

var _ cri.Runtime = (*Engine)(nil)

// New loads the records, reconciles them with the kernel and is ready to serve.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/podstead"
	}
	if reflect.ValueOf(cfg.Settings).IsZero() {
		cfg.Settings = config.Default()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		cfg: cfg, started: time.Now(), devices: cdi.New(cfg.Settings.CDI.Dirs),
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{},
	}
	e.log = slog.New(e.recent.watch(cfg.Log.Handler()))
	e.plugins = e.newPlugins()
	e.life, e.end = context.WithCancel(context.WithoutCancel(ctx))
	e.metrics = metric.NewSet()
	if err := e.open(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *Engine) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(filepath.Join(e.cfg.RunDir, "sandboxes"), 0o700); err != nil {
		return err
	}
	if e.sandboxRecords, err = store.Open[sandboxRecord](filepath.Join(e.cfg.StateDir, "sandboxes"), "sandbox"); err != nil {
		return err
	}
	if e.containerRecords, err = store.Open[containerRecord](filepath.Join(e.cfg.StateDir, "containers"), "container"); err != nil {
		return err
	}
	e.openProjects()
	if e.host, err = probeHost(e.cfg.Cgroups); err != nil {
		return err
	}
	if e.bootID, err = readBootID(); err != nil {
		return err
	}
	if e.seed, err = launch.NewSeed(); err != nil {
		e.log.Warn("containers start from all of the host's mounts", "error", err)
	}
	e.builtin = &handler.Builtin{
		Supervisor: e.cfg.Supervisor,
		Seed:       e.seed,
		Supports: handler.Features{
			RecursiveReadOnlyMounts: e.host.spec.RecursiveReadOnly,
			UserNamespaces:          e.host.userNamespaces,
		},
	}
	if err := e.Reload(e.cfg.Settings); err != nil {
		return err
	}
	if err := e.openEvents(); err != nil {
		return err
	}
	if err := e.load(); err != nil {
		return fmt.Errorf("load records: %w", err)
	}
	e.tellUntold()
	// Exits are followed before the supervisor is asked what it knows, so that
	// none falls between.
	if err := e.followExits(ctx); err != nil {
		return err
	}
	if err := e.reconcile(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if e.streams, err = e.serveStreams(ctx); err != nil {
		return err
	}
	e.plugins.Open() // they are told of all that there is
	return nil
}

// Close stops serving streams and following events, and waits for work under
// way, which it cancels; containers go on.
func (e *Engine) Close() error {
	e.end()
	var err error
	if e.streams != nil {
		err = e.streams.Close()
	}
	if e.events != nil {
		e.events.Close()
	}
	e.plugins.Close()
	e.worker.Wait()
	if e.streams != nil { // else it never knew all of its pods
		err = errors.Join(err, e.tidyHandlers())
	}
	if e.eventMark != nil {
		err = errors.Join(err, e.eventMark.Close())
	}
	if e.seed != nil {
		err = errors.Join(err, e.seed.Close())
	}
	if e.projects != nil {
		err = errors.Join(err, e.projects.Close())
	}
	return err
}
