package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
)

// stages prints a line for every step a pod takes on its way up, once.
type stages struct {
	out   io.Writer
	start time.Time
	seen  map[podKey]map[string]bool
}

func newStages(w io.Writer) *stages {
	return &stages{out: w, start: time.Now(), seen: map[podKey]map[string]bool{}}
}

func (s *stages) update(change client.Change) {
	p := change.Pod
	if s.seen[keyOf(p)] == nil {
		s.seen[keyOf(p)] = map[string]bool{}
	}
	if e := change.Event; e != nil && worthSaying(e) {
		s.say(p, e.Reason+e.Message, "%s: %s", e.Reason, e.Message)
	}
	if p.Status.PodIP != "" {
		s.say(p, "ip", "has its network: %s", p.Status.PodIP)
	}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		s.container(p, c)
	}
	if settled(p) && p.Status.Phase == corev1.PodRunning {
		s.say(p, "ready", "ready")
		for _, url := range urls(p) {
			s.say(p, url, "open %s", url)
		}
	}
	if change.Type == client.Gone {
		s.say(p, "gone", "gone")
	}
}

// worthSaying leaves out what is normal on the way up: a probe that is asked
// before the program listens fails once or twice.
func worthSaying(e *corev1.Event) bool {
	if e.Reason == "Unhealthy" && e.Count < 3 {
		return false
	}
	return e.Type == corev1.EventTypeWarning || e.Reason == "Pulling"
}

func (s *stages) container(p *corev1.Pod, c corev1.ContainerStatus) {
	switch {
	case c.State.Running != nil:
		s.say(p, c.ContainerID+"up", "%s started", c.Name)
	case c.State.Terminated != nil:
		s.say(p, c.ContainerID+"end", "%s ended with %d (%s)", c.Name, c.State.Terminated.ExitCode, c.State.Terminated.Reason)
	case c.State.Waiting != nil && c.State.Waiting.Message != "":
		s.say(p, c.Name+c.State.Waiting.Reason, "%s waits: %s: %s", c.Name, c.State.Waiting.Reason, c.State.Waiting.Message)
	}
	if c.Ready {
		s.say(p, c.ContainerID+"ready", "%s ready", c.Name)
	}
}

func (s *stages) say(p *corev1.Pod, once, format string, args ...any) {
	seen := s.seen[keyOf(p)]
	if seen[once] {
		return
	}
	seen[once] = true
	fmt.Fprintf(s.out, "%6dms  %s: %s\n", time.Since(s.start).Milliseconds(), keyOf(p), fmt.Sprintf(format, args...))
}

// urls are the addresses at which the host serves a pod's TCP ports.
func urls(p *corev1.Pod) []string {
	var out []string
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			host := port.HostIP
			if host == "" || host == "0.0.0.0" {
				host = "localhost"
			}
			if port.HostPort != 0 && (port.Protocol == "" || port.Protocol == corev1.ProtocolTCP) {
				out = append(out, fmt.Sprintf("http://%s:%d", host, port.HostPort))
			}
		}
	}
	return out
}

// notifyInterrupt delivers the next Ctrl-C.
func notifyInterrupt() (<-chan os.Signal, func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	return ch, func() { signal.Stop(ch) }
}
