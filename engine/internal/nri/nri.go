// Package nri connects the engine with NRI plugins: programs beside the engine
// that are told of each pod and container, may adjust a container before it is
// made, and change the limits of those that there are. It stands between the
// engine and the adaptation package of github.com/containerd/nri, which speaks
// the protocol and merges what several plugins say.
//
// Plugins are the administrator's: who may connect to the socket, or put a
// program into the plugin directory, is root of the node. What this package
// guards against is their mistakes. A plugin that hangs is dropped after a
// timeout (2 s for an answer, by default), one that says nonsense fails the
// container that it says it of, with its name, and one that calls too often is
// refused.
//
// The engine calls it, for each event, and is called back through Runtime.
// Nothing survives the engine: plugins connect again and are synchronised.
package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	"github.com/containerd/ttrpc"
)

// Options of Plugins.
type Options struct {
	// Socket is where plugins connect; "" lets none connect.
	Socket string
	// PluginDir has programs that are started with the engine, ConfigDir their
	// configuration: INDEX-NAME.conf or NAME.conf. Either may be missing.
	PluginDir, ConfigDir string
	// Required are names of plugins without which no container is created,
	// unless it bears the annotation RequiredUnless with the value "true".
	Required       []string
	RequiredUnless string
	// How long plugins may take to register, and to answer; 0: the protocol's
	// defaults. The adaptation package has one such setting for a program.
	RegistrationTimeout, RequestTimeout time.Duration
	Version                             string // of the runtime
	Runtime                             Runtime
	Log                                 *slog.Logger
}

// Runtime is what plugins want of the engine.
type Runtime interface {
	// Objects returns the pods and containers that there are.
	Objects() ([]*api.PodSandbox, []*api.Container)
	// UpdateContainer changes limits of a container.
	UpdateContainer(ctx context.Context, id string, limits *api.LinuxResources) error
	// EvictContainer kills a container.
	EvictContainer(ctx context.Context, id, reason string) error
}

// updateTimeout bounds a change that a plugin asks for, which may wait for the
// container's turn.
const updateTimeout = 10 * time.Second

// Plugins are the plugins that are connected. The nil pointer has none and never
// will.
type Plugins struct {
	opt        Options
	log        *slog.Logger
	adaptation *adaptation.Adaptation
	count      atomic.Int64 // of plugins, built-in ones included
	updates    chan struct{}
	work       sync.WaitGroup
	problem    string // why there is no socket, or no program was started

	mu         sync.Mutex
	ended      bool
	links      map[*link]bool
	connecting *link // has not registered yet; the adaptation takes one at a time
	gone       []Plugin
}

// maxUpdates bounds the changes that plugins ask for at the same time.
const maxUpdates = 8

// New returns plugins that Open will let in.
func New(opt Options) *Plugins {
	return &Plugins{opt: opt, log: opt.Log, links: map[*link]bool{}, updates: make(chan struct{}, maxUpdates)}
}

// Open makes the socket and starts the programs in the plugin directory. What
// does not work is said in State and does not keep the engine from running.
func (p *Plugins) Open() {
	if p == nil {
		return
	}
	err := p.start(p.opt.PluginDir)
	if err == nil {
		return
	}
	p.log.Error("NRI does not work as configured", "error", err)
	p.mu.Lock()
	p.problem = err.Error()
	p.mu.Unlock()
	if p.opt.PluginDir != "" {
		// A bad file in the plugin directory harms its own plugins only.
		if err := p.start(""); err != nil {
			p.log.Error("NRI does not work at all", "error", err)
		}
	}
}

// nowhere is a directory that nobody can make.
const nowhere = "/proc/podstead-nowhere"

func (p *Plugins) start(pluginDir string) error {
	options := []adaptation.Option{
		adaptation.WithPluginPath(cmp.Or(pluginDir, nowhere)), adaptation.WithPluginConfigPath(cmp.Or(p.opt.ConfigDir, nowhere)),
		adaptation.WithMetrics(counter{p}),
		adaptation.WithTTRPCOptions(
			[]ttrpc.ClientOpts{p.track},
			[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.serve)},
		),
	}
	if len(p.opt.Required) > 0 {
		options = append(options, adaptation.WithDefaultValidator(&validator.DefaultValidatorConfig{
			Enable: true, RequiredPlugins: p.opt.Required, TolerateMissingAnnotation: p.opt.RequiredUnless,
		}))
	}
	if p.opt.Socket == "" {
		options = append(options, adaptation.WithDisabledExternalConnections())
	} else if err := claimSocket(p.opt.Socket); err != nil {
		return fmt.Errorf("NRI socket: %w", err)
	} else {
		options = append(options, adaptation.WithSocketPath(p.opt.Socket))
	}
	adaptation.SetPluginRegistrationTimeout(cmp.Or(p.opt.RegistrationTimeout, adaptation.DefaultPluginRegistrationTimeout))
	adaptation.SetPluginRequestTimeout(cmp.Or(p.opt.RequestTimeout, adaptation.DefaultPluginRequestTimeout))
	a, err := adaptation.New("podstead", p.opt.Version, p.synchronize, p.updateContainers, options...)
	if err != nil {
		return fmt.Errorf("NRI: %w", err)
	}
	p.adaptation = a
	err = a.Start()
	if err == nil && p.opt.Socket != "" {
		err = os.Chmod(p.opt.Socket, 0o600)
	}
	if err != nil {
		a.Stop()
		p.count.Store(0)
		return fmt.Errorf("NRI: %w", err)
	}
	return nil
}

// Idle tells that no plugin wants to hear anything: whoever has something to
// say need not even put it into words.
func (p *Plugins) Idle() bool { return p == nil || p.count.Load() == 0 }

// Hold keeps plugins that connect waiting for their synchronisation until it is
// released, so that what is being made is either told to them or in their list.
func (p *Plugins) Hold() (release func()) {
	if p == nil || p.adaptation == nil {
		return func() {}
	}
	return p.adaptation.BlockPluginSync().Unblock
}

// Close disconnects all plugins, ends those that were started, and waits for
// what they had asked for.
func (p *Plugins) Close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.ended = true
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	p.mu.Unlock()
	for _, l := range links {
		l.client.Close()
	}
	if p.adaptation != nil {
		p.adaptation.Stop()
	}
	p.work.Wait()
}

// counter is told by the adaptation how many plugins there are.
type counter struct{ *Plugins }

func (c counter) UpdatePluginCount(n int) { c.count.Store(int64(n)) }

func (counter) RecordPluginInvocation(string, string, error)      {}
func (counter) RecordPluginLatency(string, string, time.Duration) {}
func (counter) RecordPluginAdjustments(string, string, *api.ContainerAdjustment, int, int) {
}

// synchronize tells a plugin that has come what there is, and does what it asks
// for in return.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers := p.opt.Runtime.Objects()
	updates, err := tell(ctx, pods, containers)
	if err != nil {
		return err
	}
	p.Apply(ctx, updates)
	return nil
}

// updateContainers does what a plugin asks for of its own accord, and returns
// what could not be done.
func (p *Plugins) updateContainers(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	return p.Apply(ctx, updates), nil
}

// Apply changes containers as plugins asked for while they heard of something
// else, and returns what failed. The caller must not have any container's turn.
func (p *Plugins) Apply(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate) {
	for _, u := range updates {
		if u.GetLinux().GetResources() == nil {
			continue
		}
		if err := p.apply(ctx, u); err != nil {
			p.log.Warn("an NRI plugin's update of a container failed", "container", u.ContainerId, "error", err)
			if !u.IgnoreFailure {
				failed = append(failed, u)
			}
		}
	}
	return failed
}

func (p *Plugins) apply(ctx context.Context, u *api.ContainerUpdate) error {
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	return p.opt.Runtime.UpdateContainer(ctx, u.ContainerId, u.Linux.Resources)
}

// evict kills containers in the background: who asks for it waits for an answer
// that may be needed for the killing.
func (p *Plugins) evict(plugin string, list []*api.ContainerEviction) {
	for _, x := range list {
		p.mu.Lock()
		if p.ended {
			p.mu.Unlock()
			return
		}
		p.work.Add(1)
		p.mu.Unlock()
		go func() {
			defer p.work.Done()
			reason := fmt.Sprintf("evicted by NRI plugin %s: %s", plugin, x.Reason)
			p.log.Info("an NRI plugin evicts a container", "container", x.ContainerId, "plugin", plugin, "why", x.Reason)
			if err := p.opt.Runtime.EvictContainer(context.Background(), x.ContainerId, reason); err != nil {
				p.log.Warn("an NRI plugin's eviction of a container failed", "container", x.ContainerId, "plugin", plugin, "error", err)
			}
		}()
	}
}

// survive turns a panic of the library, which takes apart what plugins send,
// into an error.
func survive(err *error) {
	if r := recover(); r != nil {
		*err = errors.Join(*err, fmt.Errorf("NRI: the answer of a plugin could not be processed: %v", r))
	}
}
