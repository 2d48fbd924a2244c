package oci

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/cgroup"
	"podstead/oci/launch"
	"podstead/test/host"
)

// FuzzConfig reads anything as a config.json. What is accepted has a launch
// program that survives being written down.
func FuzzConfig(f *testing.F) {
	full := ExampleSpec()
	full.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
	full.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-1,3", Final: "0"}
	full.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"read", "clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 1, Value: 7, ValueTwo: 3, Op: specs.OpMaskedEqual}}},
	}}
	full.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}}
	full.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}}
	full.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	full.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
	full.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0,2-3"}
	full.Linux.Resources.Unified = map[string]string{"memory.max": "1"}
	full.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/true"}}}
	for _, s := range []*specs.Spec{ExampleSpec(), full} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"ociVersion":"1.0.0","process":{"args":[""],"cwd":"/"},"root":{"path":"x"},"linux":{"namespaces":[{"type":"mount","path":"/x"}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), specFile)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := readSpec(file); err == nil {
			handle(t, s)
		}
	})
}

// TestRandomConfigs handles specifications with random values in any property.
func TestRandomConfigs(t *testing.T) {
	accepted := 0
	r := rand.New(rand.NewPCG(1, 2))
	example, err := json.Marshal(ExampleSpec())
	if err != nil {
		t.Fatal(err)
	}
	rounds := host.Rounds(3000)
	for i := range rounds {
		s := &specs.Spec{} // with nothing that others share
		if err := json.Unmarshal(example, s); err != nil {
			t.Fatal(err)
		}
		for range 1 + r.IntN(2) {
			disturb(r, reflect.ValueOf(s).Elem())
		}
		s.VM, s.Windows, s.Solaris, s.FreeBSD, s.ZOS = nil, nil, nil, nil, nil // are refused, and no more
		b, err := json.Marshal(s)
		if err != nil {
			continue // what JSON cannot have
		}
		var again specs.Spec
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatalf("number %d: %v", i, err)
		}
		if handle(t, &again) {
			accepted++
		}
		if t.Failed() {
			t.Fatalf("number %d: %s", i, b)
		}
	}
	if accepted < rounds/30 {
		t.Errorf("no more than %d of %d are accepted: this shows little", accepted, rounds)
	}
}

// handle does with a specification what create and exec do before they touch
// anything, and tells whether it would be launched.
func handle(t *testing.T, s *specs.Spec) bool {
	if checkSpec(s) != nil {
		return false
	}
	_ = cgroupPath(s, "id")
	_ = isPlain(s)
	_, _ = cgroup.Split(s.Linux.Resources)
	p, err := launch.Compile(s, launch.Options{ID: "id", Bundle: "/bundle", Hooks: true, Listener: true, NetDevices: true, SharedMounts: true})
	if err != nil {
		if strings.TrimSpace(err.Error()) == "" {
			t.Error("an error without a text")
		}
		return false
	}
	data, err := p.MarshalBinary()
	if err != nil {
		t.Error(err)
	}
	var q launch.Program
	if err := q.UnmarshalBinary(data); err != nil || q.String() != p.String() {
		t.Errorf("a program that is not the same after it was written down: %v", err)
	}
	if _, err := launch.CompileExec(s, s.Process, launch.ExecOptions{ID: "id/x", Pid: 1, Listener: true}); err != nil {
		t.Errorf("launched, but nothing can be executed in it: %v", err)
	}
	return true
}

// disturb changes something below a value.
func disturb(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		} else if r.IntN(8) == 0 {
			v.SetZero()
			return
		}
		disturb(r, v.Elem())
	case reflect.Struct:
		disturb(r, v.Field(r.IntN(v.NumField())))
	case reflect.Slice:
		if v.Len() == 0 || r.IntN(3) == 0 {
			v.Set(reflect.Append(v, reflect.New(v.Type().Elem()).Elem()))
			disturb(r, v.Index(v.Len()-1))
			return
		}
		disturb(r, v.Index(r.IntN(v.Len())))
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		disturb(r, e)
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		v.SetMapIndex(reflect.ValueOf(oddStrings[r.IntN(len(oddStrings))]).Convert(v.Type().Key()), e)
	case reflect.String:
		v.SetString(oddStrings[r.IntN(len(oddStrings))])
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt([]int64{0, 1, -1, 1 << 31, -1 << 63, 1<<63 - 1, 4096}[r.IntN(7)])
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint([]uint64{0, 1, 1 << 31, 1<<64 - 1, 77}[r.IntN(5)])
	}
}

var oddStrings = []string{
	"", "/", "..", "/../..", "a", "/a/../b", "\x00", "a\x00b", "/dev/null", "a:b:c", "0-1", "0-99999999", "-1", "bind", "tmpfs",
	"proc", "remount", "tmpcopyup", "idmap", "ro", "user", "pid", "mount", "CAP_SYS_ADMIN", "RLIMIT_NOFILE", "SCMP_ACT_ERRNO",
	"SCMP_ACT_NOTIFY", "SCHED_DEADLINE", "IOPRIO_CLASS_RT", "LINUX32", "net.ipv4.ip_forward", "c", strings.Repeat("x", 5000), "ä\n",
}
