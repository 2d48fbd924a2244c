package oci

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestLateFailureLeavesNothing: what goes wrong when the container's process is
// prepared already names the flag or field, and takes everything back.
func TestLateFailureLeavesNothing(t *testing.T) {
	onBoth(t, func(b *box) {
		b.notRunc("names other things")
		for _, c := range []struct {
			want  string
			flags []string
			mess  func(s *specs.Spec)
		}{
			{"--pid-file", []string{"--pid-file", "/no/such/pid"}, nil},
			{"--pidfd-socket", []string{"--pidfd-socket", "/no/such/socket"}, nil},
			{"--console-socket", []string{"--console-socket", "/no/such/socket"}, func(s *specs.Spec) { s.Process.Terminal = true }},
			{"--preserve-fds", []string{"--preserve-fds", "7"}, nil},
			{"linux.resources.memory.limit", nil, func(s *specs.Spec) {
				s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](-2)}
			}},
			{"linux.resources.devices", nil, func(s *specs.Spec) {
				s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Type: "x"}}
			}},
			{"linux.resources.unified.memory.oom.no", nil, func(s *specs.Spec) {
				s.Linux.Resources.Unified = map[string]string{"memory.oom.no": "1"}
			}},
			{"linux.cgroupsPath", nil, func(s *specs.Spec) { s.Linux.CgroupsPath = "/" }},
		} {
			spec, linux, process, resources := *b.spec, *b.spec.Linux, *b.spec.Process, *b.spec.Linux.Resources
			spec.Linux, spec.Process, linux.Resources = &linux, &process, &resources
			saved := b.spec
			b.spec = &spec
			if c.mess != nil {
				c.mess(&spec)
			}
			b.write()
			b.fails([]string{c.want}, append(append([]string{"create", "-b", b.bundle}, c.flags...), b.id)...)
			b.spec = saved
			if b.group().Exists() {
				t.Errorf("%s: the cgroup is left", c.want)
			}
			if _, err := os.Stat(filepath.Join(b.root, b.id)); err == nil {
				t.Errorf("%s: the directory is left", c.want)
			}
		}
	})
}

// TestFailedStartIsStopped: a container whose start failed can be deleted at once.
func TestFailedStartIsStopped(t *testing.T) {
	b := newBox(t, "")
	b.spec.Process.Args = []string{"/bin"}
	for range 5 {
		b.create()
		b.fails([]string{"/bin", "permission denied"}, "start", b.id)
		b.must("delete", b.id)
	}
}
