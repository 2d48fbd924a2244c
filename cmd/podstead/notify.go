package main

import (
	"log/slog"
	"net"
	"os"
)

// notifyReady tells a service manager that asked for it that calls are answered
// from now on (sd_notify(3)). An engine that is started again says it again,
// which changes nothing.
func notifyReady(log *slog.Logger) {
	const variable = "NOTIFY_SOCKET"
	to := os.Getenv(variable)
	os.Unsetenv(variable) // plugins have nothing to say there
	if to == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: to, Net: "unixgram"})
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte("READY=1"))
	}
	if err != nil {
		log.Warn("the service manager does not hear that the service is ready", variable, to, "error", err)
	}
}
