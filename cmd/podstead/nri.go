package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	nrilog "github.com/containerd/nri/pkg/log"

	"podstead/engine/config"
)

// withPlugins says where NRI plugins are, unless the configuration does: an
// instance beside the default one keeps out of the latter's way.
func (n *nodeOptions) withPlugins(c config.Config, log *slog.Logger) config.Config {
	nrilog.Set(nriLog{log})
	d := config.NRI{Socket: filepath.Join(n.runDir, "nri.sock")}
	if n.isDefault() {
		d = config.NRI{Socket: "/var/run/nri/nri.sock", PluginDir: "/opt/nri/plugins", ConfigDir: "/etc/nri/conf.d"}
	}
	c.NRI.Socket = cmp.Or(c.NRI.Socket, d.Socket)
	c.NRI.PluginDir = cmp.Or(c.NRI.PluginDir, d.PluginDir)
	c.NRI.ConfigDir = cmp.Or(c.NRI.ConfigDir, d.ConfigDir)
	return c
}

// nriLog is where the NRI library logs to. The engine tells itself of what
// matters; the library's own tale is for those who look for a mistake.
type nriLog struct{ log *slog.Logger }

func (l nriLog) say(ctx context.Context, level slog.Level, format string, args []any) {
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "nri", "said", fmt.Sprintf(format, args...))
	}
}

func (l nriLog) Debugf(ctx context.Context, format string, args ...any) {
	l.say(ctx, slog.LevelDebug, format, args)
}

func (l nriLog) Infof(ctx context.Context, format string, args ...any) {
	l.say(ctx, slog.LevelDebug, format, args)
}

func (l nriLog) Warnf(ctx context.Context, format string, args ...any) {
	l.say(ctx, slog.LevelWarn, format, args)
}

func (l nriLog) Errorf(ctx context.Context, format string, args ...any) {
	l.say(ctx, slog.LevelError, format, args)
}
