package engine

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/image/imagetest"
	"podstead/sys"
)

// busyboxWith is an image of busybox with a configuration of its own.
func busyboxWith(t *testing.T, c imagetest.Config) imagetest.Image {
	c.Env = []string{"PATH=/bin:/sbin"}
	return imagetest.New(t, c, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.BusyboxFiles(t)...), Compression: imagetest.Gzip})
}

// TestStopSignalOfTheImage: the request's signal counts for more than the
// image's, and that for more than SIGTERM.
func TestStopSignalOfTheImage(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	n.load(busyboxWith(t, imagetest.Config{Cmd: []string{"sh"}, StopSignal: "SIGUSR2"}), "test.local/usr2:1")
	pod := n.run(n.pod())
	const script = `trap 'exit 10' USR1; trap 'exit 12' USR2; trap 'exit 15' TERM; echo ready; while :; do sleep 0.05; done`
	for want, signal := range map[int32]runtimeapi.Signal{10: runtimeapi.Signal_SIGNAL_SIGUSR1, 12: runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT} {
		c := n.ready(n.begin(pod, n.script(script, func(c *runtimeapi.ContainerConfig) {
			c.Image.Image, c.StopSignal = "test.local/usr2:1", signal
		})))
		if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 60}); err != nil {
			t.Fatal(err)
		}
		st := n.status(c)
		if name := map[int32]runtimeapi.Signal{10: signal, 12: runtimeapi.Signal_SIGNAL_SIGUSR2}[want]; st.ExitCode != want || st.StopSignal != name {
			t.Errorf("asked for %s: exit code %d, status has %s", signal, st.ExitCode, st.StopSignal)
		}
	}
}

// TestStopWithoutNamespaces stops a pod whose namespaces have gone, as they go
// with somebody's clean-up of /run: the address is free again.
func TestStopWithoutNamespaces(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	pod := n.run(n.pod())
	rec := n.allSandboxes()[0].record()
	for _, path := range []string{n.netnsPath(&rec), n.ipcPath(&rec), n.namespacePath(pod, sys.UTSNamespace)} {
		if err := sys.ReleaseNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(n.networkState + "/*/" + pod + "*"); err != nil || len(left) > 0 {
		t.Errorf("leases are left: %v, %v", left, err)
	}
}

// TestURLsThatNobodyUses: who asks for URLs and does not use them is told to
// wait, and the engine's memory does not grow.
func TestURLsThatNobodyUses(t *testing.T) {
	n := newNode(t)
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever)))
	for i := range 1100 {
		_, err := n.Exec(context.Background(), &runtimeapi.ExecRequest{ContainerId: c, Cmd: []string{"true"}, Stdout: true})
		if err == nil {
			continue
		}
		if code := cri.Code(err); i < 100 || code != codes.ResourceExhausted {
			t.Errorf("URL %d: %v (%v)", i, err, code)
		}
		return
	}
	t.Error("1100 URLs are kept")
}

// TestRecursiveReadOnlyIsRefused on a host or handler that has none, in the word
// that the kubelet looks for.
func TestRecursiveReadOnlyIsRefused(t *testing.T) {
	n := newNode(t)
	n.builtin.Supports.RecursiveReadOnlyMounts = false
	_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: n.run(n.pod()), Config: n.script("true", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/m", Readonly: true, RecursiveReadOnly: true}}
	})})
	if err == nil || !strings.HasPrefix(err.Error(), "RROUnsupported: ") {
		t.Errorf("error is %v", err)
	}
}

// TestFeaturesOfHandlers: what no handler has is not claimed.
func TestFeaturesOfHandlers(t *testing.T) {
	n := newNode(t)
	features := func() *runtimeapi.RuntimeFeatures {
		r, err := n.Status(context.Background(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Features
	}
	if f := features(); f.UserNamespacesHostNetwork != n.host.userNamespaces || !f.MountOptions || !f.SupplementalGroupsPolicy {
		t.Errorf("features are %v", f)
	}
	settings := n.with(runc(t))
	settings.DefaultHandler = "runc"
	if err := n.Reload(settings); err != nil {
		t.Fatal(err)
	}
	if f := features(); f.UserNamespacesHostNetwork {
		t.Errorf("with runc alone features are %v", f)
	}
}

// TestImageOfManyNames lists an image with several names once, and removes it
// with all of them, while a container made from it goes on.
func TestImageOfManyNames(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	names := []string{"test.local/one:latest", "test.local/two:2", "other.local/three:3"}
	img := busyboxWith(t, imagetest.Config{Cmd: []string{"sh"}, Labels: map[string]string{"of": "many names"}})
	for _, name := range names {
		n.load(img, name)
	}
	var id string
	for _, name := range append(names, "test.local/one") {
		r, err := n.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil || r.Image == nil || id != "" && r.Image.Id != id {
			t.Fatalf("%s: %v, %v", name, r, err)
		}
		id = r.Image.Id
	}
	list, err := n.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, i := range list.Images {
		if i.Id == id {
			if seen++; len(i.RepoTags) != len(names) {
				t.Errorf("listed with the names %q", i.RepoTags)
			}
		}
	}
	if seen != 1 {
		t.Errorf("it is listed %d times", seen)
	}
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever, func(c *runtimeapi.ContainerConfig) { c.Image.Image = names[1] })))
	if _, err := n.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: names[1]}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, id) {
		if r, err := n.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil || r.Image != nil {
			t.Errorf("%s is still there: %v, %v", name, r, err)
		}
	}
	if out := n.sh(c, "ls /bin/busybox && echo x > /file && cat /file"); string(out.Stdout) != "/bin/busybox\nx\n" {
		t.Errorf("its container sees %q%q", out.Stdout, out.Stderr)
	}
}

// TestSplitFilesystems: where writable layers are on another file system than
// images, that is told, with what they take.
func TestSplitFilesystems(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	info := func() (images, containers *runtimeapi.FilesystemUsage) {
		r, err := n.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		if err != nil || len(r.ImageFilesystems) != 1 || len(r.ContainerFilesystems) != 1 {
			t.Fatalf("%v, %v", r, err)
		}
		return r.ImageFilesystems[0], r.ContainerFilesystems[0]
	}
	if i, c := info(); i.FsId.Mountpoint != c.FsId.Mountpoint || i.UsedBytes.Value != c.UsedBytes.Value {
		t.Errorf("on one file system they are %v and %v", i, c)
	}
	if err := n.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.cfg.StateDir, "containers")
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	n.start()
	pod := n.run(n.pod())
	t.Cleanup(func() {
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := n.ready(n.begin(pod, n.script("head -c 3000000 /dev/zero > /file; "+forever)))
	if _, err := n.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	i, containers := info()
	if containers.FsId.Mountpoint != dir || containers.UsedBytes.Value < 3000000 || containers.InodesUsed.Value == 0 || i.FsId.Mountpoint == dir {
		t.Errorf("images are on %v, containers on %v", i, containers)
	}
}
