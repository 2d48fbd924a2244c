package engine

import (
	"testing"

	"podstead/cri/conformance"
	"podstead/engine/config"
	"podstead/image/imagetest"
	testhost "podstead/test/host"
)

// TestConformance runs the suite that every implementation of the interface has
// to pass.
func TestConformance(t *testing.T) {
	n := newNode(t)
	n.load(imagetest.New(t, imagetest.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin:/sbin", "FROM_IMAGE=yes"}},
		imagetest.Layer{Tar: imagetest.Tar(t, imagetest.BusyboxFiles(t)...), Compression: imagetest.Gzip}), "test.local/conformance:1")
	settings := n.cfg.Settings
	settings.Handlers = append(settings.Handlers, config.Handler{Name: "other", Type: config.Builtin})
	if err := n.Reload(settings); err != nil {
		t.Fatal(err)
	}
	conformance.Run(t, conformance.Target{
		Runtime: n, Image: "test.local/conformance:1",
		PullImage: imagetest.Registry(t, map[string]imagetest.Image{"pulled:1": imagetest.Program(t, "/bin/busybox")}) + "/pulled:1",
		Private: conformance.Private{
			Image:    imagetest.PrivateRegistry(t, map[string]imagetest.Image{"private:1": imagetest.Program(t, "/bin/busybox")}, "me", "hunter2") + "/private:1",
			Username: "me", Password: "hunter2",
		},
		CgroupParent: testhost.Cgroup(), CDIDir: n.cdi, Handler: "other", Proves: true, Bulk: testhost.Rounds(10),
	})
}
