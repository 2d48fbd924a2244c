package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Time that all plugins of a network together have for one verb, if the caller
// gives no less. A plugin that hangs holds up its own pod only.
const (
	addTimeout    = 3 * time.Minute
	delTimeout    = time.Minute
	checkTimeout  = 30 * time.Second
	gcTimeout     = 30 * time.Second // during which no pod can be attached
	statusTimeout = 5 * time.Second
)

// Plugins runs plugins. It is safe for concurrent use, but for one attachment
// at a time.
type Plugins struct {
	dirs []string
	cni  *libcni.CNIConfig
}

// New makes Plugins that are searched for in dirs; results are cached below
// cacheDir, from where plugins get them back at DEL.
func New(dirs []string, cacheDir string) *Plugins {
	return &Plugins{dirs: dirs, cni: libcni.NewCNIConfigWithCacheDir(dirs, cacheDir, &executor{})}
}

// Attachment is one interface in one pod, and all that plugins are told of it.
type Attachment struct {
	ContainerID  string         `json:"containerID"`
	Netns        string         `json:"netns"` // "": it is gone
	Interface    string         `json:"interface"`
	Args         [][2]string    `json:"args,omitempty"`
	Capabilities map[string]any `json:"capabilities,omitempty"`
}

func (a Attachment) runtime() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: a.ContainerID, NetNS: a.Netns, IfName: a.Interface,
		Args: a.Args, CapabilityArgs: a.Capabilities,
	}
}

// Add attaches and returns the addresses in the pod.
func (p *Plugins) Add(ctx context.Context, l *List, a Attachment) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	res, err := p.cni.AddNetworkList(ctx, l.list, a.runtime())
	if err != nil {
		return nil, fmt.Errorf("CNI ADD of network %s: %w", l.Name(), err)
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return nil, fmt.Errorf("CNI result of network %s: %w", l.Name(), err)
	}
	ips, err := addresses(r)
	if err != nil {
		return nil, fmt.Errorf("CNI result of network %s: %w", l.Name(), err)
	}
	return ips, nil
}

// addresses picks the addresses of the pod: an address may be tied to an
// interface, and that be one of the host.
func addresses(r *types100.Result) (ips []netip.Addr, err error) {
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(r.Interfaces) {
				return nil, fmt.Errorf("address %s is of interface %d of %d", ip.Address.String(), *i, len(r.Interfaces))
			}
			if r.Interfaces[*i].Sandbox == "" {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("address %s is not valid", ip.Address.String())
		}
		ips = append(ips, addr.Unmap())
	}
	if len(ips) == 0 {
		return nil, errors.New("no address")
	}
	return ips, nil
}

// Del detaches; it is repeatable.
func (p *Plugins) Del(ctx context.Context, l *List, a Attachment) error {
	ctx, cancel := context.WithTimeout(ctx, delTimeout)
	defer cancel()
	if err := p.cni.DelNetworkList(ctx, l.list, a.runtime()); err != nil {
		return fmt.Errorf("CNI DEL of network %s: %w", l.Name(), err)
	}
	return nil
}

// DelUnknown detaches what is in the cache although known says that nobody has
// it: its record was lost.
func (p *Plugins) DelUnknown(ctx context.Context, known func(containerID string) bool) error {
	cached, err := p.cni.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("list CNI cache: %w", err)
	}
	var errs []error
	for _, c := range cached {
		if known(c.ContainerID) {
			continue
		}
		l, err := Parse("cache", c.Config)
		if err != nil {
			errs = append(errs, fmt.Errorf("CNI cache of %s: %w", c.ContainerID, err))
			continue
		}
		errs = append(errs, p.Del(ctx, l, Attachment{
			ContainerID: c.ContainerID, Interface: c.IfName, Args: c.CniArgs, Capabilities: c.CapabilityArgs,
		}))
	}
	return errors.Join(errs...)
}

// Check asks the plugins whether an attachment still is as they made it. A
// network that is too old for the question has no objections.
func (p *Plugins) Check(ctx context.Context, l *List, a Attachment) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := p.cni.CheckNetworkList(ctx, l.list, a.runtime())
	if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fmt.Errorf("CNI CHECK of network %s, %s: %w", l.Name(), a.Interface, err)
	}
	return nil
}

// UsualCache is where libcni keeps results unless it is told otherwise.
const UsualCache = "/var/lib/cni"

// Cached lists by network what the libcni caches at dirs say is attached. A
// directory need not exist.
func Cached(dirs []string) (map[string][]Attachment, error) {
	found := map[string][]Attachment{}
	for _, dir := range dirs {
		cached, err := libcni.NewCNIConfigWithCacheDir(nil, dir, nil).GetCachedAttachments("")
		if err != nil {
			return nil, fmt.Errorf("list CNI cache %s: %w", dir, err)
		}
		for _, c := range cached {
			found[c.Network] = append(found[c.Network], Attachment{ContainerID: c.ContainerID, Interface: c.IfName})
		}
	}
	return found, nil
}

// GC tells plugins of a 1.1 network to free all that is not attached. Nothing
// may be attached or detached meanwhile.
func (p *Plugins) GC(ctx context.Context, l *List, attached []Attachment) error {
	ctx, cancel := context.WithTimeout(ctx, gcTimeout)
	defer cancel()
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, a := range attached {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.Interface})
	}
	if err := p.cni.GCNetworkList(ctx, l.list, args); err != nil {
		return fmt.Errorf("CNI GC of network %s: %w", l.Name(), err)
	}
	return nil
}

// Status tells why the network cannot be used: a plugin is missing, or says so.
func (p *Plugins) Status(ctx context.Context, l *List) error {
	for _, plugin := range l.list.Plugins {
		if _, err := invoke.FindInPath(plugin.Network.Type, p.dirs); err != nil {
			return &FileError{l.File, fmt.Errorf("plugin %q is in none of %v", plugin.Network.Type, p.dirs)}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := p.cni.GetStatusNetworkList(ctx, l.list); err != nil {
		return fmt.Errorf("CNI STATUS of network %s: %w", l.Name(), err)
	}
	return nil
}

// PortMapping is an element of the capability "portMappings".
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"` // lower case
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth is the capability "bandwidth": bits per second, and bits.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// DNS is the capability "dns".
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// IPRanges is the capability "ipRanges": a set of one range each.
func IPRanges(subnets []netip.Prefix) [][]map[string]string {
	var sets [][]map[string]string
	for _, s := range subnets {
		sets = append(sets, []map[string]string{{"subnet": s.Masked().String()}})
	}
	return sets
}

// Normalize makes capabilities what they are after a way through JSON, so that
// plugins are told the same at ADD and, from a record, at DEL.
func Normalize(capabilities map[string]any) (map[string]any, error) {
	data, err := json.Marshal(capabilities)
	if err != nil {
		return nil, err
	}
	var norm map[string]any
	return norm, json.Unmarshal(data, &norm)
}

// Unserved lists the capabilities that a pod asks for and no plugin declares.
func (l *List) Unserved(capabilities map[string]any) []string {
	var names []string
	for name := range capabilities {
		if !l.Has(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
