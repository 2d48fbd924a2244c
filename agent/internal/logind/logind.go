// Package logind hears from systemd-logind that the machine is about to go down,
// and holds it up until that has been dealt with, by an inhibitor lock of the
// kind "delay". It needs the system's D-Bus and knows nothing of pods.
package logind

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	name    = "org.freedesktop.login1"
	path    = "/org/freedesktop/login1"
	manager = "org.freedesktop.login1.Manager"
)

// Watch calls down when the machine is about to go down, and lets it go when
// down returns; it calls up if the machine stays up after all. need is how long
// down may take: logind itself grants no more than its InhibitDelayMaxSec. It
// returns when ctx ends or the bus is lost.
func Watch(ctx context.Context, need time.Duration, down, up func(context.Context), log *slog.Logger) error {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connect to the system's D-Bus: %w", err)
	}
	defer conn.Close()
	object := conn.Object(name, path)
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForShutdown")); err != nil {
		return fmt.Errorf("listen to logind: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	lock, err := inhibit(ctx, object)
	if err != nil {
		return err
	}
	defer func() { lock.Close() }()
	if v, err := object.GetProperty(manager + ".InhibitDelayMaxUSec"); err == nil {
		if most, ok := v.Value().(uint64); ok && time.Duration(most)*time.Microsecond < need {
			log.Warn("logind holds a shutdown up for less than shutdownGracePeriod; set InhibitDelayMaxSec in logind.conf",
				"InhibitDelayMaxSec", time.Duration(most)*time.Microsecond, "shutdownGracePeriod", need)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, ok := <-signals:
			if !ok {
				return fmt.Errorf("the connection to D-Bus has ended")
			}
			begins, isBool := first(s)
			if s.Name != manager+".PrepareForShutdown" || !isBool {
				continue
			}
			if begins {
				down(ctx)
				lock.Close()
				continue
			}
			up(ctx)
			lock.Close()
			if lock, err = inhibit(ctx, object); err != nil {
				return err
			}
		}
	}
}

func first(s *dbus.Signal) (value, ok bool) {
	if len(s.Body) == 0 {
		return false, false
	}
	value, ok = s.Body[0].(bool)
	return value, ok
}

// inhibit takes the lock, which lasts until the file is closed.
func inhibit(ctx context.Context, object dbus.BusObject) (*os.File, error) {
	var fd dbus.UnixFD
	err := object.CallWithContext(ctx, manager+".Inhibit", 0, "shutdown", "podstead", "pods are to end gracefully", "delay").Store(&fd)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err() // the call was cut short
	}
	if err != nil {
		return nil, fmt.Errorf("have logind wait for pods: %w", err)
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}
