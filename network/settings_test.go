package network

import (
	"testing"
)

// TestSettingsChange changes what the configuration file says while pods are
// there.
func TestSettingsChange(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.CNIConfDir = t.TempDir()
	n := slotNetwork(t, cfg, 2)
	must(t, n.SetSlots(4))
	awaitSlots(t, n, 4)
	must(t, n.SetSlots(1))
	awaitSlots(t, n, 1)
	if links := n.slots.links(); len(links) != 1 {
		t.Errorf("%d slots are known", len(links))
	}

	bin, _ := fakePlugin(t, "fake", fakeResult)
	other := cniConfig(t, bin, map[string]string{"1.conflist": fakeConf("1.0.0", "")})
	n.SetCNI(CNI{ConfDir: other.CNIConfDir, BinDirs: other.CNIBinDirs})
	plugged := testPod(t, "plugged")
	_, err := n.Setup(bg, plugged)
	must(t, err)
	if l := n.leases.get(plugged.ID); l == nil || l.CNI == nil {
		t.Errorf("after the directory has changed: %+v", l)
	}
	n.SetCNI(CNI{ConfDir: cfg.CNIConfDir, BinDirs: other.CNIBinDirs})
	setup(t, n, testPod(t, "bridged"))
	if l := n.leases.get("id-bridged"); l == nil || l.CNI != nil {
		t.Errorf("after it has changed back: %+v", l)
	}
	teardown(t, n, plugged)
	must(t, n.SetSlots(0))
}
