package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	defaultStateDir = "/var/lib/podstead"
	defaultRunDir   = "/run/podstead"
	defaultLogsDir  = "/var/log/pods"
)

// options are the global flags. Two instances with different directories share
// nothing: names of bridges, nft tables and cgroups come from instance.
type options struct {
	stateDir, runDir, logLevel string
	level                      slog.LevelVar // of the logger, once there is one
}

// isDefault tells whether this is the host's main instance.
func (o *options) isDefault() bool { return o.runDir == defaultRunDir && o.stateDir == defaultStateDir }

// instance is a short name that is unique per run directory.
func (o *options) instance() string {
	if o.isDefault() {
		return "podstead"
	}
	abs, err := filepath.Abs(o.runDir)
	if err != nil {
		abs = o.runDir
	}
	sum := sha256.Sum256([]byte(abs))
	return "ps" + hex.EncodeToString(sum[:4])
}

// cgroupRoot is the cgroup below which everything of this instance lives, the
// kubepods tree included, so that a kubelet beside it is not disturbed.
func (o *options) cgroupRoot() string { return "/" + o.instance() }

// logsDir is where the logs of pods go.
func (o *options) logsDir() string {
	if o.isDefault() {
		return defaultLogsDir
	}
	return filepath.Join(o.stateDir, "logs")
}

func (o *options) criSocket() string   { return filepath.Join(o.runDir, "cri.sock") }
func (o *options) agentSocket() string { return filepath.Join(o.runDir, "agent.sock") }

// prepare makes the directories absolute and makes them.
func (o *options) prepare() error {
	for _, d := range []*string{&o.stateDir, &o.runDir} {
		abs, err := filepath.Abs(*d)
		if err != nil {
			return err
		}
		*d = abs
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return err
		}
	}
	// The kernel takes no longer path of a socket, and says "invalid argument".
	const longest = "/supervisor.sock"
	if most := len(unix.RawSockaddrUnix{}.Path) - 1 - len(longest); len(o.runDir) > most {
		return fmt.Errorf("--run: %s has %d bytes, and sockets in it allow for %d", o.runDir, len(o.runDir), most)
	}
	return nil
}

// logger writes text to standard error, which the supervisor passes through. What
// Kubernetes' libraries log goes the same way: of a stream that was refused, say.
func (o *options) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q is not debug, info, warn or error", o.logLevel)
	}
	o.level.Set(level)
	return o.logTo(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &o.level})), nil
}

// jsonLogger is logger with a JSON object in each line.
func (o *options) jsonLogger() *slog.Logger {
	return o.logTo(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: &o.level}))
}

func (o *options) logTo(h slog.Handler) *slog.Logger {
	log := slog.New(h)
	klog.SetSlogLogger(log)
	return log
}

// setVerbosity changes what is logged to what klog's flag -v means: debugging from
// 4 on, and what Kubernetes' libraries have to say at that level.
func (o *options) setVerbosity(v int) {
	level := slog.LevelInfo
	if v >= 4 {
		level = slog.Level(-v)
	}
	o.level.Set(level)
	var libraries klog.Level
	_ = libraries.Set(strconv.Itoa(v)) // a number is no error
}
