package oci

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/oci/resctrl"
)

// fakeResctrl stands in for the kernel's file system, for which a machine needs
// a processor that has it: groups come with their files, and go with them.
func fakeResctrl(dir string) *resctrl.FS {
	return &resctrl.FS{
		Root: dir,
		Mkdir: func(group string) error {
			if err := os.Mkdir(group, 0o755); err != nil {
				return err
			}
			if filepath.Base(filepath.Dir(group)) != "mon_groups" {
				if err := os.Mkdir(group+"/mon_groups", 0o755); err != nil {
					return err
				}
			}
			for _, file := range []string{"tasks", "schemata"} {
				if err := os.WriteFile(filepath.Join(group, file), nil, 0o644); err != nil {
					return err
				}
			}
			return nil
		},
		Rmdir: os.RemoveAll,
	}
}

// withResctrl gives the box's runtime such a file system, with one group "gold".
func (b *box) withResctrl() (dir string) {
	dir = b.TempDir()
	b.Setenv("PODSTEAD_TEST_RESCTRL", dir)
	if err := fakeResctrl(dir).Mkdir(dir + "/gold"); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(dir+"/gold/schemata", []byte("    L3:0=7ff;1=7ff\n    MB:0=100;1=100\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	return dir
}

func (b *box) file(elem ...string) string {
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(data))
}

func TestIntelRdt(t *testing.T) {
	t.Run("own group", func(t *testing.T) {
		b := newBox(t, "")
		dir := b.withResctrl()
		b.spec.Linux.IntelRdt = &specs.LinuxIntelRdt{L3CacheSchema: "L3:0=f", EnableMonitoring: true}
		b.up()
		pid := strconv.Itoa(b.state().Pid)
		for _, group := range []string{b.id, b.id + "/mon_groups/" + b.id} {
			if got := b.file(dir, group, "tasks"); got != pid {
				b.Errorf("tasks of %s: %q, want %s", group, got, pid)
			}
		}
		if got := b.file(dir, b.id, "schemata"); got != "L3:0=f" {
			b.Errorf("schemata: %q", got)
		}
		b.must("exec", b.id, "true")
		if got := b.file(dir, b.id, "tasks"); got == pid {
			b.Error("the process of exec did not join")
		}
		b.must("update", "--mem-bw-schema", "MB:0=20", b.id)
		if got := b.file(dir, b.id, "schemata"); got != "MB:0=20" {
			b.Errorf("schemata: %q", got)
		}
		if s := b.must("events", "--stats", b.id); !strings.Contains(s, `"mem_bw_schema":"MB:0=20"`) {
			b.Errorf("events: %s", s)
		}
		b.must("delete", "-f", b.id)
		if _, err := os.Stat(filepath.Join(dir, b.id)); err == nil {
			b.Error("the group is left")
		}
	})
	t.Run("named group", func(t *testing.T) {
		b := newBox(t, "")
		dir := b.withResctrl()
		b.spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=07FF", EnableMonitoring: true}
		b.up()
		if got := b.file(dir, "gold/tasks"); got != strconv.Itoa(b.state().Pid) {
			b.Errorf("tasks: %q", got)
		}
		b.must("delete", "-f", b.id)
		if _, err := os.Stat(dir + "/gold/tasks"); err != nil {
			b.Error("the group of others is gone:", err)
		}
		if _, err := os.Stat(dir + "/gold/mon_groups/" + b.id); err == nil {
			b.Error("the monitoring group is left")
		}
	})
	t.Run("added by update", func(t *testing.T) {
		b := newBox(t, "")
		dir := b.withResctrl()
		b.up()
		b.must("update", "--l3-cache-schema", "L3:0=3", b.id)
		if got := b.file(dir, b.id, "schemata"); got != "L3:0=3" {
			b.Errorf("schemata: %q", got)
		}
	})
}

func TestIntelRdtRefused(t *testing.T) {
	b := newBox(t, "")
	dir := b.withResctrl()
	for want, rdt := range map[string]specs.LinuxIntelRdt{
		"linux.intelRdt.closID":               {ClosID: "silver"}, // is not there
		`linux.intelRdt.closID: "../x"`:       {ClosID: "../x"},
		"linux.intelRdt.l3CacheSchema: group": {ClosID: "gold", L3CacheSchema: "L3:0=1"}, // differs
		"linux.intelRdt.memBwSchema":          {MemBwSchema: "0=20"},
		"linux.intelRdt.schemata[1]":          {Schemata: []string{"L2:0=1", "L2:0=1\nMB:0=2"}},
	} {
		b.spec.Linux.IntelRdt = &rdt
		b.write()
		b.fails([]string{want}, "run", "-b", b.bundle, b.id)
	}
	if _, err := os.Stat(filepath.Join(dir, b.id)); err == nil {
		b.Error("a group is left")
	}
	if _, err := resctrl.Find(); err != nil {
		b.Setenv("PODSTEAD_TEST_RESCTRL", "")
		b.fails([]string{"linux.intelRdt: no resctrl file system is mounted"}, "run", "-b", b.bundle, b.id)
	}
}
