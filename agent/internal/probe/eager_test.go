package probe

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Who listens a moment after the first probe is ready long before the second.
func TestYoungContainersAreProbedMoreOften(t *testing.T) {
	// A port that is taken, so that it stays ours, and at which nobody listens yet.
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	if err := unix.Bind(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	spec := &corev1.Container{Name: "app", ReadinessProbe: &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(addr.(*unix.SockaddrInet4).Port)}},
		PeriodSeconds: 3600, TimeoutSeconds: 60, SuccessThreshold: 1, FailureThreshold: 1,
	}}
	changed := make(chan struct{}, 10)
	failures := 0
	c := Watch(t.Context(), Config{ID: "id", Spec: spec, StartedAt: time.Now(), Target: Target{Spec: spec, PodIP: "127.0.0.1"},
		Changed: func() { changed <- struct{}{} },
		Failure: func(string) {
			failures++
			if err := unix.Listen(socket, 1); err != nil {
				t.Error(err)
			}
		},
	})
	defer c.Stop()
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Fatal("it is not ready after a minute")
	}
	if s := c.State(); !s.Ready || failures != 1 {
		t.Errorf("ready %t after %d failures", s.Ready, failures)
	}
}
