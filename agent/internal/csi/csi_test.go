package csi

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podstead/agent/internal/csi/csitest"
	"podstead/sys"
	"podstead/test/host"
)

func TestMain(m *testing.M) { host.Main(m) }

// bench is a driver with one volume, and who uses it.
type bench struct {
	*testing.T
	root    string
	driver  *csitest.Driver
	drivers *Drivers
}

func newBench(t *testing.T, stages bool) *bench {
	host.Require(t)
	root, err := os.MkdirTemp("", "podstead-csi") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, root: root}
	t.Cleanup(func() {
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(mounts)) {
			if at := strings.Fields(line)[4]; strings.HasPrefix(at, root) {
				t.Errorf("left mounted: %s", at)
				_ = unix.Unmount(at, unix.MNT_DETACH)
			}
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(filepath.Join(root, "data", "vol"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "data", "vol", "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.drivers = &Drivers{Node: "n", Dir: filepath.Join(root, "staging"), Changed: func() {}, Log: slog.New(slog.DiscardHandler)}
	b.driver = &csitest.Driver{Name: "test.driver", Data: filepath.Join(root, "data"), Stages: stages}
	b.begin()
	return b
}

// begin starts and registers the driver.
func (b *bench) begin() {
	b.Helper()
	b.driver.Start(b.T, b.root)
	if err := b.drivers.Take(b.Context(), b.driver.Name, filepath.Join(b.root, "csi.sock"), []string{"1.0.0"}); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) volume(pod, handle string) Volume {
	return Volume{Driver: "test.driver", Handle: handle, Dir: filepath.Join(b.root, "pods", pod, "v"),
		Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: "default", UID: "u"}}}
}

func (b *bench) publish(v Volume) {
	b.Helper()
	if _, err := b.drivers.Publish(b.Context(), v); err != nil {
		b.Error(err)
	}
}

func (b *bench) unpublish(pod string) error {
	return b.drivers.Unpublish(b.Context(), filepath.Join(b.root, "pods", pod))
}

func (b *bench) called(want ...string) {
	b.Helper()
	if got := b.driver.Calls(); !slices.Equal(got, want) {
		b.Errorf("called %v\nwant   %v", got, want)
	}
}

// TestVolumeLivesItsLife has two pods use one volume, which is staged until the
// last has gone.
func TestVolumeLivesItsLife(t *testing.T) {
	b := newBench(t, true)
	one, two := b.volume("one", "vol"), b.volume("two", "vol")
	b.publish(one)
	b.publish(two)
	b.publish(one) // is done
	b.called("NodeStageVolume", "NodePublishVolume", "NodeStageVolume", "NodePublishVolume")
	for _, v := range []Volume{one, two} {
		if data, err := os.ReadFile(filepath.Join(v.Dir, "mount", "file")); string(data) != "kept" {
			t.Errorf("%s: %q, %v", v.Dir, data, err)
		}
	}
	// What was published by an agent before this one is undone by this one.
	b.drivers = &Drivers{Node: "n", Dir: b.drivers.Dir, Changed: func() {}, Log: b.drivers.Log}
	if err := b.unpublish("one"); err == nil || !strings.Contains(err.Error(), `volume "v": driver name test.driver not found`) {
		t.Errorf("without the driver: %v", err)
	}
	if err := b.drivers.Take(t.Context(), "test.driver", filepath.Join(b.root, "csi.sock"), []string{"1.0.0"}); err != nil {
		t.Fatal(err)
	}
	for _, pod := range []string{"one", "two", "two", "nobody"} {
		if err := b.unpublish(pod); err != nil {
			t.Errorf("%s: %v", pod, err)
		}
	}
	b.called("NodeStageVolume", "NodePublishVolume", "NodeStageVolume", "NodePublishVolume",
		"NodeUnpublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume")
	if left, _ := filepath.Glob(filepath.Join(b.drivers.Dir, "*", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if data, err := os.ReadFile(filepath.Join(b.root, "data", "vol", "file")); string(data) != "kept" {
		t.Errorf("the data: %q, %v", data, err)
	}
}

// TestDriverThatDies kills the driver while a pod has its volume.
func TestDriverThatDies(t *testing.T) {
	b := newBench(t, true)
	v := b.volume("one", "vol")
	b.publish(v)
	b.driver.Stop()
	if _, err := b.drivers.Publish(t.Context(), b.volume("two", "vol")); err == nil || !strings.Contains(err.Error(), "driver test.driver: NodeStageVolume: ") {
		t.Errorf("published by a dead driver: %v", err)
	}
	if err := b.unpublish("one"); err == nil || !strings.Contains(err.Error(), "driver test.driver: NodeUnpublishVolume: ") {
		t.Errorf("unpublished by a dead driver: %v", err)
	}
	if !sys.IsMount(filepath.Join(v.Dir, "mount")) {
		t.Error("the pod has lost its volume")
	}
	b.drivers.Lose("test.driver", "/another/endpoint") // not the one that is in force
	if _, err := b.drivers.find("test.driver"); err != nil {
		t.Error(err)
	}
	b.drivers.Lose("test.driver", filepath.Join(b.root, "csi.sock"))
	if _, err := b.drivers.Publish(t.Context(), b.volume("two", "vol")); err == nil || !strings.Contains(err.Error(), "not found in the list of registered CSI drivers") {
		t.Errorf("published by nobody: %v", err)
	}
	b.begin()
	b.again()
	for _, pod := range []string{"one", "two"} {
		if err := b.unpublish(pod); err != nil {
			t.Errorf("%s: %v", pod, err)
		}
	}
	if sys.IsMount(filepath.Join(v.Dir, "mount")) {
		t.Error("it is still mounted")
	}
}

// again registers the same driver, as its registrar does when it was restarted
// alone.
func (b *bench) again() {
	b.Helper()
	if err := b.drivers.Take(b.Context(), "test.driver", filepath.Join(b.root, "csi.sock"), []string{"v1.5.0"}); err != nil {
		b.Error(err)
	}
}

// TestDriversThatAreRefused has plugins register that are no drivers for us, or
// whose names lead out of the staging directory.
func TestDriversThatAreRefused(t *testing.T) {
	b := newBench(t, false)
	socket := filepath.Join(b.root, "csi.sock")
	for _, c := range []struct {
		name, endpoint string
		versions       []string
		want           string
	}{
		{"new", socket, nil, "versions: []"},
		{"new", socket, []string{"0.3.0", "2.0.0", "10.1"}, "want one of CSI 1"},
		{"", socket, []string{"1.0.0"}, "no name of a driver"},
		{"..", socket, []string{"1.0.0"}, "no name of a driver"},
		{"../../etc", socket, []string{"1.0.0"}, "no name of a driver"},
		{"a/b", socket, []string{"1.0.0"}, "no name of a driver"},
		{"a\x00b", socket, []string{"1.0.0"}, "no name of a driver"},
		{strings.Repeat("a", 300), socket, []string{"1.0.0"}, "no name of a driver"},
		{"new", filepath.Join(b.root, "nobody.sock"), []string{"1.0.0"}, "driver new: "},
	} {
		if err := b.drivers.Take(t.Context(), c.name, c.endpoint, c.versions); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.20q %v: %v, want %s", c.name, c.versions, err, c.want)
		}
	}
	if _, err := b.drivers.find("new"); err == nil {
		t.Error("one of them was taken")
	}
	var none *Drivers
	if err := none.Unpublish(t.Context(), filepath.Join(b.root, "pods", "x")); err != nil {
		t.Error(err)
	}
	// A volume of a pod's own is not staged, by none; and a broken record is named.
	v := b.volume("one", "own")
	v.Ephemeral = true
	b.publish(v)
	b.called("NodePublishVolume")
	file := filepath.Join(v.Dir, recordFile)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.unpublish("one"); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a broken record: %v", err)
	}
	if _, err := b.drivers.Publish(t.Context(), v); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a broken record: %v", err)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.unpublish("one"); err != nil {
		t.Error(err)
	}
}
