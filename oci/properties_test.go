package oci

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestPropertiesInside sets properties that show inside, one container for each.
// The tests of oci/launch ask more; this one also asks the reference.
func TestPropertiesInside(t *testing.T) {
	for name, c := range map[string]struct {
		change       func(s *specs.Spec)
		script, want string
	}{
		"process.user": {func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 12, GID: 34, AdditionalGids: []uint32{5, 6}, Umask: ptr[uint32](0o027)}
		}, "id -u; id -g; id -G; umask", "12\n34\n34 5 6\n0027\n"},
		"process.cwd": {func(s *specs.Spec) { s.Process.Cwd = "/made/for/me" }, "pwd", "/made/for/me\n"},
		"process.capabilities": {func(s *specs.Spec) {
			one := []string{"CAP_KILL"}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_NET_RAW"}, Effective: one, Permitted: one}
		}, "while read n v; do case $n in Cap[IPEB]*) echo $v;; esac; done </proc/self/status",
			"0000000000000000\n0000000000000020\n0000000000000020\n0000000000002020\n"},
		"process.rlimits": {func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 50, Hard: 60}, {Type: "RLIMIT_FSIZE", Soft: 512 * 8, Hard: 512 * 9}}
		}, "ulimit -n; ulimit -Hn; ulimit -f; ulimit -Hf", "50\n60\n8\n9\n"},
		"process.oomScoreAdj": {func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(700) }, "cat /proc/self/oom_score_adj", "700\n"},
		"linux.sysctl": {func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"kernel.msgmax": "4321", "net.ipv4.ip_forward": "1"}
		}, "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward", "4321\n1\n"},
		"linux.maskedPaths": {func(s *specs.Spec) {
			s.Linux.MaskedPaths = []string{"/proc/version", "/proc/sys/kernel", "/no/such"}
		}, "wc -c </proc/version; ls /proc/sys/kernel; touch /proc/sys/kernel/x 2>/dev/null || echo not writable", "0\nnot writable\n"},
		"linux.readonlyPaths": {func(s *specs.Spec) {
			s.Linux.ReadonlyPaths = []string{"/proc/sys", "/bin", "/no/such"}
		}, "touch /bin/x 2>/dev/null || echo not writable; touch /x && echo writable", "not writable\nwritable\n"},
		"linux.personality": {func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux}
		}, "cat /proc/self/personality", "00000000\n"},
		"linux.rootfsPropagation": {func(s *specs.Spec) { s.Linux.RootfsPropagation = "rslave" },
			"while read a b c d at rest; do [ $at != / ] || case $rest in *shared:*) echo shared;; *) echo not shared;; esac; done </proc/self/mountinfo", "not shared\n"},
		"mounts": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, tmpfs("/var/../data/deep", "size=64k"), specs.Mount{
				Destination: "/data/bound", Type: "bind", Source: "/bin/busybox", Options: []string{"bind", "ro"},
			})
		}, "test -s /data/bound && while read a b c d at rest; do case $at in /data/*) echo $at;; esac; done </proc/self/mountinfo", "/data/deep\n/data/bound\n"},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(b *box) {
				c.change(b.spec)
				b.script(c.script)
				b.write()
				if r := b.run("run", "-b", b.bundle, b.id); r.stdout != c.want || r.code != 0 {
					b.Errorf("%+v, want %q", r, c.want)
				}
			})
		})
	}
}
