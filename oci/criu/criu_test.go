package criu

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
)

func TestResponse(t *testing.T) {
	var note []byte
	note = protowire.AppendTag(note, 1, protowire.BytesType)
	note = protowire.AppendString(note, PostRestore)
	note = protowire.AppendTag(note, 2, protowire.VarintType)
	note = protowire.AppendVarint(note, 4711)
	var b []byte
	for _, f := range []struct {
		number protowire.Number
		value  uint64
	}{{1, typeNotify}, {2, 1}, {7, 5}, {99, 1}} {
		b = protowire.AppendTag(b, f.number, protowire.VarintType)
		b = protowire.AppendVarint(b, f.value)
	}
	b = protowire.AppendTag(b, 98, protowire.Fixed64Type) // of a CRIU to come
	b = protowire.AppendFixed64(b, 1)
	b = protowire.AppendTag(b, 5, protowire.BytesType)
	b = protowire.AppendBytes(b, note)
	r, err := decodeResponse(b)
	if err != nil || r != (response{typ: typeNotify, success: true, errno: 5, script: PostRestore, notePid: 4711}) {
		t.Errorf("got %+v, %v", r, err)
	}
	for n := range b {
		decodeResponse(b[:n])
	}
}

func TestRequestIsProtobuf(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	o := Options{Images: dir, Root: "/r", External: []string{"a", "b"}, PageServer: &PageServer{"::1", 99}, TCPEstablished: true}
	var m message
	o.encode(&m, "x.log")
	var external []string
	b := []byte(m)
	for len(b) > 0 {
		number, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
		if number == 37 {
			s, _ := protowire.ConsumeString(b)
			external = append(external, s)
		}
		if n = protowire.ConsumeFieldValue(number, typ, b); n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
	}
	if !slices.Equal(external, []string{"a", "b"}) {
		t.Errorf("external: %v", external)
	}
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte{8, 1, 16, 1})
	f.Fuzz(func(t *testing.T, b []byte) { decodeResponse(b) })
}

func FuzzMounts(f *testing.F) {
	f.Add("161 163 254:0 /r / rw,relatime - ext4 /dev/vda rw\n")
	f.Fuzz(func(t *testing.T, s string) {
		table, err := parseMounts(s)
		if err == nil {
			checkMounts(table, []wantedMount{{point: "/proc", typ: "proc"}}, &specs.Spec{Linux: &specs.Linux{}})
		}
	})
}

func TestErrorLines(t *testing.T) {
	log := "(00.1) Warn  (criu/x.c:1): no\n(00.2) Error (criu/util.c:15): rlimit: Can't setup RLIMIT_NOFILE for self\n" +
		"(00.3) Error (criu/a.c:7): one (two): three\n(00.4)   1: Error (criu/b.c:8): four\n"
	if got := errorLines(log, 3); !slices.Equal(got, []string{"one (two): three", "four"}) {
		t.Errorf("got %q", got)
	}
}

// A CRIU that dies is an error, and one that hangs ends with the context.
func TestCRIUThatDoesNotAnswer(t *testing.T) {
	images, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	ask := func(ctx context.Context) (error, *os.File) {
		c, theirs, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		done := make(chan error, 1)
		go func() {
			_, err := c.Restore(ctx, RestoreOptions{Options: Options{Images: images}})
			done <- err
		}()
		if ctx.Err() == nil {
			theirs.Close()
		}
		return <-done, theirs
	}
	if err, _ := ask(t.Context()); err == nil || !strings.Contains(err.Error(), "ended without an answer") {
		t.Errorf("died: %v", err)
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	err, theirs := ask(ctx)
	theirs.Close()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hangs: %v", err)
	}
}

func TestReadDescriptors(t *testing.T) {
	dir := t.TempDir()
	images, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	if names, err := readDescriptors(images); err != nil || names != nil {
		t.Errorf("no file: %v, %v", names, err)
	}
	if err := os.Symlink("/etc/passwd", dir+"/"+DescriptorsFile); err != nil {
		t.Fatal(err)
	}
	if names, err := readDescriptors(images); err == nil {
		t.Errorf("a link: %v", names)
	}
	os.Remove(dir + "/" + DescriptorsFile)
	for content, ok := range map[string]bool{`["a","b","c","d"]`: true, `{}`: false, `[`: false, strings.Repeat(" ", maxDescriptors) + "[]": false} {
		if err := os.WriteFile(dir+"/"+DescriptorsFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		names, err := readDescriptors(images)
		if (err == nil) != ok || len(names) > 3 {
			t.Errorf("%.20q: %v, %v", content, names, err)
		}
	}
}

func TestCheckStatus(t *testing.T) {
	status := func(more string) string {
		return "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t5 \n" +
			"CapInh:\t0000000000000000\nCapPrm:\t0000000000000020\nCapEff:\t0000000000000020\nCapBnd:\t0000000000000020\nCapAmb:\t0000000000000000\n" +
			"NoNewPrivs:\t1\nSeccomp:\t2\n" + more
	}
	spec := &specs.Spec{
		Process: &specs.Process{
			NoNewPrivileges: true, User: specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5}},
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"}},
		},
		Linux: &specs.Linux{Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}},
	}
	if err := checkStatus(status(""), spec); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		"Uid:\t1000\t0\t1000\t1000\n", "Gid:\t0\t1000\t1000\t1000\n", "Groups:\t5 0\n", "CapPrm:\t0000000000200020\n",
		"CapBnd:\t000001ffffffffff\n", "CapAmb:\t0000000000000040\n", "NoNewPrivs:\t0\n", "Seccomp:\t0\n", "CapEff:\t\n",
	} {
		if err := checkStatus(status(bad), spec); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestCheckMounts(t *testing.T) {
	const base = `1 0 0:50 / / ro,relatime - overlay overlay rw
2 1 0:51 / /proc rw,nosuid,nodev,noexec - proc proc rw
3 2 0:51 /sys /proc/sys ro,nosuid - proc proc rw
4 1 0:52 / /dev rw,nosuid - tmpfs tmpfs rw
5 2 0:52 /null /proc/version rw,nosuid - tmpfs tmpfs rw
6 1 8:1 /srv/data /data ro,relatime - ext4 /dev/sda1 rw
7 1 0:53 / /sys ro,nosuid,nodev,noexec - sysfs sysfs rw
`
	wanted := []wantedMount{
		{point: "/proc", typ: "proc", options: []string{"nosuid"}},
		{point: "/dev", typ: "tmpfs", options: []string{"nosuid"}},
		{point: "/sys", typ: "sysfs", options: []string{"ro"}},
		{point: "/data", dev: "8:1", root: "/srv/data", options: []string{"ro"}},
	}
	spec := &specs.Spec{Root: &specs.Root{Readonly: true}, Linux: &specs.Linux{
		MaskedPaths: []string{"/proc/version"}, ReadonlyPaths: []string{"/proc/sys"},
	}}
	check := func(table string) error {
		mounts, err := parseMounts(table)
		if err != nil {
			t.Fatal(err)
		}
		return checkMounts(mounts, wanted, spec)
	}
	if err := check(base); err != nil {
		t.Error(err)
	}
	for name, table := range map[string]string{
		"writable root":          strings.Replace(base, "/ / ro,", "/ / rw,", 1),
		"writable volume":        strings.Replace(base, "/data ro,", "/data rw,", 1),
		"another volume":         strings.Replace(base, "/srv/data", "/srv", 1),
		"volume elsewhere":       strings.Replace(base, "/data ro", "/etc ro", 1),
		"second procfs":          base + "8 1 0:60 / /mnt rw - proc proc rw\n",
		"part of procfs":         base + "8 1 0:51 /sys /mnt ro - proc proc rw\n",
		"debugfs":                base + "8 1 0:7 / /mnt ro - debugfs debugfs rw\n",
		"device file system":     base + "8 1 0:5 / /mnt ro - devtmpfs devtmpfs rw\n",
		"disk":                   base + "8 1 8:1 / /mnt ro - ext4 /dev/sda1 rw\n",
		"overlay of the host":    base + "8 1 0:70 / /mnt ro - overlay overlay rw,lowerdir=/\n",
		"writable sysfs":         strings.Replace(base, "/sys ro,nosuid,nodev", "/sys rw,nosuid,nodev", 1),
		"writable /proc/sys":     strings.Replace(base, "/proc/sys ro", "/proc/sys rw", 1),
		"no /proc/sys":           strings.Replace(base, "3 2 0:51 /sys /proc/sys ro,nosuid - proc proc rw\n", "", 1),
		"version not masked":     strings.Replace(base, "5 2 0:52 /null /proc/version rw,nosuid - tmpfs tmpfs rw\n", "", 1),
		"tmpfs of somebody":      base + "8 1 0:99 /secret /mnt rw - tmpfs tmpfs rw\n",
		"proc without nosuid":    strings.Replace(base, "/proc rw,nosuid,", "/proc rw,", 1),
		"second root":            base + "8 1 8:1 / / ro - ext4 /dev/sda1 rw\n",
		"cgroups of the machine": base + "8 7 0:40 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
	} {
		if err := check(table); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFindAbsent(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	path, err := Find()
	if err != nil && !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	if err == nil && !strings.HasSuffix(path, "sbin/criu") {
		t.Errorf("found %s", path)
	}
}

func TestVersion(t *testing.T) {
	path, err := Find()
	if err != nil {
		t.Skip(err)
	}
	v, err := Version(t.Context(), path)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Skip("needs a CRIU that works on this kernel: ", err)
	}
	if v < 20000 {
		t.Errorf("version %d", v)
	}
}
