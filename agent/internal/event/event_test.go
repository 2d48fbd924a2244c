package event

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       corev1.PodSpec{InitContainers: []corev1.Container{{Name: "i"}}, Containers: []corev1.Container{{Name: "c"}}},
	}
}

func TestEqualEventsAreCounted(t *testing.T) {
	var told []string
	l := NewLog("n", func(_, name string, e corev1.Event) { told = append(told, fmt.Sprint(name, e.Reason, e.Count)) })
	l.Add(pod("a"), "c", "Normal", "X", "one")
	l.Add(pod("a"), "i", "Normal", "X", "one")
	l.Add(pod("a"), "c", "Normal", "X", "one")
	var got []string
	for _, e := range l.Of("ns", "a") {
		got = append(got, fmt.Sprint(e.InvolvedObject.FieldPath, " ", e.Count))
	}
	if want := "spec.initContainers{i} 1, spec.containers{c} 2"; strings.Join(got, ", ") != want {
		t.Errorf("events %q, want %q", got, want)
	}
	if strings.Join(told, " ") != "aX1 aX1 aX2" {
		t.Errorf("told %q", told)
	}
}

func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog("n", nil)
		for i := range 3 * perPod {
			l.Add(pod("a"), "", "Normal", "X", fmt.Sprint(i))
		}
		if list := l.Of("ns", "a"); len(list) != perPod || list[perPod-1].Message != fmt.Sprint(3*perPod-1) {
			t.Errorf("%d events", len(list))
		}
		for i := range maxPods + 10 {
			time.Sleep(time.Second)
			l.Add(pod(fmt.Sprint("p", i)), "", "Normal", "X", "y")
		}
		if len(l.pods) != maxPods || len(l.Of("ns", "a")) != 0 || len(l.Of("ns", fmt.Sprint("p", maxPods+9))) != 1 {
			t.Errorf("%d pods have events", len(l.pods))
		}
	})
}
