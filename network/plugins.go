package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/network/internal/bridge"
	"podstead/network/internal/cni"
	"podstead/sys"
)

// plugins is the network of a CNI configuration.
type plugins struct {
	cfg    Config
	log    *slog.Logger
	leases *leases
	bootID string
	run    *cni.Plugins

	mu      sync.Mutex
	subnets []netip.Prefix // capability ipRanges
	warned  string         // files that were complained about last
}

// attachment is what a lease keeps of a pod that plugins connected: enough to
// disconnect it when the configuration has changed or is gone.
type attachment struct {
	File   string          `json:"file"`
	Config json.RawMessage `json:"config"`
	cni.Attachment
}

func newPlugins(cfg Config, all *leases, boot string) *plugins {
	p := &plugins{cfg: cfg, log: cfg.Log, leases: all, bootID: boot}
	p.run = cni.New(cfg.CNIBinDirs, p.cacheDir())
	return p
}

func (p *plugins) cacheDir() string { return filepath.Join(p.cfg.StateDir, "cni") }

// current returns the network that new pods get, or nil if there is no
// configuration: then it is the built-in one. Where there are files but no
// valid one it is an error; somebody wanted plugins. The directory is read each
// time: that is little beside running a plugin, and is never out of date.
func (p *plugins) current() (*cni.List, error) {
	list, bad := cni.Load(p.cfg.CNIConfDir)
	errs := make([]error, len(bad))
	for i, err := range bad {
		errs[i] = err
	}
	err := errors.Join(errs...)
	if list == nil {
		return nil, err
	}
	p.warnOnce(list, err)
	return list, nil
}

// warnOnce tells of files that were passed over.
func (p *plugins) warnOnce(list *cni.List, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	p.mu.Lock()
	changed := text != p.warned
	p.warned = text
	p.mu.Unlock()
	if changed && err != nil {
		p.log.Warn("CNI configuration is not valid, another one is used", "used", list.File, "error", err)
	}
}

// setup connects a pod by the plugins of list. The caller holds the pod's lock.
func (p *plugins) setup(ctx context.Context, list *cni.List, pod Pod) (_ *lease, err error) {
	if old := p.leases.get(pod.ID); old != nil {
		if p.connected(old, pod.Netns) {
			return old, nil
		}
		if err := p.teardown(ctx, old); err != nil {
			return nil, err
		}
	}
	ports, err := normalizePorts(pod.Ports)
	if err != nil {
		return nil, err
	}
	capabilities, err := p.capabilities(pod, ports)
	if err != nil {
		return nil, err
	}
	for _, name := range list.Unserved(capabilities) {
		if name != "ipRanges" && name != "dns" && name != "cgroupPath" { // offered, not asked for
			p.log.Warn("no CNI plugin has a capability that the pod asks for",
				"pod", pod.String(), "capability", name, "network", list.Name(), "file", list.File)
		}
	}
	l := &lease{
		Version: leaseVersion, PodID: pod.ID, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		Netns: pod.Netns, BootID: p.bootID, Created: time.Now().UTC(), Ports: ports,
		CNI: &attachment{File: list.File, Config: list.Config(), Attachment: cni.Attachment{
			ContainerID: pod.ID, Netns: pod.Netns, Interface: bridge.PodInterface,
			Args: cniArgs(pod), Capabilities: capabilities,
		}},
	}
	if err := bridge.LoopbackUp(pod.Netns); err != nil {
		return nil, err
	}
	return p.attach(ctx, list, l)
}

// attach runs the plugins between two writes of the lease: the first says that
// there may be something to undo, the second what came of it.
func (p *plugins) attach(ctx context.Context, list *cni.List, l *lease) (_ *lease, err error) {
	var undo sys.Undo
	defer undo.OnError(ctx, &err)
	if err := p.leases.put(l); err != nil {
		return nil, err
	}
	// Both in one: a lease whose DEL failed must stay.
	undo.Add("disconnect", func(ctx context.Context) error { return p.teardown(ctx, l) })
	ips, err := p.run.Add(ctx, list, l.CNI.Attachment)
	if err != nil {
		return nil, err
	}
	done := *l
	done.IPs = ips
	if err := p.leases.put(&done); err != nil {
		return nil, err
	}
	return &done, nil
}

// connected tells whether what a lease says is so, by the kernel's word. CNI has
// a verb for it, CHECK, but a common plugin's (portmap 1.1) finds fault with
// what is right, and a pod that works must not be torn from the network.
func (p *plugins) connected(l *lease, netns string) bool {
	if l.CNI == nil || l.BootID != p.bootID || l.Netns != netns || len(l.IPs) == 0 {
		return false
	}
	has, err := bridge.PodHas(netns, l.IPs[0])
	return err == nil && has
}

func (p *plugins) teardown(ctx context.Context, l *lease) error {
	list, err := cni.Parse(l.CNI.File, l.CNI.Config)
	if err != nil {
		return fmt.Errorf("CNI configuration in the lease: %w", err)
	}
	a := l.CNI.Attachment
	// A namespace that is gone, be it with the last run of the kernel, is told
	// to plugins as an empty path; a file may be left where it was bound.
	if l.BootID != p.bootID || !isNamespace(a.Netns) {
		a.Netns = ""
	}
	if err := p.run.Del(ctx, list, a); err != nil {
		return err
	}
	return p.leases.remove(l.PodID)
}

func isNamespace(path string) bool {
	return path != "" && sys.InNetNamespace(path, func() error { return nil }) == nil
}

// cniArgs is CNI_ARGS, as plugins know it from other runtimes.
func cniArgs(pod Pod) [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", pod.Namespace},
		{"K8S_POD_NAME", pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
		{"K8S_POD_UID", pod.UID},
	}
}

// capabilities is what plugins can be told beside the arguments.
func (p *plugins) capabilities(pod Pod, ports []PortMapping) (map[string]any, error) {
	all := map[string]any{}
	if len(ports) > 0 {
		var mappings []cni.PortMapping
		for _, m := range ports {
			mapping := cni.PortMapping{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: strings.ToLower(m.Protocol)}
			if m.HostIP.IsValid() {
				mapping.HostIP = m.HostIP.String()
			}
			mappings = append(mappings, mapping)
		}
		all["portMappings"] = mappings
	}
	bandwidth, err := podBandwidth(pod.Annotations)
	if err != nil {
		return nil, err
	}
	if bandwidth != (cni.Bandwidth{}) {
		all["bandwidth"] = bandwidth
	}
	if d := pod.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		all["dns"] = cni.DNS(d)
	}
	if pod.CgroupParent != "" {
		all["cgroupPath"] = pod.CgroupParent
	}
	p.mu.Lock()
	subnets := p.subnets
	p.mu.Unlock()
	if len(subnets) > 0 {
		all["ipRanges"] = cni.IPRanges(subnets)
	}
	return cni.Normalize(all)
}

// podBandwidth reads the annotations. Bursts are not limited, as with other
// runtimes.
func podBandwidth(annotations map[string]string) (b cni.Bandwidth, err error) {
	if b.IngressRate, err = rate(annotations, ingressBandwidth); err != nil {
		return b, err
	}
	if b.EgressRate, err = rate(annotations, egressBandwidth); err != nil {
		return b, err
	}
	if b.IngressRate > 0 {
		b.IngressBurst = math.MaxUint32
	}
	if b.EgressRate > 0 {
		b.EgressBurst = math.MaxUint32
	}
	return b, nil
}

func rate(annotations map[string]string, key string) (uint64, error) {
	text, ok := annotations[key]
	if !ok {
		return 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s: %q: %w", key, text, err)
	}
	// The kubelet's own bounds.
	if v := q.Value(); v < 1_000 || v > 1_000_000_000_000_000 {
		return 0, fmt.Errorf("annotation %s: %s is not between 1k and 1P bits per second", key, text)
	}
	return uint64(q.Value()), nil
}

// reconcile frees what no lease speaks of.
func (p *plugins) reconcile(ctx context.Context) error {
	known := func(id string) bool { return p.leases.get(id) != nil }
	errs := []error{p.run.DelUnknown(ctx, known)}
	if list, err := p.current(); p.cfg.CNIExclusive && err == nil && list != nil {
		var attached []cni.Attachment
		for _, l := range p.leases.all() {
			if l.CNI != nil {
				attached = append(attached, l.CNI.Attachment)
			}
		}
		errs = append(errs, p.run.GC(ctx, list, attached))
	}
	return errors.Join(errs...)
}

func (p *plugins) destroy() error { return os.RemoveAll(p.cacheDir()) }
