package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"podstead/network/internal/bridge"
	"podstead/network/internal/cni"
	"podstead/network/internal/shared"
	"podstead/sys"
)

// plugins is the network of a CNI configuration.
type plugins struct {
	cfg    Config
	log    *slog.Logger
	leases *leases
	bootID string
	found  atomic.Pointer[found]
	host   *shared.Host
	enroll func() error // makes this instance known to others on the host
	later  func(func(context.Context)) bool

	// collecting is held for writing while plugins collect garbage: what is
	// attached meanwhile would not be in the list of what is valid.
	collecting sync.RWMutex

	mu      sync.Mutex
	subnets []netip.Prefix // capability ipRanges
	warned  string         // files that were complained about last
	used    string         // network that new pods got last
	dirty   bool           // something could not be undone
}

// attachment is what a lease keeps of a pod that plugins connected: enough to
// disconnect it when the configuration has changed or is gone.
type attachment struct {
	File   string          `json:"file"`
	Config json.RawMessage `json:"config"`
	cni.Attachment
}

func newPlugins(cfg Config, all *leases, b *builtin, later func(func(context.Context)) bool) *plugins {
	p := &plugins{cfg: cfg, log: cfg.Log, leases: all, bootID: b.bootID, host: b.host, enroll: b.enroll, later: later}
	p.set(CNI{cfg.CNIConfDir, cfg.CNIBinDirs, cfg.CNINetworks})
	return p
}

// found is where configuration and plugins are.
type found struct {
	CNI
	run *cni.Plugins
}

func (p *plugins) set(c CNI) { p.found.Store(&found{c, cni.New(c.BinDirs, cacheDir(p.cfg.StateDir))}) }

// run runs plugins.
func (p *plugins) run() *cni.Plugins { return p.found.Load().run }

// cacheDir is where an instance's libcni keeps results.
func cacheDir(stateDir string) string { return filepath.Join(stateDir, "cni") }

// current returns the networks that new pods get, the one of eth0 first, or none
// if there is no configuration: then it is the built-in one. Where there are
// files but no valid one it is an error; somebody wanted plugins. The directory
// is read each time: that is little beside running a plugin, is never out of
// date, and needs no watch that could miss something.
func (p *plugins) current() ([]*cni.List, error) {
	at := p.found.Load()
	list, bad := cni.Load(at.ConfDir)
	errs := make([]error, len(bad))
	for i, err := range bad {
		errs[i] = err
	}
	err := errors.Join(errs...)
	if list == nil {
		return nil, err
	}
	p.sayOnce(list, err)
	lists := []*cni.List{list}
	for _, name := range at.Networks {
		if name == list.Name() {
			continue
		}
		more, err := cni.Find(at.ConfDir, name)
		if err != nil {
			return nil, err
		}
		lists = append(lists, more)
	}
	return lists, nil
}

// sayOnce tells which network is used, and of files that were passed over.
func (p *plugins) sayOnce(list *cni.List, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	used := list.Name() + " " + list.File
	p.mu.Lock()
	bad, other := text != p.warned, used != p.used
	p.warned, p.used = text, used
	p.mu.Unlock()
	if other {
		p.log.Info("new pods are connected by CNI plugins", "network", list.Name(), "file", list.File)
	}
	if bad && err != nil {
		p.log.Warn("CNI configuration is not valid, another one is used", "used", list.File, "error", err)
	}
}

// setup connects a pod to networks, the first one by eth0, the second by eth1,
// and so on. The caller holds the pod's lock.
func (p *plugins) setup(ctx context.Context, lists []*cni.List, pod Pod) (_ *lease, err error) {
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
	p.warnUnserved(lists[0], pod, capabilities)
	if err := p.enroll(); err != nil {
		return nil, err
	}
	l := &lease{
		Version: leaseVersion, PodID: pod.ID, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		Netns: pod.Netns, BootID: p.bootID, Created: time.Now().UTC(), Ports: ports,
	}
	for i, list := range lists {
		a := &attachment{File: list.File, Config: list.Config(), Attachment: cni.Attachment{
			ContainerID: pod.ID, Netns: pod.Netns, Interface: fmt.Sprint("eth", i),
			Args: cniArgs(pod), Capabilities: capabilities,
		}}
		if i == 0 {
			l.CNI = a
			continue
		}
		a.Capabilities = maps.Clone(capabilities)
		for _, name := range ofFirst {
			delete(a.Capabilities, name)
		}
		l.Also = append(l.Also, a)
	}
	if err := bridge.LoopbackUp(pod.Netns); err != nil {
		return nil, err
	}
	return p.attach(ctx, lists, l)
}

func (p *plugins) warnUnserved(list *cni.List, pod Pod, capabilities map[string]any) {
	for _, name := range list.Unserved(capabilities) {
		if slices.Contains(onRequest[:], name) {
			p.log.Warn("no CNI plugin has a capability that the pod asks for",
				"pod", pod.String(), "capability", name, "network", list.Name(), "file", list.File)
		}
	}
}

// attach runs the plugins between two writes of the lease: the first says that
// there may be something to undo, the second what came of it.
func (p *plugins) attach(ctx context.Context, lists []*cni.List, l *lease) (_ *lease, err error) {
	var undo sys.Undo
	defer undo.OnError(ctx, &err)
	p.collecting.RLock()
	defer p.collecting.RUnlock()
	if err := p.leases.put(l); err != nil {
		return nil, err
	}
	// Both in one: a lease whose DEL failed must stay.
	undo.Add("disconnect", func(ctx context.Context) error { return p.teardown(ctx, l) })
	done := *l
	for i, a := range l.attachments() {
		ips, err := p.run().Add(ctx, lists[i], a.Attachment)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			done.IPs = ips
		}
	}
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

// teardown disconnects a pod from all its networks, the last one first.
func (p *plugins) teardown(ctx context.Context, l *lease) error {
	// A namespace that is gone, be it with the last run of the kernel, is told
	// to plugins as an empty path; a file may be left where it was bound.
	gone := l.BootID != p.bootID || !isNamespace(l.CNI.Netns)
	var errs []error
	for _, a := range slices.Backward(l.attachments()) {
		list, err := cni.Parse(a.File, a.Config)
		if err != nil {
			return fmt.Errorf("CNI configuration in the lease: %w", err)
		}
		at := a.Attachment
		if gone {
			at.Netns = ""
		}
		errs = append(errs, p.run().Del(ctx, list, at))
	}
	if err := errors.Join(errs...); err != nil {
		p.mu.Lock()
		p.dirty = true
		p.mu.Unlock()
		return err
	}
	if err := p.leases.remove(l.PodID); err != nil {
		return err
	}
	p.collectIfDirty()
	return nil
}

func isNamespace(path string) bool {
	return path != "" && sys.InNetNamespace(path, func() error { return nil }) == nil
}
