package pinning

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"podstead/agent/internal/numa"
)

// eight is a machine of two sockets with two cores of two threads each.
func eight() (m numa.Machine) {
	for i := range 8 {
		m.CPUs = append(m.CPUs, numa.CPU{ID: i, Core: i % 4, Node: i % 4 / 2, Socket: i % 4 / 2, Cache: i % 4 / 2})
	}
	for range 2 {
		m.Nodes = append(m.Nodes, numa.Node{ID: len(m.Nodes), Memory: map[string]uint64{"memory": 4 << 30}})
	}
	return m
}

// pod makes a Guaranteed pod: "name=cpu", "init:name=cpu", "sidecar:name=cpu".
func pod(uid string, list ...string) *corev1.Pod {
	p := &corev1.Pod{}
	p.UID, p.Name = types.UID(uid), uid
	for _, text := range list {
		name, cpu, _ := strings.Cut(text, "=")
		c := corev1.Container{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("1Gi")}}}
		c.Resources.Limits = maps.Clone(c.Resources.Requests)
		kind, short, _ := strings.Cut(name, ":")
		switch kind {
		case "init", "sidecar":
			if c.Name = short; kind == "sidecar" {
				always := corev1.ContainerRestartPolicyAlways
				c.RestartPolicy = &always
			}
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		default:
			c.Name = name
			p.Spec.Containers = append(p.Spec.Containers, c)
		}
	}
	return p
}

func open(t *testing.T, file string, m numa.Machine, p Policy) (*Book, string) {
	t.Helper()
	var log bytes.Buffer
	b, err := Open(file, m, p, Events{}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b, log.String()
}

func (b *Book) text() string {
	var out []string
	for _, uid := range slices.Sorted(maps.Keys(b.pods)) {
		for _, name := range slices.Sorted(maps.Keys(b.pods[uid])) {
			g := b.pods[uid][name]
			text := fmt.Sprintf("%s/%s=%s", uid, name, g.CPUs)
			if len(g.Near) > 0 {
				text += "@" + g.Near.String()
			}
			if len(g.Nodes) > 0 {
				text += "+" + g.Nodes.String()
			}
			if len(g.CPUs)+len(g.Near)+len(g.Nodes) > 0 {
				out = append(out, text)
			}
		}
	}
	return strings.Join(append(out, "shared="+b.shared().String()), " ")
}

func TestBook(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cpus.json")
	static := Policy{Static: true, ReservedCPU: resource.MustParse("1500m")}
	b, log := open(t, file, eight(), static)
	if got := b.text(); got != "shared=0-7" || b.reserved.String() != "0,4" || log != "" {
		t.Fatal(got, b.reserved, log)
	}
	woken := make(chan string, 10)
	admit := func(p *corev1.Pod, want string) {
		t.Helper()
		if no := b.Admit(Ask{Pod: p, Wake: func() { woken <- p.Name }}); no != nil {
			t.Errorf("%s: %+v", p.Name, no)
		}
		if got := b.text(); got != want {
			t.Errorf("%s: %s, want %s", p.Name, got, want)
		}
	}
	admit(pod("shares", "a=500m", "b=1500m"), "shared=0-7")
	// What an init container has is used again, what a sidecar has is not.
	admit(pod("inits", "init:i=3", "sidecar:s=1", "a=1"), "inits/a=2 inits/i=2-3,6 inits/s=3 shared=0-1,4-5,7")
	admit(pod("inits", "init:i=3", "sidecar:s=1", "a=1"), "inits/a=2 inits/i=2-3,6 inits/s=3 shared=0-1,4-5,7")
	no := b.Admit(Ask{Pod: pod("big", "a=4"), Wake: func() { woken <- "big" }})
	if no == nil || no.Reason != "UnexpectedAdmissionError" || !strings.Contains(no.Message, "requested=4, available=3,") {
		t.Errorf("%+v", no)
	}
	half := pod("half", "a=1", "b=3")
	if no := b.Admit(Ask{Pod: half}); no == nil || b.pods["half"] != nil {
		t.Errorf("all or nothing: %+v, %s", no, b.text())
	}

	if got := b.PerNode(); got[0] != 0 || got[1] != 3 {
		t.Errorf("by node: %v", got)
	}
	again, log := open(t, file, eight(), static)
	if again.text() != b.text() || log != "" {
		t.Errorf("read again: %s, %s", again.text(), log)
	}
	less := eight()
	less.CPUs = less.CPUs[:5]
	if less, log := open(t, file, less, Policy{Static: true, Reserved: numa.CPUs{0}}); less.pods["inits"] != nil || !strings.Contains(log, "uid=inits") || !strings.Contains(log, "the machine has no processors 6") {
		t.Errorf("on less: %s, %s", less.text(), log)
	}
	open(t, file, eight(), static)
	b.save()
	if other, log := open(t, file, eight(), Policy{Static: true, Reserved: numa.CPUs{2}}); other.pods["inits"] != nil || !strings.Contains(log, "processors 2 are reserved now") {
		t.Errorf("others reserved: %s, %s", other.text(), log)
	}
	b.save()
	if off, _ := open(t, file, eight(), Policy{}); off.pods["inits"] != nil || off.Set("inits", "a") != "0-7" || !off.Told() {
		t.Errorf("without the policy: %s", off.text())
	}
	if off, _ := open(t, file, eight(), Policy{}); off != nil || off.Set("x", "a") != "" || off.Admit(Ask{Pod: pod("x", "a=1")}) != nil {
		t.Error("there is a book without a policy")
	}

	b.Keep(map[string]bool{"big": true})
	if got := <-woken; got != "big" || b.text() != "shared=0-7" {
		t.Error(got, b.text())
	}
	admit(pod("big", "a=4"), "big/a=2-3,6-7 shared=0-1,4-5")
	if no := b.Admit(Ask{Pod: pod("next", "a=3"), Wake: func() { woken <- "next" }}); no == nil {
		t.Error(b.text())
	}
	admit(pod("big", "a=1"), "big/a=1 shared=0,2-7") // by another definition
	for got := ""; got != "next"; {
		got = <-woken // or an earlier one
	}
}

// TestReserved: what is reserved has to be there, and is not shared if that is strict.
func TestReserved(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cpus.json")
	for want, p := range map[string]Policy{
		"to be greater than zero":                                   {Static: true},
		"reservedSystemCPUs: the machine has no processors 8":       {Static: true, Reserved: numa.CPUs{0, 8}},
		"not enough cpus available to satisfy request: requested=9": {Static: true, ReservedCPU: resource.MustParse("9")},
	} {
		if _, err := Open(file, eight(), p, Events{}, slog.Default()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	b, _ := open(t, file, eight(), Policy{Static: true, Reserved: numa.CPUs{0, 4}, Options: numa.Options{StrictReservation: true, FullCores: true}})
	if got := b.text(); got != "shared=1-3,5-7" {
		t.Error(got)
	}
	if no := b.Admit(Ask{Pod: pod("odd", "a=3")}); no == nil || no.Reason != "SMTAlignmentError" || no.Message != "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2" {
		t.Errorf("%+v", no)
	}
	if no := b.Admit(Ask{Pod: pod("all", "a=6")}); no != nil || b.text() != "all/a=1-3,5-7 shared=0,4" {
		t.Errorf("%+v, %s", no, b.text())
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, log := open(t, file, eight(), Policy{Static: true, Reserved: numa.CPUs{0}}); b.pods["all"] != nil || !strings.Contains(log, "level=ERROR") {
		t.Error(b.text(), log)
	}
}
