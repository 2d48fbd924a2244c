package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// tellManager tells a service manager that asked for it that calls are answered
// from now on (sd_notify(3)) and, if it wants to hear of that (WatchdogSec=), that
// they still are: as often as alive returns nil, until ctx ends. An engine that is
// started again says the same again.
func tellManager(ctx context.Context, log *slog.Logger, alive func(context.Context) error) {
	const socket, watchdog = "NOTIFY_SOCKET", "WATCHDOG_USEC"
	to, usec := os.Getenv(socket), os.Getenv(watchdog)
	os.Unsetenv(socket) // plugins have nothing to say there
	os.Unsetenv(watchdog)
	if to == "" {
		return
	}
	tell := func(what string) {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: to, Net: "unixgram"})
		if err == nil {
			conn.SetDeadline(time.Now().Add(5 * time.Second)) // it may not listen
			_, err = conn.Write([]byte(what))
			conn.Close()
		}
		if err != nil {
			log.Warn("the service manager does not hear how the service is", socket, to, "error", err)
		}
	}
	tell("READY=1")
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 {
		return
	}
	go keepTelling(ctx, log, time.Duration(n)*time.Microsecond/2, alive, func() { tell("WATCHDOG=1") })
}

// keepTelling calls tell every so often, unless alive fails or takes longer.
func keepTelling(ctx context.Context, log *slog.Logger, every time.Duration, alive func(context.Context) error, tell func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, every)
		err := alive(limited)
		cancel()
		if err == nil {
			tell()
		} else if ctx.Err() == nil {
			log.Error("the service manager is not told that all is well", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// answers is alive for a runtime: whatever it says of itself, it says it in time.
func answers(rt cri.Runtime) func(context.Context) error {
	return func(ctx context.Context) error {
		_, _ = rt.Status(ctx, &runtimeapi.StatusRequest{})
		return ctx.Err()
	}
}

// agentAnswers is alive for an agent, asked as others ask it.
func (n *nodeOptions) agentAnswers(ctx context.Context) error {
	c := n.client()
	defer c.Close()
	return c.Healthy(ctx)
}
