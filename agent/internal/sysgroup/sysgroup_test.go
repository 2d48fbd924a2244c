package sysgroup

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"podstead/cgroup"
	"podstead/test/host"
)

// ownVariable has the test's binary place itself, and say where it is.
const ownVariable = "PODSTEAD_TEST_OWN_GROUP"

func TestMain(m *testing.M) {
	if name := os.Getenv(ownVariable); name != "" {
		place(name)
		return
	}
	host.Main(m)
}

func place(name string) {
	h, err := cgroup.Detect()
	if err == nil {
		err = (&Groups{Hierarchy: h, Own: name}).Place()
	}
	if err != nil {
		io.WriteString(os.Stderr, err.Error())
		os.Exit(1)
	}
	text, _ := os.ReadFile("/proc/self/cgroup")
	os.Stdout.Write(text)
}

func hierarchy(t *testing.T) *cgroup.Hierarchy {
	t.Helper()
	host.Require(t)
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func remove(t *testing.T, h *cgroup.Hierarchy, names ...string) {
	t.Cleanup(func() {
		for _, name := range names {
			if err := h.Group(name).Remove(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestOwn: a process puts itself into the group, made with all above it, and may
// do so again.
func TestOwn(t *testing.T) {
	h := hierarchy(t)
	name := path.Join(host.Cgroup(), "runtime", "own")
	remove(t, h, path.Dir(name))
	for range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), ownVariable+"="+name)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for line := range strings.Lines(string(out)) { // 4:cpu,cpuacct:/path
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			ours := f[1] == "" && h.Unified() || slices.Contains(h.Controllers(), strings.Split(f[1], ",")[0])
			if ours && !strings.HasSuffix(f[2], "/runtime/own") {
				t.Errorf("it is elsewhere: %s", line)
			}
		}
	}
}

// TestRest: what is in one group goes to another, and what has a group of its own
// stays; so does what cannot be moved.
func TestRest(t *testing.T) {
	h := hierarchy(t)
	top := path.Join(host.Cgroup(), "machine")
	from, own, rest := top+"/from", top+"/from/own", path.Join(host.Cgroup(), "system")
	remove(t, h, top, rest)
	var loose, placed []int
	for i := range 4 {
		cmd := exec.Command("/bin/busybox", "sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Skip("needs busybox-static: ", err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		name, list := from, &loose
		// With cgroup v2 a group that has groups has no processes.
		if i == 3 && !h.Unified() {
			name, list = own, &placed
		}
		g := h.Group(name)
		if err := g.Create(); err != nil {
			t.Fatal(err)
		}
		if err := g.Move(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		*list = append(*list, cmd.Process.Pid)
	}
	var log bytes.Buffer
	groups := &Groups{Hierarchy: h, Rest: rest, From: from, Log: slog.New(slog.NewTextHandler(&log, nil))}
	for range 2 {
		if err := groups.Place(); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string][]int{from: nil, rest: loose, own: placed} {
		got, err := h.Directly(name)
		if !h.Group(name).Exists() {
			continue
		}
		if slices.Sort(want); err != nil || !slices.Equal(got, want) {
			t.Errorf("in %s are %v, want %v: %v", name, got, want, err)
		}
	}
	if movable(1) || !movable(os.Getpid()) {
		t.Error("init would be moved, or nothing")
	}
	// What goes wrong is said once, and ends nothing.
	groups.Rest = host.Cgroup() + "/a:b"
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Group(from).Move(loose[0]); err != nil {
		t.Fatal(err)
	}
	groups.Keep(ctx)
	if strings.Count(log.String(), "systemCgroups") != 1 {
		t.Errorf("it says %q", log.String())
	}
}
