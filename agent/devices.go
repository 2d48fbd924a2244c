package agent

import (
	"context"
	"path/filepath"
	"slices"

	"podstead/agent/internal/device"
	"podstead/agent/internal/observe"
)

// newDevices reads which pods have devices.
func (a *Agent) newDevices() (err error) {
	if a.cfg.RootDir == "" {
		return nil
	}
	a.devices = make(chan struct{}, 1)
	a.node.devices, err = device.New(filepath.Join(a.cfg.StateDir, "devices.json"), func() {
		select {
		case a.devices <- struct{}{}:
		default: // it will look anyway
		}
	}, a.cfg.Log)
	return err
}

// serveDevices serves plugins, and those who ask who has what.
func (a *Agent) serveDevices(ctx context.Context) {
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
	serve(func() error { return m.Run(ctx, filepath.Join(a.cfg.RootDir, "device-plugins")) })
	serve(func() error { return m.Serve(ctx, filepath.Join(a.cfg.RootDir, "pod-resources"), a.board.list) })
	a.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-a.devices:
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
	}
}
