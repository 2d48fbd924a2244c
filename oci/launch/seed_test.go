package launch

import (
	"fmt"
	"strings"
	"testing"
)

// TestSeed starts containers from an empty mount namespace.
func TestSeed(t *testing.T) {
	needRoot(t)
	seed, err := NewSeed()
	if err != nil {
		t.Fatal(err)
	}
	defer seed.Close()
	opt := Options{MountNamespace: fmt.Sprintf("/proc/self/fd/%d", seed.Fd())}
	root := rootfs(t)
	plain, _ := run(t, testSpec(root, "cut -d' ' -f5- /proc/self/mountinfo; ls /dev"), Options{})
	seeded, status := run(t, testSpec(root, "cut -d' ' -f5- /proc/self/mountinfo; ls /dev"), opt)
	if plain != seeded || status.ExitStatus() != 0 {
		t.Errorf("status %v, got\n%s\nwant\n%s", status, seeded, plain)
	}
	spec := testSpec(root, "echo $(id -u) $(cat /data/bin/busybox | wc -c)")
	spec.Mounts = append(spec.Mounts, bind(root, "/data"))
	spec.Process.OOMScoreAdj = new(int)
	opt.Rootfs = overlayOptions(t, root)
	if out, _ := run(t, spec, opt); !strings.HasPrefix(out, "0 ") {
		t.Errorf("output %q", out)
	}
	// A user namespace does without.
	if out, _ := run(t, withUserns(testSpec(root, "id -u")), Options{MountNamespace: opt.MountNamespace}); out != "0\n" {
		t.Errorf("output %q", out)
	}
}
