package oci

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestPropertiesInside sets properties that show inside, one container for each.
// The tests of oci/launch ask more; this one also asks the reference.
func TestPropertiesInside(t *testing.T) {
	volume := t.TempDir()
	if err := os.Chown(volume, 1000, 2000); err != nil {
		t.Skip(err)
	}
	cases := map[string]property{
		"process.user": {change: func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 12, GID: 34, AdditionalGids: []uint32{5, 6}, Umask: ptr[uint32](0o027)}
		}, script: "id -u; id -g; id -G; umask", want: "12\n34\n34 5 6\n0027\n"},
		"of Windows": {change: func(s *specs.Spec) {
			s.Process.User.Username, s.Process.CommandLine = "nobody", "false"
		}, script: "id -u", want: "0\n"},
		"process.cwd": {change: func(s *specs.Spec) { s.Process.Cwd = "/made/for/me" }, script: "pwd", want: "/made/for/me\n"},
		"process.capabilities": {change: func(s *specs.Spec) {
			one := []string{"CAP_KILL"}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_NET_RAW"}, Effective: one, Permitted: one}
		}, script: "while read n v; do case $n in Cap[IPEB]*) echo $v;; esac; done </proc/self/status",
			want: "0000000000000000\n0000000000000020\n0000000000000020\n0000000000002020\n"},
		"process.rlimits": {change: func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 50, Hard: 60}, {Type: "RLIMIT_FSIZE", Soft: 512 * 8, Hard: 512 * 9}}
		}, script: "ulimit -n; ulimit -Hn; ulimit -f; ulimit -Hf", want: "50\n60\n8\n9\n"},
		"process.oomScoreAdj": {change: func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(700) }, script: "cat /proc/self/oom_score_adj", want: "700\n"},
		"process.scheduler": {change: func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
		}, script: "set -- $(cat /proc/self/stat); echo ${19} ${41}", want: "3 3\n", runc: "1.2", crun: "1.8.5"},
		"process.ioPriority": {change: func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		}, script: "busybox ionice -p 1", want: "best-effort: prio 6\n", runc: "1.2", crun: "1.8.6"},
		"linux.sysctl": {change: func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"kernel.msgmax": "4321", "net.ipv4.ip_forward": "1"}
		}, script: "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward", want: "4321\n1\n"},
		"linux.maskedPaths": {change: func(s *specs.Spec) {
			s.Linux.MaskedPaths = []string{"/proc/version", "/proc/sys/vm", "/no/such"}
		}, script: "wc -c </proc/version; ls /proc/sys/vm; touch /proc/sys/vm/x 2>/dev/null || echo not writable", want: "0\nnot writable\n"},
		"linux.readonlyPaths": {change: func(s *specs.Spec) {
			s.Linux.ReadonlyPaths = []string{"/proc/sys", "/bin", "/no/such"}
		}, script: "touch /bin/x 2>/dev/null || echo not writable; touch /x && echo writable", want: "not writable\nwritable\n"},
		"linux.personality": {change: func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		}, script: "cat /proc/self/personality", want: "00000008\n", runc: "1.2", crun: "0.20"},
		"linux.memoryPolicy": {change: func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
		}, script: "while read address policy rest; do echo $policy; break; done </proc/1/numa_maps", want: "bind:0\n", runc: "1.4", crun: "1.24"},
		"linux.timeOffsets": {change: func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000, Nanosecs: 5}}
		}, script: "while read clock s ns; do echo $clock $s $ns; done </proc/self/timens_offsets", want: "monotonic 0 0\nboottime 1000 5\n",
			runc: "1.2", crun: "1.8.4"},
		"linux.rootfsPropagation": {change: func(s *specs.Spec) { s.Linux.RootfsPropagation = "rslave" },
			script: "while read a b c d at rest; do [ $at != / ] || case $rest in *shared:*) echo shared;; *) echo not shared;; esac; done </proc/self/mountinfo",
			want:   "not shared\n"},
		"linux.resources.memory.useHierarchy": {change: func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{UseHierarchy: ptr(true), Limit: ptr[int64](64 << 20)}
		}, script: "echo runs", want: "runs\n"},
		"mounts": {change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, tmpfs("/var/../data/deep", "size=64k"), specs.Mount{
				Destination: "/data/bound", Type: "bind", Source: "/bin/busybox", Options: []string{"bind", "ro"},
			})
		}, script: "test -s /data/bound && while read a b c d at rest; do case $at in /data/*) echo $at;; esac; done </proc/self/mountinfo",
			want: "/data/deep\n/data/bound\n"},
		"mounts.uidMappings": {change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{
				Destination: "/data", Type: "bind", Source: volume, Options: []string{"bind"},
				UIDMappings: []specs.LinuxIDMapping{{ContainerID: 1000, HostID: 5, Size: 1}}, GIDMappings: []specs.LinuxIDMapping{{ContainerID: 2000, HostID: 6, Size: 1}},
			})
		}, script: "set -- $(ls -dln /data); echo $3 $4", want: "5 6\n", runc: "1.2", crun: "1.9"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(b *box) {
				if c.runc != "" || c.crun != "" {
					b.needs(c.runc, c.crun)
				}
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

// property is one that shows inside of a container.
type property struct {
	change       func(s *specs.Spec)
	script, want string
	runc, crun   string // since which versions, if not since older ones than are around
}

// TestPropertiesRefused has what cannot be on this machine, or at all: nobody makes
// a container then, and ours says why.
func TestPropertiesRefused(t *testing.T) {
	weight := []specs.LinuxWeightDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 7, Minor: 0}, LeafWeight: ptr[uint16](100)}}
	for want, c := range map[string]struct {
		change     func(s *specs.Spec)
		there      string // what the machine has where this can be
		runc, crun string
	}{
		"blockIO.leafWeight": {change: func(s *specs.Spec) {
			s.Linux.Resources.BlockIO = &specs.LinuxBlockIO{LeafWeight: ptr[uint16](100)}
		}, there: "blkio/blkio.leaf_weight"},
		"blockIO.weightDevice[0].leafWeight": {change: func(s *specs.Spec) {
			s.Linux.Resources.BlockIO = &specs.LinuxBlockIO{WeightDevice: weight}
		}, there: "blkio/blkio.leaf_weight_device"},
		"network.classID": {change: func(s *specs.Spec) {
			s.Linux.Resources.Network = &specs.LinuxNetwork{ClassID: ptr[uint32](0x100001)}
		}, there: "net_cls*/net_cls.classid"},
		"network.priorities": {change: func(s *specs.Spec) {
			s.Linux.Resources.Network = &specs.LinuxNetwork{Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 1}}}
		}, there: "net_*/net_prio.ifpriomap"},
		"rdma": {change: func(s *specs.Spec) {
			s.Linux.Resources.Rdma = map[string]specs.LinuxRdma{"none0": {HcaHandles: ptr[uint32](1)}}
		}, there: "rdma/rdma.max"},
		"linux.intelRdt": {change: func(s *specs.Spec) {
			s.Linux.IntelRdt = &specs.LinuxIntelRdt{L3CacheSchema: "L3:0=1"}
		}, there: "../resctrl/schemata", crun: "1.10", runc: "1.0"},
	} {
		t.Run(want, func(t *testing.T) {
			if found, _ := filepath.Glob("/sys/fs/cgroup/" + c.there); c.there != "" && len(found) > 0 {
				t.Skip(found, " is there")
			}
			onBoth(t, func(b *box) {
				if c.runc != "" || c.crun != "" {
					b.needs(c.runc, c.crun)
				}
				if !b.ours && b.group().JoinFile("memory") == "" {
					b.Skip("runc and crun pass over what cgroup v2 does not have")
				}
				c.change(b.spec)
				b.script("echo > /ran")
				b.write()
				b.fails([]string{want}, "run", "-b", b.bundle, b.id)
				if b.has("ran") {
					b.Error("it ran")
				}
			})
		})
	}
}

func has(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
