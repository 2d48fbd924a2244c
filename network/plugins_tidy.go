package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"podstead/network/internal/cni"
)

// reconcile frees what no lease speaks of. What takes time and what is only for
// the log is done while the node is at work already.
func (p *plugins) reconcile(ctx context.Context) error {
	known := func(id string) bool { return p.leases.get(id) != nil }
	err := p.run().DelUnknown(ctx, known)
	p.later(func(ctx context.Context) {
		p.collect(ctx)
		p.checkAll(ctx)
	})
	return err
}

// collectIfDirty collects garbage after something that could not be undone at
// first: plugins may have left more than their DEL knows of.
func (p *plugins) collectIfDirty() {
	p.mu.Lock()
	was := p.dirty
	p.dirty = false
	p.mu.Unlock()
	if was {
		p.later(p.collect)
	}
}

// collect has the plugins of the current networks free what nobody has (GC,
// CNI 1.1). Valid is what our leases say, and what other runtimes of this host
// say that share the network: without it they would lose their pods' addresses.
func (p *plugins) collect(ctx context.Context) {
	lists, err := p.current()
	if err != nil || len(lists) == 0 || p.cfg.CNINoGC {
		return
	}
	others, err := p.othersAttachments()
	if err != nil {
		p.log.Warn("CNI GC is left out: what others have is not known", "error", err)
		return
	}
	p.collecting.Lock()
	defer p.collecting.Unlock()
	for _, list := range lists {
		valid := others[list.Name()]
		for _, l := range p.leases.all() {
			for _, a := range l.attachments() {
				valid = append(valid, a.Attachment)
			}
		}
		if err := p.run().GC(ctx, list, valid); err != nil && ctx.Err() == nil {
			p.log.Warn("CNI plugins did not collect garbage", "network", list.Name(), "file", list.File, "error", err)
		}
	}
}

// othersAttachments lists by network what other runtimes have attached: those
// with libcni's usual cache, and other instances of this program.
func (p *plugins) othersAttachments() (map[string][]cni.Attachment, error) {
	dirs := p.cfg.CNICacheDirs
	if dirs == nil {
		dirs = []string{cni.UsualCache}
	}
	instances, err := p.host.Instances()
	if err != nil {
		return nil, err
	}
	for _, i := range instances {
		if i.StateDir != p.cfg.StateDir {
			dirs = append(dirs, cacheDir(i.StateDir))
		}
	}
	return cni.Cached(dirs)
}

// check asks the plugins of a pod whether it still is as they made it (CHECK).
func (p *plugins) check(ctx context.Context, l *lease) error {
	var errs []error
	for _, a := range l.attachments() {
		list, err := cni.Parse(a.File, a.Config)
		if err != nil {
			return fmt.Errorf("CNI configuration in the lease: %w", err)
		}
		errs = append(errs, p.run().Check(ctx, list, a.Attachment))
	}
	return errors.Join(errs...)
}

// checkAll logs what plugins find fault with after a restart. Nothing is done
// about it: see connected.
func (p *plugins) checkAll(ctx context.Context) {
	for _, l := range p.leases.all() {
		if l.CNI == nil || l.BootID != p.bootID || ctx.Err() != nil {
			continue
		}
		if err := p.check(ctx, l); err != nil && ctx.Err() == nil && p.leases.get(l.PodID) == l {
			p.log.Warn("CNI plugins find fault with a pod's network", "pod", l.Namespace+"/"+l.Name, "sandbox", l.PodID, "error", err)
		}
	}
}

// status tells why plugins cannot connect pods.
func (p *plugins) status(ctx context.Context, lists []*cni.List) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, list := range lists {
		group.Go(func() error { return p.run().Status(ctx, list) })
	}
	return group.Wait()
}

func (p *plugins) destroy() error { return os.RemoveAll(cacheDir(p.cfg.StateDir)) }
