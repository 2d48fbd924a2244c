package selinux

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestWith(t *testing.T) {
	pod := Labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}
	for name, test := range map[string]struct {
		options *runtimeapi.SELinuxOption
		want    Labels
	}{
		"nothing": {nil, pod},
		"a type": {&runtimeapi.SELinuxOption{Type: "spc_t"},
			Labels{"system_u:system_r:spc_t:s0:c1,c2", pod.Mount}},
		"a level": {&runtimeapi.SELinuxOption{Level: "s0:c7,c9"},
			Labels{"system_u:system_r:container_t:s0:c7,c9", "system_u:object_r:container_file_t:s0:c7,c9"}},
		"a range": {&runtimeapi.SELinuxOption{Level: "s0-s0:c0.c1023"},
			Labels{"system_u:system_r:container_t:s0-s0:c0.c1023", "system_u:object_r:container_file_t:s0-s0:c0.c1023"}},
		"all": {&runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0"},
			Labels{"u:r:t:s0", "u:object_r:container_file_t:s0"}},
	} {
		if got, err := pod.With(test.options); err != nil || got != test.want {
			t.Errorf("%s: %v, %v, want %v", name, got, err, test.want)
		}
	}
	for field, options := range map[string]*runtimeapi.SELinuxOption{
		"user": {User: "a:b"}, "role": {Role: "a b"}, "type": {Type: "t\n"}, "level": {Level: `s0"`},
	} {
		if _, err := pod.With(options); err == nil || !strings.Contains(err.Error(), "selinux_options."+field) {
			t.Errorf("%v: error is %v, want one that names %s", options, err, field)
		}
	}
	if _, err := (Labels{"nonsense", pod.Mount}).With(nil); err == nil {
		t.Error("a label without a type was taken")
	}
	// A policy without levels.
	plain := Labels{"u:r:t", "u:object_r:f"}
	if got, err := plain.With(&runtimeapi.SELinuxOption{Type: "x"}); err != nil || got != (Labels{"u:r:x", "u:object_r:f"}) {
		t.Errorf("without levels: %v, %v", got, err)
	}
}

// TestWithoutSELinux is about hosts like most: nothing is asked of the kernel.
func TestWithoutSELinux(t *testing.T) {
	if Enabled() {
		t.Skip("this host has SELinux")
	}
	o := &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
	pod, err := ForPod(o, func(string) bool { return true })
	if err != nil || pod != (Labels{}) {
		t.Errorf("pod: %v, %v", pod, err)
	}
	if l := Level("u:r:t:s0:c1,c2"); l != "s0:c1,c2" {
		t.Errorf("level is %q", l)
	}
	if o := MountOption(""); o != nil {
		t.Errorf("options are %q", o)
	}
	if err := Relabel("/no/such/file", ""); err != nil {
		t.Error(err)
	}
}
