package agent

import "testing"

func TestCgroupNames(t *testing.T) {
	for _, c := range []struct {
		systemd bool
		parts   []string
		want    string
	}{
		{false, []string{""}, "/root/kubepods"},
		{false, []string{"burstable", "pod1-2"}, "/root/kubepods/burstable/pod1-2"},
		{true, []string{""}, "kubepods.slice"},
		{true, []string{"besteffort"}, "kubepods-besteffort.slice"},
		{true, []string{"", "pod1-2"}, "kubepods-pod1_2.slice"},
		{true, []string{"burstable", "pod1-2"}, "kubepods-burstable-pod1_2.slice"},
	} {
		groups := cgroups{root: "root", systemd: c.systemd}
		if got := groups.path(c.parts...); got != c.want {
			t.Errorf("%v: %s, want %s", c.parts, got, c.want)
		}
	}
}
