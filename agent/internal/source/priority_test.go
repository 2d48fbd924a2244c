package source

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestPriority(t *testing.T) {
	five := int32(5)
	for _, c := range []struct {
		class    string
		priority *int32
		want     int32 // -1: none
		warned   bool
	}{
		{"", nil, -1, false},
		{"", &five, 5, false},
		{"system-node-critical", nil, 2000001000, false},
		{"system-cluster-critical", nil, 2000000000, false},
		{"mine", nil, -1, true},
		{"mine", &five, 5, false},
	} {
		s := corev1.PodSpec{PriorityClassName: c.class, Priority: c.priority}
		warnings := setPriority(&s)
		got := int32(-1)
		if s.Priority != nil {
			got = *s.Priority
		}
		if got != c.want || (len(warnings) > 0) != c.warned {
			t.Errorf("%q: %d, %q; want %+v", c.class, got, warnings, c)
		}
	}
}
