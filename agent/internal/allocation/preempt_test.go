package allocation

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestVictims chooses who goes, as the tests of the kubelet's package do.
func TestVictims(t *testing.T) {
	pod := func(name string, qos corev1.PodQOSClass, cpu, memory string) Request {
		return Request{UID: name, QoS: qos, Requests: list(cpu, memory)}
	}
	const g, b, e = corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort
	small, big := pod("small", b, "100m", "100Mi"), pod("big", b, "300m", "300Mi")
	none, sure := pod("none", e, "0", "0"), pod("sure", g, "200m", "200Mi")
	for _, c := range []struct {
		what        string
		cpu, memory int64 // missing; cpu in thousandths, memory in MiB
		pods        int64
		there       []Request
		want        string
	}{
		{"nothing is missing", 0, 0, 0, []Request{small, big}, ""},
		{"all together are not enough", 0, 1000, 0, []Request{small, big, sure}, ""},
		{"burstable ones are, whatever is guaranteed", 0, 100, 0, []Request{sure, big, small}, "small"},
		{"the one that is enough, not two", 0, 250, 0, []Request{small, big, sure}, "big"},
		{"the one that leaves the least to be found, and more", 0, 400, 0, []Request{small, big, sure}, "big small"},
		{"guaranteed ones for the rest only", 0, 500, 0, []Request{small, big, sure}, "big sure"},
		{"any pod for a place, the best effort first", 0, 0, 1, []Request{small, sure, none}, "none"},
		{"two things at once", 150, 250, 0, []Request{small, big, sure}, "big"},
		{"equal ones: the smaller", 50, 0, 0, []Request{pod("a", b, "100m", "2Gi"), pod("b", b, "100m", "1Gi")}, "b"},
	} {
		need := lack{}
		for name, n := range map[corev1.ResourceName]int64{corev1.ResourceCPU: c.cpu, corev1.ResourceMemory: c.memory << 20, corev1.ResourcePods: c.pods} {
			if n > 0 {
				need[name] = n
			}
		}
		var got []string
		for _, v := range victims(need, c.there) {
			got = append(got, v.UID)
		}
		slices.Sort(got)
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %q go, want %q", c.what, text, c.want)
		}
	}
}

// TestCriticalPodsPreempt looks at who gets what while pods go for a critical one.
func TestCriticalPodsPreempt(t *testing.T) {
	l := &Ledger{Allocatable: list("2", "2Gi")}
	var told, asked []string
	take := func(uid string, priority int32, cpu string) *Shortage {
		return l.Take(Request{UID: uid, Priority: priority, Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}, QoS: corev1.PodQOSBurstable,
			Preempts: priority >= 100, Free: func() {
				asked = append(asked, uid)
			}, Yield: func(lack corev1.ResourceName) { told = append(told, uid+" for "+string(lack)) }})
	}
	expect := func(when, want string) {
		t.Helper()
		slices.Sort(told)
		if got := strings.Join(told, ", "); got != want {
			t.Errorf("%s: told %q, want %q", when, got, want)
		}
		told = nil
	}
	for _, uid := range []string{"a", "b"} {
		if s := take(uid, 0, "1"); s != nil {
			t.Fatal(s)
		}
	}
	if take("more", 50, "1500m") == nil {
		t.Error("more fits")
	}
	expect("more than others, and not critical", "")
	if s := take("critical", 100, "1500m"); s == nil || s.Used != 2000 {
		t.Errorf("critical: %v", s)
	}
	expect("critical", "a for cpu, b for cpu")
	take("critical", 100, "1500m")
	expect("critical asks again", "")
	asked = nil
	l.Hold(l.held["a"].Request) // it was edited, and begins anew
	if !slices.Contains(asked, "critical") {
		t.Error("who was to go stays, and the critical pod is not told")
	}
	take("critical", 100, "1500m")
	expect("critical asks once more", "a for cpu")
	l.Release("a")
	if take("a", 0, "1") == nil || take("more", 50, "1") == nil || take("tiny", 0, "100m") == nil {
		t.Error("what is left for the critical pod goes to another")
	}
	l.Release("b")
	if s := take("critical", 100, "1500m"); s != nil {
		t.Errorf("critical: %v", s)
	}
	if s := take("tiny", 0, "100m"); s != nil {
		t.Errorf("beside it: %v", s)
	}
	if take("second", 100, "1500m") == nil {
		t.Error("second fits")
	}
	expect("of the same priority", "")
	if take("third", 200, "1950m") == nil {
		t.Error("third fits")
	}
	expect("of a higher one", "critical for cpu, tiny for cpu")
	if take("fourth", 200, "3") == nil {
		t.Error("fourth fits")
	}
	expect("in vain", "")
}
