package device_test

import (
	"slices"
	"testing"

	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"podstead/agent/internal/device/devicetest"
	"podstead/agent/internal/numa"
)

// Devices say on which nodes they are: that is a hint, and where their container is to
// be they are taken from there, whatever the plugin prefers.
func TestDevicesNearNodes(t *testing.T) {
	r := start(t, t.TempDir())
	defer r.stop()
	strict := false
	r.Near = func(uid, container string) ([]int, bool) {
		if uid == "anywhere" {
			return nil, strict
		}
		return []int{1}, strict
	}
	p := &devicetest.Plugin{Resource: gpu, Nodes: map[string]int64{"d1": 0, "d2": 0, "d3": 1, "d4": 1}}
	p.Start(t, r.plugins(), "d1", "d2", "d3", "d4")
	r.has(4)
	m := numa.Machine{Nodes: []numa.Node{{ID: 0}, {ID: 1}}}
	preferred := func(hints [][]numa.Hint) (nodes []numa.Mask) {
		for _, list := range hints {
			for _, h := range list {
				if h.Preferred {
					nodes = append(nodes, h.Nodes)
				}
			}
		}
		return nodes
	}
	two := pod("two", asks("a", 2), asks("plain", 0))
	if got := preferred(r.Hints(m, two, "a")); !slices.Equal(got, []numa.Mask{1, 2}) {
		t.Errorf("two devices: %v", got)
	}
	if got := preferred(r.Hints(m, pod("x", asks("a", 2), asks("b", 1)), "")); !slices.Equal(got, []numa.Mask{3}) {
		t.Errorf("three of a pod: %v", got)
	}
	if got := r.Hints(m, two, "plain"); len(got) != 0 {
		t.Errorf("no device: %v", got)
	}
	one := pod("one", asks("a", 1))
	if got := r.ids(one, "a"); !slices.Equal(got, []string{"d3"}) {
		t.Errorf("near node 1: %v", got)
	}
	if got := preferred(r.Hints(m, one, "a")); !slices.Equal(got, []numa.Mask{2}) {
		t.Errorf("what it has: %v", got)
	}
	strict = true
	if lack := r.Lacks(two); lack == "" {
		t.Error("a device elsewhere would be taken")
	}
	strict = false
	if got := r.ids(two, "a"); !slices.Equal(got, []string{"d4", "d1"}) {
		t.Errorf("as near as can be: %v", got)
	}
}

// A plugin prefers among those that are near, if there are enough.
func TestPluginsPreferNearNodes(t *testing.T) {
	r := start(t, t.TempDir())
	defer r.stop()
	r.Near = func(string, string) ([]int, bool) { return []int{1}, false }
	var offered []string
	p := &devicetest.Plugin{Resource: gpu, Options: plugin.DevicePluginOptions{GetPreferredAllocationAvailable: true},
		Nodes:  map[string]int64{"d1": 0, "d2": 1, "d3": 1},
		Prefer: func(free []string, n int) []string { offered = free; return free[len(free)-n:] }}
	p.Start(t, r.plugins(), "d1", "d2", "d3")
	r.has(3)
	if got := r.ids(pod("p", asks("a", 1)), "a"); !slices.Equal(got, []string{"d3"}) || !slices.Equal(offered, []string{"d2", "d3"}) {
		t.Errorf("%v of %v", got, offered)
	}
}
