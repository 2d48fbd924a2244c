package agent

import (
	"context"
	"path/filepath"
	"slices"

	api "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"podstead/agent/internal/csi"
	"podstead/agent/internal/device"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/podsapi"
	"podstead/agent/internal/registry"
)

// newPlugins reads which pods have devices.
func (a *Agent) newPlugins() (err error) {
	if a.cfg.RootDir == "" {
		return nil
	}
	a.plugins = make(chan struct{}, 1)
	changed := func() {
		select {
		case a.plugins <- struct{}{}:
		default: // it will look anyway
		}
	}
	a.node.csi = &csi.Drivers{Node: a.cfg.NodeName, Dir: filepath.Join(a.cfg.RootDir, "plugins", "kubernetes.io", "csi"), Changed: changed, Log: a.cfg.Log}
	if a.node.devices, err = device.New(filepath.Join(a.cfg.StateDir, "devices.json"), changed, a.cfg.Log); err != nil {
		return err
	}
	a.node.devices.Near = a.node.pins.near
	return nil
}

// servePlugins serves plugins of devices and volumes, and those who ask who has
// what.
func (a *Agent) servePlugins(ctx context.Context) {
	m := a.node.devices
	if m == nil {
		return
	}
	here := map[string]bool{}
	for uid := range a.workers {
		here[uid] = true
	}
	m.Keep(here)
	serve := func(f func() error) {
		a.wg.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				a.cfg.Log.Error("plugins are not served", "error", err)
			}
		})
	}
	found := &registry.Registry{Dir: filepath.Join(a.cfg.RootDir, "plugins_registry"), Log: a.cfg.Log, Takers: map[string]registry.Taker{
		api.CSIPlugin: a.node.csi, api.DevicePlugin: device.Registered{Manager: m, Context: ctx}}}
	serve(func() error { return found.Run(ctx) })
	serve(func() error { return m.Run(ctx, filepath.Join(a.cfg.RootDir, "device-plugins")) })
	serve(func() error {
		return podsapi.Serve(ctx, filepath.Join(a.cfg.RootDir, "pods-api", "pods-api.sock"), backend{a})
	})
	serve(func() error {
		return m.Serve(ctx, filepath.Join(a.cfg.RootDir, "pod-resources"), a.board.list, a.node.pins)
	})
	a.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-a.plugins:
			}
			if a.do(ctx, func(context.Context) {
				for _, w := range a.workers {
					w.poke() // it may start now
				}
			}) != nil {
				return
			}
		}
	})
}

// yield gives the devices of a pod that is over to others.
func (w *worker) yield() {
	running := slices.ContainsFunc(w.seen.Containers, func(c observe.Container) bool { return !c.Dead() })
	if w.last.Gone || (w.last.Finished && !running) {
		w.node.devices.Release(w.uid)
		w.node.unpin(w.uid)
	}
}
