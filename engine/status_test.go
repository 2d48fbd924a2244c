package engine

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/image"
	"podstead/network"
)

// TestStatusTellsWhy breaks the network's configuration: the status says that
// pods cannot be connected, and why; verbose, it says what a person wants to
// know.
func TestStatusTellsWhy(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	stopped := n.begin(n.run(n.pod()), n.script("exit 3"))
	n.exited(stopped)
	conf := t.TempDir()
	if err := os.WriteFile(filepath.Join(conf, "10-broken.conflist"), []byte(`{"name": "x", "plugins": [`), 0o600); err != nil {
		t.Fatal(err)
	}
	broken, err := network.New(network.Config{
		Name: "ptest0", StateDir: n.networkState, RunDir: n.networkRun,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00:88::/64")}, CNIConfDir: conf, Log: n.cfg.Log,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	good := n.cfg.Network
	n.cfg.Network = broken
	n.restart()
	defer func() {
		n.cfg.Network = good
		n.restart()
	}()
	resp, err := n.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Status.Conditions {
		switch {
		case c.Type == runtimeapi.RuntimeReady && !c.Status:
			t.Errorf("the runtime is not ready: %v", c)
		case c.Type == runtimeapi.NetworkReady && (c.Status || c.Reason == "" || !strings.Contains(c.Message, "10-broken.conflist")):
			t.Errorf("the condition does not say why: %v", c)
		}
	}
	n.log.Warn("something is odd", "pod", "p1")
	if resp, err = n.Status(ctx, &runtimeapi.StatusRequest{Verbose: true}); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"version": "1.2.3", "config": n.cfg.StateDir, "host": "kernel", "handlers": "userNamespaces", "cdi": n.cdi, "nri": "plugins",
		"network": "10-broken.conflist", "images": `"images":1`, "pods": `"exited":1`, "warnings": "something is odd pod=p1",
		"checkpoint": "usable",
	} {
		if !json.Valid([]byte(resp.Info[key])) || !strings.Contains(resp.Info[key], want) {
			t.Errorf("info %s has no %q: %s", key, want, resp.Info[key])
		}
	}
}

func TestImageUser(t *testing.T) {
	e := &Engine{}
	e.settings.Store(&settings{})
	for user, want := range map[string]struct {
		uid  int64 // -1: none
		name string
	}{
		"": {0, ""}, "1000": {1000, ""}, "1000:2000": {1000, ""}, "nobody": {-1, "nobody"}, "nobody:users": {-1, "nobody"},
		"99999999999": {-1, "99999999999"},
	} {
		img := image.Image{}
		img.Config.Config.User = user
		got := e.criImage(img)
		if got.Username != want.name || (got.Uid == nil) != (want.uid < 0) || got.Uid.GetValue() != max(want.uid, 0) {
			t.Errorf("USER %q: uid %v, name %q", user, got.Uid, got.Username)
		}
	}
}
