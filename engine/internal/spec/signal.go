package spec

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The range of real-time signals that programs use: libc keeps 32 and 33.
const (
	sigrtmin = 34
	sigrtmax = 64
)

var signalAlias = map[string]string{"SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO"}

// StopSignal finds the signal that asks a container to end: the request's, or
// else the image's, or else SIGTERM. A signal that the image names and nobody
// knows is passed over, since the image is no reason to refuse a pod.
func StopSignal(c *runtimeapi.ContainerConfig, imageSignal string) (syscall.Signal, runtimeapi.Signal) {
	if c.GetStopSignal() != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		if n := criSignalNumber(c.StopSignal); n != 0 {
			return n, c.StopSignal
		}
	}
	if n := ParseSignal(imageSignal); n != 0 {
		return n, criSignal(n)
	}
	return unix.SIGTERM, runtimeapi.Signal_SIGNAL_SIGTERM
}

// ParseSignal reads "SIGTERM", "TERM", "15" or "SIGRTMIN+3"; 0 if it is none.
func ParseSignal(s string) syscall.Signal {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigrtmax {
			return 0
		}
		return syscall.Signal(n)
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if a, ok := signalAlias[name]; ok {
		name = a
	}
	if n := unix.SignalNum(name); n != 0 {
		return n
	}
	for _, base := range []struct {
		name string
		n    int
	}{{"SIGRTMIN", sigrtmin}, {"SIGRTMAX", sigrtmax}} {
		offset, ok := strings.CutPrefix(name, base.name)
		if !ok {
			continue
		}
		d := 0
		if offset != "" {
			var err error
			if d, err = strconv.Atoi(offset); err != nil {
				return 0
			}
		}
		if n := base.n + d; n >= sigrtmin && n <= sigrtmax {
			return syscall.Signal(n)
		}
	}
	return 0
}

// criSignalNumber maps SIGNAL_SIGRTMINPLUS1 and the like to numbers.
func criSignalNumber(s runtimeapi.Signal) syscall.Signal {
	name := strings.TrimPrefix(s.String(), "SIGNAL_")
	name = strings.Replace(name, "PLUS", "+", 1)
	return ParseSignal(strings.Replace(name, "MINUS", "-", 1))
}

// criSignal is the inverse of criSignalNumber: the lowest name of a number.
func criSignal(n syscall.Signal) runtimeapi.Signal {
	for i := 1; i < len(runtimeapi.Signal_name); i++ {
		if s := runtimeapi.Signal(i); criSignalNumber(s) == n {
			return s
		}
	}
	return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
}
