package stats

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podstead/agent/internal/fsusage"
	"podstead/agent/internal/volume"
)

// TestVolumeThatDoesNotAnswer: it is asked once, nobody waits for it but the first
// for a moment, the others are told of, and it is again when it has answered.
func TestVolumeThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := func(name string) *corev1.Pod {
			return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "u1"},
				Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "hung"}, {Name: "fine"}, {Name: "broken"}}}}
		}
		pods := []*corev1.Pod{pod("a"), pod("b")}
		var asked atomic.Int32
		answer := make(chan struct{})
		s := &Source{
			Pods: func() []*corev1.Pod { return pods },
			Volumes: func(context.Context, []*corev1.Pod) map[string]map[string]volume.Place {
				return map[string]map[string]volume.Place{"u1": {"hung": {Path: "/hung", Claim: "h"}, "fine": {Path: "/fine", Claim: "f"}, "broken": {Path: "/broken", Claim: "b"}}}
			},
			Ask: func(_ context.Context, at volume.Place) (fsusage.Usage, error) {
				switch at.Path {
				case "/hung":
					if asked.Add(1) == 2 {
						<-answer
					}
				case "/broken":
					return fsusage.Usage{}, errors.New("broken")
				}
				return fsusage.Usage{Capacity: 7}, nil
			},
			Every: 5 * time.Second,
		}
		claims := func() (names string, took time.Duration) {
			began := time.Now()
			for _, c := range s.Claims(t.Context()) {
				names += c.PVCRef.Name
				if *c.CapacityBytes != 7 {
					t.Errorf("%+v", c)
				}
			}
			return names, time.Since(began)
		}
		for i, c := range []struct {
			wait  time.Duration
			names string
			took  time.Duration
			asked int32
		}{
			{0, "hf", 0, 1},
			{time.Second, "hf", 0, 1},
			{5 * time.Second, "hf", answerSoon, 2}, // it was well a moment ago
			{time.Second, "hf", 0, 2},
			{time.Minute, "f", 0, 2},
			{time.Hour, "f", 0, 2},
		} {
			time.Sleep(c.wait)
			names, took := claims()
			if names != c.names || took != c.took || asked.Load() != c.asked {
				t.Errorf("%d: %q after %v, asked %d times; want %+v", i, names, took, asked.Load(), c)
			}
		}
		close(answer)
		synctest.Wait()
		if names, _ := claims(); names != "hf" {
			t.Errorf("after it has answered: %q", names)
		}
		s.Volumes = func(context.Context, []*corev1.Pod) map[string]map[string]volume.Place { return nil }
		if names, _ := claims(); names != "" || len(s.asked.answers) != 0 {
			t.Errorf("kept of volumes that are gone: %q, %v", names, s.asked.answers)
		}
		s.Every = -1
		s.Volumes = nil
		claims() // nobody is asked
	})
}
