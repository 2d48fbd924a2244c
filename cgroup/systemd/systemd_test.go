package systemd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/cgroup"
	"podstead/cgroup/systemd/systemdtest"
)

// sleeper stands in for a container's process.
func sleeper(t *testing.T) func() (int, func() error, error) {
	return func() (int, func() error, error) {
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			return 0, nil, err
		}
		return cmd.Process.Pid, func() error {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return nil
		}, nil
	}
}

// TestScope makes a scope in a slice, limits it and stops it.
func TestScope(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	fake := systemdtest.New(t, "")
	m := New(Options{Addresses: []string{"unix:path=/no/such", fake.Address}, Park: sleeper(t)})
	defer m.Close()
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	properties, err := Annotated(map[string]string{"org.systemd.property.TimeoutStopSec": "uint64 90", "other": "x"})
	if err != nil {
		t.Fatal(err)
	}
	h = h.WithDriver(m.With(properties))
	slice := fmt.Sprintf("podstead_test%d.slice", os.Getpid())
	parent := h.Group(slice)
	g := h.Group(slice + ":pre:ctr")
	if want := "/" + slice + "/pre-ctr.scope"; g.Path() != want {
		t.Fatalf("path %s, want %s", g.Path(), want)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, g := range []*cgroup.Group{g, parent} {
			if err := g.Remove(ctx); err != nil {
				t.Error(err)
			}
			if g.Exists() || fake.Unit(g.Path()[strings.LastIndex(g.Path(), "/")+1:]) != nil {
				t.Errorf("%s is left", g.Path())
			}
		}
	})
	for range 2 { // a slice may be there already
		if err := parent.Create(); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); len(pids) != 1 || err != nil {
		t.Errorf("processes %v, %v", pids, err)
	}
	fake.HangUp() // systemd executes itself anew
	limit, pids := int64(64<<20), int64(9)
	if err := g.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}}); err != nil {
		t.Fatal(err)
	}
	u := fake.Unit("pre-ctr.scope")
	memory := "MemoryMax"
	if !h.Unified() {
		memory = "MemoryLimit"
	}
	for name, want := range map[string]any{
		memory: uint64(limit), "TasksMax": uint64(9), "Delegate": true, "Slice": slice,
		"TimeoutStopUSec": uint64(90e6), "DefaultDependencies": false,
	} {
		if got := u[name].Value(); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if s, err := g.Stats(); err != nil || s.MemoryLimitBytes != uint64(limit) {
		t.Errorf("%+v, %v", s, err)
	}
	if err := g.Settle(); err != nil {
		t.Error(err)
	}
	if pids, err := g.Procs(); len(pids) != 0 || err != nil {
		t.Errorf("processes %v, %v", pids, err)
	}
}

// TestFailedJob leaves no process behind, and no group.
func TestFailedJob(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	fake := systemdtest.New(t, "")
	ended := false
	park := sleeper(t)
	m := New(Options{Addresses: []string{fake.Address}, Park: func() (int, func() error, error) {
		pid, end, err := park()
		return pid, func() error { ended = true; return end() }, err
	}})
	defer m.Close()
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	fake.FailNext("timeout")
	g := h.WithDriver(m).Group("-.slice:podstead-test:fails")
	if err := g.Create(); err == nil || !strings.Contains(err.Error(), `job ended as "timeout"`) {
		t.Error(err)
	}
	if !ended || g.Exists() {
		t.Errorf("process ended: %v, group exists: %v", ended, g.Exists())
	}
}

// TestRealSystemdAnswers: systemd's own socket answers every connection at once.
func TestRealSystemdAnswers(t *testing.T) {
	if _, err := os.Stat("/run/systemd/private"); err != nil {
		t.Skip("no systemd runs here")
	}
	for range 100 {
		conn, err := connect("unix:path=/run/systemd/private")
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	m := New(Options{Addresses: []string{"unix:path=/no/such"}})
	if err := m.Check(); err == nil || !strings.Contains(err.Error(), "systemd cannot be reached") || !strings.Contains(err.Error(), "/no/such") {
		t.Error(err)
	}
}

func TestUnitPath(t *testing.T) {
	h, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	h = h.WithDriver(New(Options{Addresses: []string{"unix:path=/no/such"}}))
	for name, want := range map[string]string{
		"/a/b": "/a/b", "a.slice": "/a.slice", "a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice", "-.slice": "/",
		"a-b.slice:cri:id": "/a.slice/a-b.slice/cri-id.scope", ":p:n": "/system.slice/p-n.scope", "a.slice::n": "/a.slice/n.scope",
		"a.slice:p:b.slice": "/a.slice/b.slice",
		"a--b.slice":        "", "a": "", "a.slice:b": "", "a.slice:b:c:d": "", "x/y.slice:b:c": "", "a.slice:b:c/d": "", "-a.slice": "", "a.slice:b:": "",
	} {
		got, err := h.UnitPath(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", name, got, err, want)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestProperties(t *testing.T) {
	values := func(list []Property) map[string]any {
		m := map[string]any{}
		for _, p := range list {
			m[p.Name] = p.Value.Value()
		}
		return m
	}
	r := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: ptr[uint64](1024), Quota: ptr[int64](15500), Period: ptr[uint64](10000), Cpus: "0-1,9", Mems: "0"},
		Memory:  &specs.LinuxMemory{Limit: ptr[int64](100), Swap: ptr[int64](130), Reservation: ptr[int64](-1)},
		Pids:    &specs.LinuxPids{Limit: ptr[int64](-1)},
		BlockIO: &specs.LinuxBlockIO{Weight: ptr[uint16](10)},
		Unified: map[string]string{"memory.high": "max", "memory.min": "5", "io.latency": "8:0 target=1"},
	}
	got, err := limits(r, true)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := values(got), map[string]any{
		"CPUWeight": uint64(100), "CPUQuotaPerSecUSec": uint64(1550000), "CPUQuotaPeriodUSec": uint64(10000),
		"AllowedCPUs": []byte{3, 2}, "AllowedMemoryNodes": []byte{1}, "MemoryMax": uint64(100), "MemorySwapMax": uint64(30),
		"MemoryLow": uint64(infinity), "TasksMax": uint64(infinity), "IOWeight": uint64(1),
		"MemoryHigh": uint64(infinity), "MemoryMin": uint64(5),
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("v2: %v\nwant %v", got, want)
	}
	if got, err = limits(r, false); err != nil {
		t.Fatal(err)
	}
	if got, want := values(got), map[string]any{
		"CPUShares": uint64(1024), "CPUQuotaPerSecUSec": uint64(1550000), "CPUQuotaPeriodUSec": uint64(10000),
		"MemoryLimit": uint64(100), "TasksMax": uint64(infinity), "BlockIOWeight": uint64(10),
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("v1: %v\nwant %v", got, want)
	}
}

func TestDeviceProperties(t *testing.T) {
	rule := func(allow bool, kind, access string, numbers ...int64) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Access: access}
		if len(numbers) > 0 {
			r.Major = &numbers[0]
		}
		if len(numbers) > 1 {
			r.Minor = &numbers[1]
		}
		return r
	}
	got, err := limits(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		rule(false, "a", "rwm"), rule(true, "c", "m"), rule(true, "c", "rw", 1, 3), rule(true, "c", "rwm", 136), rule(true, "b", "r", 7, 0),
	}}, true)
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	if len(got[1].Value.Value().([]deviceAllow)) != 0 {
		t.Error("the old list is not cleared first")
	}
	want := []deviceAllow{{"char-*", "m"}, {"/dev/char/1:3", "rw"}, {"char-pts", "mrw"}, {"/dev/block/7:0", "r"}}
	if list := got[2].Value.Value().([]deviceAllow); got[0].Value.Value() != "strict" || !slices.Equal(list, want) {
		t.Errorf("%v, want %v", list, want)
	}
	got, err = limits(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{rule(true, "a", "rwm"), rule(false, "c", "w", 1, 3)}}, true)
	if err != nil || got[0].Value.Value() != "auto" || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAnnotated(t *testing.T) {
	got, err := Annotated(map[string]string{
		"org.systemd.property.CollectMode": "'inactive-or-failed'", "org.systemd.property.RuntimeMaxSec": "1.5",
		"org.systemd.property.Before": "['a.service']", "x": "y",
	})
	want := []Property{
		{"Before", dbus.MakeVariant([]string{"a.service"})}, {"CollectMode", dbus.MakeVariant("inactive-or-failed")},
		{"RuntimeMaxUSec", dbus.MakeVariant(uint64(1500000))},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for key, value := range map[string]string{"a.b": "1", "": "1", "Good": "[", "TimeoutStopSec": "'x'", "RuntimeMaxSec": "-1"} {
		if got, err := Annotated(map[string]string{"org.systemd.property." + key: value}); err == nil {
			t.Errorf("%s=%s: %v", key, value, got)
		}
	}
}
