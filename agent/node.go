package agent

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/allocation"
	"podstead/agent/internal/csi"
	"podstead/agent/internal/device"
	"podstead/agent/internal/env"
	"podstead/agent/internal/event"
	"podstead/agent/internal/flight"
	"podstead/agent/internal/fsusage"
	"podstead/agent/internal/hostpath"
	"podstead/agent/internal/image"
	"podstead/agent/internal/metric"
	"podstead/agent/internal/probe"
	"podstead/agent/internal/request"
	"podstead/agent/internal/source"
	"podstead/agent/internal/userns"
	"podstead/cri"
	"podstead/cri/tracing"
	"podstead/sys/quota"
)

// node is what all workers share. Nothing but pressure changes once the agent
// runs.
type node struct {
	runtime        cri.Runtime
	runtimeName    string
	runtimeVersion string
	request        request.Node
	podsDir        string
	probesDir      string // of counts, on tmpfs; "" for none
	hostIPs        []string
	facts          env.Facts                                     // without a pod's addresses
	features       map[string]*runtimeapi.RuntimeHandlerFeatures // of the runtime's handlers
	userns         *userns.Blocks
	projects       *quota.Pool // of emptyDirs; nil: the file system counts none
	asker          fsusage.Asker
	hostPaths      *hostpath.Checker
	limits         limits
	minBackoff     time.Duration
	maxBackoff     time.Duration
	cgroups        *cgroups
	puller         *image.Puller
	devices        *device.Manager // may be nil
	csi            *csi.Drivers    // may be nil
	pins           *pins           // may be nil
	events         *event.Log
	metrics        *metric.Metrics
	tracer         trace.Tracer
	board          *board
	decoder        *source.Decoder
	pressure       pressed
	capacity       corev1.ResourceList
	allocatable    corev1.ResourceList // of it, for pods
	down           atomic.Bool         // the machine is about to go, nothing starts any more
	ledger         *allocation.Ledger
	order          *allocation.Order // set once, before workers are
	log            *slog.Logger
}

func newNode(cfg Config, metrics *metric.Metrics) (*node, error) {
	memory, err := meminfo("MemTotal:")
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte(cfg.NodeName + "\x00" + cfg.StateDir))
	ips := hostIPs()
	n := &node{
		runtime: flight.Runtime{Runtime: metric.Runtime{Runtime: cfg.Runtime, Metrics: metrics}},
		metrics: metrics,
		tracer:  tracing.Tracer(cfg.Tracing),
		request: request.Node{
			Name:        cfg.NodeName,
			AgentID:     hex.EncodeToString(id[:8]),
			PodLogsDir:  cfg.PodLogsDir,
			SeccompDir:  filepath.Join(cfg.StateDir, "seccomp"),
			MemoryBytes: memory,
			HostDNS:     hostDNS(cfg.Policy.ResolvConf),
			ClusterDNS:  cfg.Policy.ClusterDNS, ClusterDomain: cfg.Policy.ClusterDomain,
			SeccompDefault: cfg.Policy.SeccompDefault,
			CgroupRoot:     cfg.CgroupRoot,
			Cgroups:        cfg.Cgroups != nil,
			CPU:            cfg.Policy.CPU,
			Memory:         cfg.Policy.Memory,
			Sysctls:        cfg.Policy.PodSysctls,
		},
		podsDir: filepath.Join(cfg.StateDir, "pods"),
		hostIPs: ips,
		facts: env.Facts{
			NodeName: cfg.NodeName, HostIPs: ips,
			CPU:    *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
			Memory: *resource.NewQuantity(memory, resource.BinarySI),
		},
		features:  map[string]*runtimeapi.RuntimeHandlerFeatures{},
		asker:     fsusage.Asker{Program: cfg.FileSystemUsage},
		hostPaths: &hostpath.Checker{Program: cfg.HostPathCheck},
		log:       cfg.Log,
	}
	if cfg.RunDir != "" {
		n.probesDir = filepath.Join(cfg.RunDir, "probes")
		if err := os.MkdirAll(n.probesDir, 0o700); err != nil {
			return nil, fmt.Errorf("counts of probes: %w", err)
		}
	}
	if n.userns, err = userns.New(n.podsDir, "/etc/subuid", "/etc/subgid", cfg.Policy.IDsPerPod); err != nil {
		return nil, fmt.Errorf("user namespaces for pods: %w", err)
	}
	n.openProjects()
	n.cgroups = &cgroups{hierarchy: cfg.Cgroups, root: cfg.CgroupRoot, runDir: cfg.RunDir, pids: cfg.Policy.PodPidsLimit, metrics: metrics, log: cfg.Log}
	if cfg.Cgroups != nil && slices.Contains(cfg.Cgroups.Controllers(), "hugetlb") {
		n.request.HugePages = slices.Sorted(maps.Keys(hugePages(hugePagesDir)))
	}
	n.request.Memory.V2 = cfg.Cgroups != nil && cfg.Cgroups.Unified()
	if n.request.Memory.Swap != "" {
		if n.request.Memory.SwapBytes, err = meminfo("SwapTotal:"); err != nil {
			return nil, err
		}
	}
	n.capacity = capacity(n.facts.CPU, n.facts.Memory, cfg.StateDir, cfg.Policy.Node)
	n.allocatable = allocatable(n.capacity, cfg.Policy.Node, cfg.Policy.Eviction)
	n.facts.CPU, n.facts.Memory, n.facts.Storage = *n.allocatable.Cpu(), *n.allocatable.Memory(), *n.allocatable.StorageEphemeral()
	n.request.Memory.Allocatable = n.allocatable.Memory().Value()
	n.cgroups.reserve = n.request.Memory.Reserve
	n.cgroups.keepOff, n.cgroups.allocatable = cfg.Policy.KeepMemory, n.allocatable.Memory().Value()
	n.ledger = &allocation.Ledger{Allocatable: n.allocatable}
	if n.pins, err = n.newPins(cfg); err != nil {
		return nil, err
	}
	n.minBackoff, n.maxBackoff, n.limits = cfg.Policy.MinRestartPeriod, cfg.Policy.MaxRestartPeriod, limitsOf(cfg.Policy.RuntimeTimeout)
	return n, nil
}

// podDir is where all that is of a pod is kept.
func (n *node) podDir(uid string) string { return filepath.Join(n.podsDir, uid) }

// probeCounts is where results of a pod's probes are counted.
func (n *node) probeCounts(uid string) *probe.Book {
	if n.probesDir == "" {
		return nil
	}
	return probe.OpenBook(filepath.Join(n.probesDir, uid+".json"))
}

// meminfo reads a line of /proc/meminfo, in bytes.
func meminfo(what string) (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) >= 2 && fields[0] == what {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, sc.Err()
}

// hostDNS reads the host's resolver configuration, from a file if one is named.
// Where that leads to a
// resolver on the host's loopback, systemd-resolved's own list serves pods.
func hostDNS(file string) request.DNS {
	if file != "" {
		data, _ := os.ReadFile(file)
		return request.ParseResolvConf(data)
	}
	data, _ := os.ReadFile("/etc/resolv.conf")
	d := request.ParseResolvConf(data)
	if d.Loopback() {
		if data, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
			return request.ParseResolvConf(data)
		}
	}
	return d
}

// hostIPs are the node's addresses, one per family: of the interface with the
// default route, else of any but loopback, else loopback's.
func hostIPs() []string {
	preferred := defaultInterface()
	var v4, v6 string
	take := func(only string) {
		interfaces, err := net.Interfaces()
		if err != nil {
			return
		}
		for _, i := range interfaces {
			if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || (only != "" && i.Name != only) {
				continue
			}
			addrs, _ := i.Addrs()
			for _, a := range addrs {
				ipnet, ok := a.(*net.IPNet)
				if !ok || !ipnet.IP.IsGlobalUnicast() {
					continue
				}
				if ipnet.IP.To4() != nil && v4 == "" {
					v4 = ipnet.IP.String()
				} else if ipnet.IP.To4() == nil && v6 == "" {
					v6 = ipnet.IP.String()
				}
			}
		}
	}
	if preferred != "" {
		take(preferred)
	}
	if v4 == "" && v6 == "" {
		take("")
	}
	var out []string
	for _, ip := range []string{v4, v6} {
		if ip != "" {
			out = append(out, ip)
		}
	}
	if out == nil {
		out = []string{"127.0.0.1"}
	}
	return out
}

// defaultInterface finds the interface of the IPv4 default route.
func defaultInterface() string {
	data, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) >= 8 && f[1] == "00000000" && f[7] == "00000000" {
			return f[0]
		}
	}
	return ""
}

// event records news of a pod, for describe and for the log.
func (n *node) event(pod *corev1.Pod, container, kind, reason, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	n.events.Add(pod, container, kind, reason, message)
	level := slog.LevelInfo
	if kind == corev1.EventTypeWarning {
		level = slog.LevelWarn
	}
	attrs := []any{"pod", pod.Namespace + "/" + pod.Name, "reason", reason}
	if container != "" {
		attrs = append(attrs, "container", container)
	}
	n.log.Log(context.Background(), level, message, attrs...)
}

// tellRange tells the runtime where pods get their addresses from.
func (n *node) tellRange(ctx context.Context, cidr string) {
	if cidr == "" {
		return
	}
	_, err := n.runtime.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}})
	if err != nil {
		n.log.Error("podCIDR has no effect: the runtime does not take it", "podCIDR", cidr, "error", err)
	}
}

// greet asks the runtime who it is, and adapts to what it can do.
func (n *node) greet(ctx context.Context, cidr string) error {
	v, err := n.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return fmt.Errorf("ask the container runtime for its version: %w", err)
	}
	n.runtimeName, n.runtimeVersion = v.RuntimeName, v.RuntimeVersion
	if c, err := n.runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); err == nil {
		n.request.SystemdSlice = c.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD
	} else if cri.Code(err) == codes.Unimplemented {
		n.metrics.Losing("1.38.0") // which demands it
	}
	n.cgroups.follow(n.request.SystemdSlice)
	n.tellRange(ctx, cidr)
	if st, err := n.runtime.Status(ctx, &runtimeapi.StatusRequest{}); err == nil {
		for _, h := range st.RuntimeHandlers {
			n.features[h.Name] = h.GetFeatures()
		}
	}
	return nil
}
