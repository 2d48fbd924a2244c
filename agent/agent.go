// Package agent is the node agent: it makes the pods of its sources real
// through cri.Runtime and reports how they are. It never knows which runtime is
// behind the seam.
//
//	internal/source ──▶ loop ──▶ worker (one per pod) ──▶ plan.Next ──▶ steps ──▶ cri.Runtime
//	runtime events  ──▶      ──▶   │  ▲ probes, timers                    │
//	API requests    ──▶            └──┴────────── results ◀───────────────┘
//
// One loop (loop.go) owns what is wanted and hands it to the workers; a worker
// (worker.go) owns one pod, sleeps while nothing happens, and never waits for a
// step: steps run in goroutines of their own, one per container at a time, so
// that one stuck container never blocks another. Decisions are pure
// (internal/plan, internal/status).
//
// What survives the agent: the pods, which go on running; their records
// (record.go) and volumes, applied objects and the last good manifests, all
// below StateDir. Its clients talk to it by package agent/client.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
	"podstead/agent/internal/event"
	"podstead/agent/internal/eviction"
	"podstead/agent/internal/image"
	"podstead/agent/internal/imagegc"
	"podstead/agent/internal/kubeletapi"
	"podstead/agent/internal/numa"
	"podstead/agent/internal/oom"
	"podstead/agent/internal/pinning"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/request"
	"podstead/agent/internal/source"
	"podstead/agent/internal/stats"
	"podstead/cgroup"
	"podstead/cri"
)

// Config of an Agent.
type Config struct {
	Runtime     cri.Runtime
	ManifestDir string // watched; "" for none
	ManifestURL ManifestURL
	StateDir    string // pod volumes, checkpointed status, applied manifests
	RunDir      string
	PodLogsDir  string // "" for /var/log/pods
	NodeName    string // "" for the host's name
	Version     string // of the program, for the API
	// Cgroups is where the kubepods tree is made, below CgroupRoot; nil: pods
	// get no cgroups of their own from the agent.
	Cgroups    *cgroup.Hierarchy
	CgroupRoot string
	// Policy is what a KubeletConfiguration may change; nil: DefaultPolicy.
	Policy *Policy
	// DockerConfigs are files of registry credentials that all pods may use, as
	// docker login writes them. CredentialProviders are asked for more.
	DockerConfigs       []string
	CredentialProviders []*CredentialProvider
	// RootDir is where plugins look for a kubelet (/var/lib/kubelet): device plugins
	// in device-plugins, PodResources in pod-resources. "": none are served.
	RootDir string
	// Kubelet is how the kubelet's HTTP API is served; nil: it is not.
	Kubelet *KubeletAPI
	// Tracing makes the spans of pods' starts and of what is done for them; nil:
	// none are made.
	Tracing trace.TracerProvider
	// FileSystemUsage is a command that calls FileSystemUsage with its last argument:
	// it, and not the agent, waits for file systems that do not answer. nil: the agent.
	FileSystemUsage []string
	// HostPathCheck is a command that calls CheckHostPath with its last two arguments,
	// the same for hostPath volumes.
	HostPathCheck []string
	// Images is what the runtime can do with images beyond CRI; nil: nothing.
	Images ImageExtras
	// Listener serves the agent's API (unix socket, mode 0600); nil for none.
	// Run closes it.
	Listener net.Listener
	Log      *slog.Logger

	machine *numa.Machine // that a test makes up; nil: this one
}

// ManifestURL is where a manifest is asked for every Period.
type ManifestURL struct {
	Address string // "" for none
	Header  http.Header
	Period  time.Duration
}

// Policy says how the agent treats pods, as a KubeletConfiguration does.
type Policy struct {
	// ClusterDNS, if there is one, is for pods of dnsPolicy ClusterFirst, with the
	// usual search list below ClusterDomain.
	ClusterDNS    []string
	ClusterDomain string
	// ResolvConf is the host's; "" is /etc/resolv.conf, or systemd-resolved's own
	// list where that leads to the host's loopback.
	ResolvConf     string
	SeccompDefault bool   // containers that name no profile get the runtime's
	PodPidsLimit   int64  // processes of a pod; 0: no limit
	IDsPerPod      uint32 // of pods with users of their own; 0: 65536
	// PodCIDR is where pods get their addresses from, a range or one of each family
	// after a comma; "": the runtime knows.
	PodCIDR string
	// RuntimeTimeout is the deadline of calls to the runtime, and half that of
	// sandboxes'; 0: the agent's own.
	RuntimeTimeout time.Duration
	// UnsafeSysctls are those that pods may set beside the safe ones: names, or
	// beginnings that end with a *.
	UnsafeSysctls []string
	// FirewallChains are those of the host that a kubelet makes for other programs.
	FirewallChains bool
	// OwnCgroup is the agent's, SystemCgroup that of all programs that are in no
	// other: paths, empty for where they are anyway.
	OwnCgroup, SystemCgroup string
	// PodSysctls are those of pods that do not set them themselves.
	PodSysctls map[string]string
	// MaxRestartPeriod is the longest back-off of a container that crashes,
	// MinRestartPeriod the first; 0: the kubelet's.
	MinRestartPeriod time.Duration
	MaxRestartPeriod time.Duration
	ParallelPulls    int // 0: no bound
	// PullsPerSecond begin, and PullBurst at once, others wait; 0: no bound.
	PullsPerSecond, PullBurst int
	// KeepMemory are the hundredths of what pods request of memory that is kept from
	// pods of lower classes; 0: none.
	KeepMemory int
	CPU        request.CPU
	Memory     request.Memory // V2 and SwapBytes are the host's
	// Pinning says what containers get of the machine for themselves.
	Pinning Pinning
	// VerifyImages says who may use images that are there.
	VerifyImages image.Verify
	Images       ImagePolicy
	// Shutdown is how pods end when the machine goes down; nothing: it is not held
	// up for them.
	Shutdown []ShutdownTier
	// Node says how much of the node is for pods.
	Node Reservations
	// VolumeStatsPeriod is how often volumes are measured for those who ask; 0: every
	// minute, less: not at all.
	VolumeStatsPeriod time.Duration
	// Eviction says when pods go because the node is short of something.
	Eviction eviction.Policy
}

// ImagePolicy says when images that nobody uses are removed.
type ImagePolicy = imagegc.Policy

// DefaultPolicy is what holds without a KubeletConfiguration.
func DefaultPolicy() Policy {
	return Policy{MaxRestartPeriod: plan.BackoffMax, VerifyImages: image.DefaultVerify(),
		Images: imagegc.DefaultPolicy(), Eviction: eviction.Default(),
		Node: Reservations{MaxPods: maxPods, EnforcePods: true}, Pinning: Pinning{Period: pinning.DefaultPeriod}}
}

// CredentialProvider is a kubelet's exec plugin for registry credentials.
type CredentialProvider = image.Provider

// ReadCredentialProviders reads a CredentialProviderConfig, or a directory of
// them; the programs are in bin.
func ReadCredentialProviders(config, bin string) ([]*CredentialProvider, error) {
	return image.ReadProviders(config, bin)
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
type Agent struct {
	cfg     Config
	decoder *source.Decoder
	applied *source.Applied
	binder  *source.Binder
	images  *imagegc.Collector
	node    *node
	board   *board
	kubelet *kubeletapi.Server // may be nil
	plugins chan struct{}      // there are others than before
	evictor *evictor
	figures *stats.Source
	began   time.Time
	// kernelLog is where the kernel tells whom it killed; "": nobody listens.
	kernelLog string

	requests chan func(context.Context) // run by the loop
	touched  chan touch
	ended    chan *worker

	// Owned by the loop.
	files   []source.File
	wanted  *source.Set
	workers map[string]*worker // by pod UID
	warned  map[string]bool    // of fields without effect
	wg      sync.WaitGroup     // of workers and followers
}

// New prepares an agent; Run does the work.
func New(cfg Config) (*Agent, error) {
	if cfg.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("node name: %w", err)
		}
		cfg.NodeName = name
	}
	if cfg.PodLogsDir == "" {
		cfg.PodLogsDir = "/var/log/pods"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []*string{&cfg.StateDir, &cfg.PodLogsDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, err
		}
		*dir = abs // paths are handed to a runtime that runs elsewhere
	}
	if err := os.MkdirAll(filepath.Join(cfg.StateDir, "pods"), 0o750); err != nil {
		return nil, err
	}
	if cfg.Policy == nil {
		p := DefaultPolicy()
		cfg.Policy = &p
	}
	decoder, err := source.NewDecoder(cfg.NodeName, cfg.Policy.UnsafeSysctls...)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		began: time.Now(), kernelLog: oom.Log,
		cfg:      cfg,
		decoder:  decoder,
		applied:  &source.Applied{Dir: filepath.Join(cfg.StateDir, "applied"), Decoder: decoder},
		binder:   &source.Binder{File: filepath.Join(cfg.StateDir, "claims.json"), Dir: filepath.Join(cfg.StateDir, "claims")},
		board:    newBoard(),
		requests: make(chan func(context.Context)),
		touched:  make(chan touch, 256),
		ended:    make(chan *worker),
		workers:  map[string]*worker{},
	}
	a.node, err = newNode(cfg, a.newMetrics())
	if err != nil {
		return nil, err
	}
	a.node.board = a.board
	a.node.decoder = decoder
	a.node.puller = image.New(image.Config{
		Images: a.node.runtime, Parallel: cfg.Policy.ParallelPulls, PerSecond: cfg.Policy.PullsPerSecond, Burst: cfg.Policy.PullBurst, Log: cfg.Log,
		Verify: cfg.Policy.VerifyImages, Dir: filepath.Join(cfg.StateDir, "image_manager"),
		DockerConfigs: cfg.DockerConfigs, Providers: cfg.CredentialProviders,
	})
	a.images = &imagegc.Collector{Runtime: cfg.Runtime, Policy: cfg.Policy.Images, Named: a.namedImages, Removed: a.node.metrics.Collected, Log: cfg.Log}
	a.evictor = newEvictor(a, cfg.Policy.Eviction)
	a.node.events = event.NewLog(cfg.NodeName, a.board.event)
	if err := a.newPlugins(); err != nil {
		return nil, err
	}
	a.figures = a.newFigures()
	if a.kubelet, err = a.newKubelet(); err != nil {
		return nil, err
	}
	return a, nil
}

// namedImages are the images that pods of this node name.
func (a *Agent) namedImages() (names []string) {
	for _, pod := range a.board.list() {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for _, c := range list {
				names = append(names, c.Image)
			}
		}
		for _, c := range pod.Spec.EphemeralContainers {
			names = append(names, c.Image)
		}
		for _, v := range pod.Spec.Volumes {
			if v.Image != nil {
				names = append(names, v.Image.Reference)
			}
		}
	}
	return names
}

// Run reconciles until ctx ends. Pods go on running then.
func (a *Agent) Run(ctx context.Context) error {
	if a.cfg.Listener != nil {
		defer a.cfg.Listener.Close()
	}
	if err := a.node.greet(ctx, a.cfg.Policy.PodCIDR); ctx.Err() != nil {
		return nil
	} else if err != nil {
		return err
	}
	for _, err := range a.applied.Load() {
		a.cfg.Log.Error("applied object set aside", "error", err)
	}
	if err := a.binder.Load(); err != nil {
		a.cfg.Log.Error("claims look for storage anew", "error", err)
	}
	if err := a.node.cgroups.prepare(); err != nil {
		return err
	}
	if err := a.node.cgroups.bound(a.cfg.Policy.Node, a.node.capacity); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer a.wg.Wait()
	defer cancel()
	files := make(chan []source.File)
	ofDir := files
	if a.cfg.ManifestURL.Address != "" {
		ofDir = make(chan []source.File)
		a.watchURL(ctx, ofDir, files)
	}
	if err := a.watchFiles(ctx, ofDir); err != nil {
		return err
	}
	err := a.loop(ctx, files)
	cancel()
	a.wg.Wait()
	if pods, readErr := os.ReadDir(a.node.podsDir); readErr == nil && len(pods) == 0 {
		if err := a.node.cgroups.leave(); err != nil {
			a.cfg.Log.Warn("cgroups of no pods are left", "error", err)
		}
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// watchURL sends what a server's manifest says beside the files of the directory.
func (a *Agent) watchURL(ctx context.Context, dir <-chan []source.File, out chan<- []source.File) {
	u := &source.URL{Address: a.cfg.ManifestURL.Address, Header: a.cfg.ManifestURL.Header, Period: a.cfg.ManifestURL.Period,
		KeepFile: filepath.Join(a.cfg.StateDir, "manifest-url"), Decoder: a.decoder, Log: a.cfg.Log}
	served := make(chan []source.File)
	a.wg.Go(func() { _ = u.Run(ctx, served) }) // until ctx ends
	a.wg.Go(func() {
		var files, file []source.File
		for known := 0; ; {
			select {
			case files = <-dir:
				known |= 1
			case file = <-served:
				known |= 2
			case <-ctx.Done():
				return
			}
			if known != 3 {
				continue // nothing is ended before it is known what is wanted
			}
			select {
			case out <- slices.Concat(files, file):
			case <-ctx.Done():
				return
			}
		}
	})
}

// watchFiles starts watching the manifests; without a directory there are none.
func (a *Agent) watchFiles(ctx context.Context, out chan<- []source.File) error {
	if a.cfg.ManifestDir == "" {
		a.wg.Go(func() {
			select {
			case out <- nil:
			case <-ctx.Done():
			}
		})
		return nil
	}
	dir, err := filepath.Abs(a.cfg.ManifestDir)
	if err != nil {
		return err
	}
	f := &source.Files{Dir: dir, KeepDir: filepath.Join(a.cfg.StateDir, "manifests"), Decoder: a.decoder, Log: a.cfg.Log}
	a.wg.Go(func() {
		if err := f.Run(ctx, out); err != nil && ctx.Err() == nil {
			a.cfg.Log.Error("manifests are not watched any more", "dir", dir, "error", err)
		}
	})
	return nil
}
