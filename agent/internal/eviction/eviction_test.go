package eviction

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const mib = 1 << 20

func TestSettings(t *testing.T) {
	type m = map[string]string
	for _, c := range []struct {
		name     string
		settings Settings
		want     string // thresholds, or the errors
	}{
		{"the kubelet's defaults", Settings{}, "memory.available<104857600 nodefs.available<10% nodefs.inodesFree<5% imagefs.available<15% imagefs.inodesFree<5%"},
		{"hard ones stand for the defaults", Settings{Hard: m{"pid.available": "3%"}}, "pid.available<3%"},
		{"or change them", Settings{Hard: m{"memory.available": "1Gi", "imagefs.available": "0%", "nodefs.inodesFree": "100%"}, MergeDefaults: true},
			"memory.available<1073741824 nodefs.available<10% imagefs.inodesFree<5%"},
		{"none at all", Settings{Hard: m{"memory.available": "0%"}}, ""},
		{"soft", Settings{Hard: m{"memory.available": "1Mi"}, Soft: m{"memory.available": "2Mi", "nodefs.available": "20%"},
			SoftGracePeriod: m{"memory.available": "90s", "nodefs.available": "1m"}, MinimumReclaim: m{"memory.available": "5Mi", "nodefs.available": "1%"}},
			"memory.available<1048576+5242880 memory.available<2097152+5242880 for 1m30s nodefs.available<20%+1% for 1m0s"},
		{"soft without a period", Settings{Hard: m{}, Soft: m{"memory.available": "2Mi"}},
			"evictionSoftGracePeriod[memory.available]: it must be there, evictionSoft has memory.available"},
		{"mistakes", Settings{Hard: m{"memory.available": "-1", "nodefs.available": "101%", "disk": "1"}, SoftGracePeriod: m{"pid.available": "x"},
			MinimumReclaim: m{"containerfs.available": "1Gi", "allocatableMemory.available": "1"}, TransitionPeriod: -1, MaxPodGraceSeconds: -1},
			`evictionPressureTransitionPeriod: -1ns is negative
evictionMaxPodGracePeriod: -1 is negative
evictionMinimumReclaim[containerfs.available]: containers write to the file system of images; set imagefs.available
evictionHard[disk]: there is no such signal; there are [memory.available allocatableMemory.available nodefs.available nodefs.inodesFree imagefs.available imagefs.inodesFree pid.available]
evictionHard[memory.available]: "-1" is no positive quantity and no percentage
evictionHard[nodefs.available]: "101%" is no percentage between 0% and 100%
evictionSoftGracePeriod[pid.available]: "x" is no duration, or negative`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := c.settings.Policy()
			var got []string
			for _, x := range p.Thresholds {
				s := fmt.Sprintf("%s<%s", x.Signal, x.Amount.text())
				if x.MinReclaim != (Amount{}) {
					s += "+" + x.MinReclaim.text()
				}
				if x.Soft {
					s += " for " + x.Grace.String()
				}
				got = append(got, s)
			}
			text := strings.Join(got, " ")
			if err != nil {
				text = err.Error()
			}
			if text != c.want {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
		})
	}
}

func (a Amount) text() string {
	if a.Quantity != 0 {
		return fmt.Sprint(a.Quantity)
	}
	return fmt.Sprintf("%g%%", a.Share*100)
}

// TestWatch plays readings of memory, a line each: what is available, and what
// follows from it.
func TestWatch(t *testing.T) {
	hard := Threshold{Signal: MemoryAvailable, Amount: Amount{Quantity: 100}, MinReclaim: Amount{Quantity: 20}}
	soft := Threshold{Signal: MemoryAvailable, Amount: Amount{Quantity: 200}, Soft: true, Grace: 30 * time.Second}
	w := Watch{Policy: Policy{Thresholds: []Threshold{hard, soft}, Transition: 5 * time.Minute}}
	now := time.Unix(1e9, 0)
	for _, step := range []struct {
		after     time.Duration
		available int64
		act       string
		condition bool
		wake      time.Duration
		soon      bool
	}{
		{0, 500, "", false, 0, false},
		{10 * time.Second, 300, "", false, 0, true},                             // near a threshold
		{10 * time.Second, 150, "", true, 30 * time.Second, true},               // the soft one, not long enough
		{10 * time.Second, 250, "", true, 4*time.Minute + 50*time.Second, true}, // it flaps: its grace begins anew
		{10 * time.Second, 150, "", true, 30 * time.Second, true},
		{30 * time.Second, 150, "soft", true, 5 * time.Minute, true},
		{time.Second, 99, "hard", true, 5 * time.Minute, true},
		{time.Second, 110, "hard", true, 5 * time.Minute, true}, // less than the minimum is reclaimed
		{time.Second, 120, "soft", true, 5 * time.Minute, true},
		{time.Second, 110, "soft", true, 5 * time.Minute, true}, // over the hard one again
		{time.Second, 1000, "", true, 4*time.Minute + 59*time.Second, false},
		{5 * time.Minute, 1000, "", false, 0, false},
	} {
		now = now.Add(step.after)
		v := w.Look(now, Observation{MemoryAvailable: {step.available, 2000}})
		act := ""
		if v.Act != nil {
			act = map[bool]string{true: "soft", false: "hard"}[v.Act.Soft]
		}
		wake := time.Duration(0)
		if !v.Wake.IsZero() {
			wake = v.Wake.Sub(now)
		}
		if act != step.act || slices.Contains(v.Conditions, corev1.NodeMemoryPressure) != step.condition || wake != step.wake || v.Soon != step.soon {
			t.Errorf("at %d: act %q, conditions %v, wake in %s, soon %t; want %+v", step.available, act, v.Conditions, wake, v.Soon, step)
		}
	}
}

func TestWhatIsActedOnFirst(t *testing.T) {
	w := Watch{Policy: Default()}
	seen := Observation{NodeFsAvailable: {1, 100}, MemoryAvailable: {1, 1 << 40}, PidsAvailable: {0, 100}}
	now := time.Unix(1e9, 0)
	v := w.Look(now, seen)
	if v.Act.Signal != MemoryAvailable || len(v.Met) != 3 || fmt.Sprint(v.Conditions) != "[MemoryPressure PIDPressure]" {
		t.Errorf("%+v", v)
	}
	delete(seen, MemoryAvailable) // not to be read: not acted on
	if v := w.Look(now.Add(1), seen); v.Act.Signal != PidsAvailable {
		t.Errorf("%+v", v)
	}
	delete(seen, PidsAvailable)
	if v := w.Look(now.Add(2), seen); v.Act.Signal != NodeFsAvailable || !v.Act.Spares {
		t.Errorf("%+v", v)
	}
	if s := v.Met[0].String(); s != "memory.available is 1 of 1Ti, the threshold is 100Mi" {
		t.Error(s)
	}
}

func pod(name string, priority int32, memory, disk string) *corev1.Pod {
	requests := corev1.ResourceList{}
	if memory != "" {
		requests[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	if disk != "" {
		requests[corev1.ResourceEphemeralStorage] = resource.MustParse(disk)
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{Priority: &priority, Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: requests}}}}}
}

func TestRank(t *testing.T) {
	use := func(p *corev1.Pod, memory, writable, logs, volume, processes int64) Usage {
		return Usage{Pod: p, Memory: memory * mib, Processes: processes,
			Containers: map[string]Container{"c": {Memory: memory * mib, Writable: Disk{writable * mib, writable}, Logs: Disk{logs * mib, logs}}},
			Volumes:    map[string]Disk{"v": {volume * mib, volume}}}
	}
	pods := []Usage{
		use(pod("within", 0, "500Mi", "10Gi"), 400, 300, 0, 100, 9),
		use(pod("over-a-little", 0, "100Mi", ""), 110, 1, 0, 500, 7),
		use(pod("over-a-lot", 0, "", ""), 200, 50, 50, 0, 5),
		use(pod("over-important", 1000, "", ""), 900, 900, 0, 0, 500),
		use(pod("critical", SystemCritical, "", ""), 5000, 5000, 0, 0, 5000),
		use(pod("idle", 0, "", ""), 0, 0, 0, 0, 0),
	}
	for _, c := range []struct {
		host   Host
		signal Signal
		want   string
	}{
		{Host{}, MemoryAvailable, "over-a-lot over-a-little over-important within"},
		{Host{}, PidsAvailable, "within over-a-little over-a-lot over-important"},
		{Host{}, NodeFsAvailable, "over-a-little over-a-lot over-important within"},
		{Host{}, ImageFsAvailable, "over-a-little over-a-lot over-important within"},
		{Host{OwnImageFs: true}, ImageFsAvailable, "over-a-lot over-a-little over-important within"},
		{Host{OwnImageFs: true}, NodeFsAvailable, "over-a-little over-a-lot within"},
		{Host{OwnImageFs: true}, NodeFsInodes, "over-a-little within over-a-lot"},
	} {
		var names []string
		for _, u := range c.host.Rank(c.signal, pods) {
			names = append(names, u.Pod.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s %+v:\ngot  %s\nwant %s", c.signal, c.host, got, c.want)
		}
	}
}

func TestAdmits(t *testing.T) {
	const memory, disk = corev1.NodeMemoryPressure, corev1.NodeDiskPressure
	type conditions = []corev1.NodeConditionType
	plain, critical, tolerant := pod("p", 0, "", ""), pod("p", SystemCritical, "", ""), pod("p", 0, "", "")
	tolerant.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists}}
	for _, c := range []struct {
		pod        *corev1.Pod
		bestEffort bool
		conditions conditions
		want       bool
	}{
		{plain, true, nil, true},
		{plain, true, conditions{memory}, false},
		{plain, false, conditions{memory}, true},
		{plain, false, conditions{disk}, false},
		{tolerant, true, conditions{memory}, true},
		{tolerant, true, conditions{disk, memory}, false},
		{critical, true, conditions{disk, memory}, true},
	} {
		if got := Admits(c.pod, c.bestEffort, c.conditions); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

func TestMessage(t *testing.T) {
	u := Usage{Pod: pod("p", 0, "100Mi", ""), Containers: map[string]Container{"c": {Memory: 200 * mib, Writable: Disk{Bytes: 3 * mib}}}}
	for signal, want := range map[Signal]string{
		MemoryAvailable: "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. " +
			"Container c was using 200Mi, request is 100Mi, has larger consumption of memory. ",
		NodeFsAvailable: "The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 50Mi. " +
			"Container c was using 3Mi, request is 0, has larger consumption of ephemeral-storage. ",
		PidsAvailable: "The node was low on resource: pids. Threshold quantity: 104857600, available: 52428800. ",
	} {
		m := Met{Threshold: Threshold{Signal: signal, Amount: Amount{Quantity: 100 * mib}}, Reading: Reading{50 * mib, 1000 * mib}}
		if got := (Host{}).Message(m, u); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", signal, got, want)
		}
	}
}

func TestExceeds(t *testing.T) {
	limit := func(q string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(q)}
	}
	size := resource.MustParse("10Mi")
	base := func() *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{
				{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}},
				{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size, Medium: corev1.StorageMediumMemory}}},
			},
			Containers: []corev1.Container{
				{Name: "a", Resources: corev1.ResourceRequirements{Limits: limit("5Mi")}},
				{Name: "b", Resources: corev1.ResourceRequirements{Limits: limit("20Mi")}},
			},
		}}
	}
	for _, c := range []struct {
		volume, a, b int64 // MiB
		want         string
		left         int64
	}{
		{1, 1, 1, "", 4},
		{10, 0, 13, "", 0},
		{11, 0, 0, `Usage of EmptyDir volume "v" exceeds the limit "10Mi". `, 0},
		{10, 0, 16, "Pod ephemeral local storage usage exceeds the total limit of containers 25Mi. ", 0},
		{0, 6, 0, `Container a exceeded its local ephemeral storage limit "5Mi". `, 0},
	} {
		u := Usage{Pod: base(), Volumes: map[string]Disk{"v": {Bytes: c.volume * mib}, "mem": {Bytes: 1 << 40}},
			Containers: map[string]Container{"a": {Writable: Disk{Bytes: c.a * mib}}, "b": {Logs: Disk{Bytes: c.b * mib}}}}
		delete(u.Volumes, "mem") // is not measured
		_, message, left := Exceeds(u)
		if message != c.want || left != c.left*mib {
			t.Errorf("%+v: %q, %d left", c, message, left/mib)
		}
	}
	if any, containers := Limited(base()); !any || !containers {
		t.Error("limits are not seen")
	}
	if any, _ := Limited(pod("p", 0, "1Gi", "1Gi")); any {
		t.Error("a request is no limit")
	}
}

func TestPace(t *testing.T) {
	var p Pace
	now := time.Unix(1e9, 0)
	if !p.Due(now, "a", 1000) {
		t.Error("never measured")
	}
	p.Measured(now, "a", 1000, 50)
	for _, c := range []struct {
		after time.Duration
		pods  string
		bytes int64
		want  bool
	}{
		{10 * time.Second, "a", 1049, false},
		{10 * time.Second, "a", 1050, true}, // enough for one to be over its limit
		{10 * time.Second, "a b", 1000, true},
		{2 * time.Minute, "a", 1000, false}, // nothing was written
		{2 * time.Minute, "a", 999, true},
		{10 * time.Minute, "a", 1000, true},
	} {
		if got := p.Due(now.Add(c.after), c.pods, c.bytes); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// TestEvictionsComeToAnEnd has pods of random sizes, requests and priorities
// fill a node, and evicts as told: in the end the node has what it needs or only
// critical pods are left, no pod goes while there is enough, and none goes
// within its request before one of no more priority that is beyond.
func TestEvictionsComeToAnEnd(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		var pods []Usage
		for i := range r.IntN(20) {
			priority := []int32{0, 0, 10, SystemCritical}[r.IntN(4)]
			p := pod(fmt.Sprint("p", i), priority, fmt.Sprintf("%dMi", r.IntN(200)), "")
			pods = append(pods, Usage{Pod: p, Memory: int64(r.IntN(200)) * mib})
		}
		w := Watch{Policy: Policy{Transition: time.Minute, Thresholds: []Threshold{{Signal: MemoryAvailable, Amount: Amount{Quantity: 100 * mib}, MinReclaim: Amount{Quantity: 50 * mib}}}}}
		now := time.Unix(1e9, 0)
		evicted := false
		for {
			used := int64(0)
			for _, u := range pods {
				used += u.Memory
			}
			free := 1000*mib - used
			v := w.Look(now, Observation{MemoryAvailable: {free, 1000 * mib}})
			now = now.Add(10 * time.Second)
			if v.Act == nil {
				if free < 100*mib || evicted && free < 150*mib {
					t.Fatalf("seed %d: only %d free, and nothing happens", seed, free/mib)
				}
				break
			}
			if free >= 150*mib {
				t.Fatalf("seed %d: %d free, and pods go", seed, free/mib)
			}
			list := Host{}.Rank(MemoryAvailable, pods)
			if len(list) == 0 {
				for _, u := range pods {
					if !Critical(u.Pod) && u.Memory > 0 {
						t.Fatalf("seed %d: %s should go", seed, u.Pod.Name)
					}
				}
				break
			}
			goes := list[0]
			beyond := func(u Usage) bool { return u.Memory > requested(u.Pod, corev1.ResourceMemory) }
			for _, u := range list[1:] {
				if beyond(u) && !beyond(goes) {
					t.Fatalf("seed %d: %s goes before %s", seed, goes.Pod.Name, u.Pod.Name)
				}
			}
			pods = slices.DeleteFunc(pods, func(u Usage) bool { return u.Pod == goes.Pod })
			evicted = true
		}
	}
}
