package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/config"
	"podstead/image/imagetest"
	"podstead/oci/criu"
)

func needCRIU(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := criu.Usable(ctx); err != nil {
		t.Skip("needs a CRIU that works on this kernel: ", err)
	}
}

// counting is a process whose memory is a number, which it writes to its log and
// to a file of its own.
const counting = `echo old >/file; rm /bin/tail; i=0; while :; do i=$((i+1)); echo $i; echo $i >/new; mv /new /count; sleep 0.05; done`

func (n *node) count(c string) int {
	n.t.Helper()
	i, err := strconv.Atoi(strings.TrimSpace(string(n.sh(c, "cat /count").Stdout)))
	if err != nil {
		n.t.Fatal(err)
	}
	return i
}

// countsFrom waits until the process counts on from at least from.
func (n *node) countsFrom(c string, from int) {
	n.t.Helper()
	eventually(n.t, "the process to count on", func() bool { return n.count(c) > from+2 })
}

func TestCheckpointAndRestoreContainer(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	ctx := t.Context()
	volume := t.TempDir()
	mounted := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: "/var/run/volume", HostPath: volume, Readonly: true})
	}
	pod := n.run(n.pod())
	c := n.begin(pod, n.script(counting, mounted))
	eventually(t, "a first count", func() bool { return len(n.sh(c, "cat /count").Stdout) > 0 })
	archive := filepath.Join(t.TempDir(), "archive.tar")
	if _, err := n.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: c, Location: archive}); err != nil {
		t.Fatal(err)
	}
	at := n.count(c)
	n.countsFrom(c, at)
	info, err := os.Stat(archive)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("archive: %v, %v", info, err)
	}
	names := archiveNames(t, archive)
	for _, want := range []string{"config.dump", "spec.dump", "checkpoint/inventory.img", "rootfs-diff.tar", "deleted.files", "dump.log", "stats-dump"} {
		if !names[want] {
			t.Errorf("the archive has no %s", want)
		}
	}
	if _, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	// Another pod, with another network and another address.
	other := n.run(n.pod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Uid += "-2" }))
	restored := n.create(other, n.script("not executed", mounted, func(c *runtimeapi.ContainerConfig) { c.Image.Image = archive }))
	if got := n.status(restored); got.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state %v", got.State)
	}
	if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: restored}); err != nil {
		t.Fatal(err)
	}
	n.countsFrom(restored, n.count(restored))
	if got := n.count(restored); got < at/2 {
		t.Errorf("counts at %d, was at %d", got, at)
	}
	out := n.sh(restored, "cat /file; test -e /bin/tail && echo tail; touch /var/run/volume/x && echo written; hostname")
	if got := string(out.Stdout); !strings.HasPrefix(got, "old\n") || strings.Contains(got, "tail") || strings.Contains(got, "written") {
		t.Errorf("the root has %q", got)
	}
	log, err := os.ReadFile(n.status(restored).LogPath)
	if err != nil || !strings.Contains(string(log), " stdout F ") {
		t.Errorf("log %.200q, %v", log, err)
	}
	n.restoresFromCompressed(other, archive, mounted)
	// It can be checkpointed again, and ends as any other.
	if _, err := n.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: restored, Location: archive}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: restored, Timeout: 0}); err != nil {
		t.Fatal(err)
	}
	if end := n.exited(restored); end.ExitCode != 137 {
		t.Errorf("ended with %d (%s)", end.ExitCode, end.Reason)
	}
}

// restoresFromCompressed restores the container from a compressed archive, and
// from an image as buildah makes them of archives.
func (n *node) restoresFromCompressed(pod, archive string, change func(*runtimeapi.ContainerConfig)) {
	n.t.Helper()
	b, err := os.ReadFile(archive)
	if err != nil {
		n.t.Fatal(err)
	}
	n.load(checkpointImage(n.t, b), "test.local/checkpoint:1")
	from := []string{"test.local/checkpoint:1"}
	for _, how := range []imagetest.Compression{imagetest.Gzip, imagetest.Zstd} {
		from = append(from, archive+"."+string(how))
		if err := os.WriteFile(archive+"."+string(how), imagetest.Compress(n.t, b, how), 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	for _, image := range from {
		c := n.begin(pod, n.script("not executed", change, func(c *runtimeapi.ContainerConfig) { c.Image.Image = image }))
		n.countsFrom(c, n.count(c))
		if st := n.status(c); st.Image.Image != image {
			n.t.Errorf("%s: status has the image %v", image, st.Image)
		}
		if _, err := n.RemoveContainer(context.Background(), &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
			n.t.Fatal(err)
		}
	}
}

// checkpointImage is an image with the files of an archive for its root, and the
// annotation that says so.
func checkpointImage(t testing.TB, archive []byte) imagetest.Image {
	t.Helper()
	img := imagetest.New(t, imagetest.Config{}, imagetest.Layer{Tar: archive, Compression: imagetest.Gzip})
	var manifest map[string]any
	if err := json.Unmarshal(img.Manifest.Data, &manifest); err != nil {
		t.Fatal(err)
	}
	manifest["annotations"] = map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": "counter"}
	var err error
	if img.Manifest.Data, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestCheckpointOnRunc: another runtime's container is checkpointed by that
// runtime's command, goes on, and is restored by the built-in handler alone.
func TestCheckpointOnRunc(t *testing.T) {
	needCRIU(t)
	n := newNode(t, runc(t), config.Handler{Name: "own", Type: config.Builtin})
	pod := n.run(n.pod())
	c := n.begin(pod, n.script(counting))
	eventually(t, "a first count", func() bool { return len(n.sh(c, "cat /count").Stdout) > 0 })
	dir := t.TempDir()
	archive := filepath.Join(dir, "archive.tar")
	if _, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: c, Location: archive}); err != nil {
		t.Fatal(err)
	}
	n.countsFrom(c, n.count(c))
	names := archiveNames(t, archive)
	for _, want := range []string{"config.dump", "spec.dump", "checkpoint/inventory.img", "rootfs-diff.tar", "deleted.files", "dump.log"} {
		if !names[want] {
			t.Errorf("the archive has no %s", want)
		}
	}
	from := func(c *runtimeapi.ContainerConfig) { c.Image.Image = archive }
	_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("not executed", from)})
	if cri.Code(err) != codes.Unimplemented {
		t.Errorf("a restore by runc: %v", err)
	}
	own, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.pod(), RuntimeHandler: "own"})
	if err != nil {
		t.Fatal(err)
	}
	restored := n.begin(own.PodSandboxId, n.script("not executed", from))
	n.countsFrom(restored, n.count(restored))
}

// TestHostileCheckpointImages: an image that says to be a checkpoint, and is
// none, makes no container and leaves nothing.
func TestHostileCheckpointImages(t *testing.T) {
	n := newNode(t)
	pod := n.run(n.pod())
	files := []imagetest.File{
		{Name: "config.dump", Data: []byte(`{"name": "c", "rootfsImageName": "` + testImage + `"}`)}, {Name: "spec.dump", Data: []byte("{}")},
		{Name: "checkpoint/"}, {Name: "checkpoint/inventory.img"}, {Name: "checkpoint/pstree.img"},
	}
	for what, bad := range map[string][]imagetest.File{
		"nothing":                 {{Name: "etc/"}},
		"images elsewhere":        {files[0], files[1], {Name: "checkpoint", Link: "/etc"}},
		"a link for metadata":     append([]imagetest.File{{Name: "config.dump", Link: "/etc/hostname"}}, files[1:]...),
		"a link among the images": append(slices.Clone(files), imagetest.File{Name: "checkpoint/pages-1.img", Link: "/etc/shadow"}),
		"a strange name":          append(slices.Clone(files), imagetest.File{Name: "checkpoint/a b"}),
		"no JSON":                 append([]imagetest.File{{Name: "config.dump", Data: []byte("{")}}, files[1:]...),
		"another image":           append([]imagetest.File{{Name: "config.dump", Data: []byte(`{"name": "c", "rootfsImageName": "test.local/none:1"}`)}}, files[1:]...),
	} {
		name := "test.local/hostile:" + strings.ReplaceAll(what, " ", "-")
		n.load(checkpointImage(t, imagetest.Tar(t, bad...)), name)
		_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", func(c *runtimeapi.ContainerConfig) { c.Image.Image = name })})
		if code := cri.Code(err); code != codes.InvalidArgument && code != codes.NotFound && code != codes.Unknown || err == nil {
			t.Errorf("%s: %v (%v)", what, err, code)
		}
		if left := n.containersOf(pod); len(left) > 0 {
			t.Fatalf("%s: %d containers are left", what, len(left))
		}
		if left := n.images.Holders(); len(left) > 0 {
			t.Errorf("%s: image holds are left: %v", what, left)
		}
	}
	// Without the annotation it is an image as any other.
	n.load(imagetest.New(t, imagetest.Config{Cmd: []string{"x"}}, imagetest.Layer{Tar: imagetest.Tar(t, files...), Compression: imagetest.Gzip}), "test.local/plain:1")
	_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "test.local/plain:1" })})
	if err == nil || !strings.Contains(err.Error(), "/bin/sh") {
		t.Errorf("an ordinary image without the program: %v", err)
	}
}

func archiveNames(t *testing.T, path string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = true
	}
}

func TestCheckpointThatFails(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.run(n.pod())
	c := n.begin(pod, n.script("exec 9>/big; dd if=/dev/zero bs=1M count=3 >&9 2>/dev/null; rm /big; "+counting))
	eventually(t, "a first count", func() bool { return len(n.sh(c, "cat /count").Stdout) > 0 })
	dir := t.TempDir()
	for what, try := range map[string]func() error{
		"what CRIU cannot dump": func() error {
			_, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: c, Location: dir + "/a"})
			return err
		},
		"a caller who has left": func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			_, err := n.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: c, Location: dir + "/a"})
			return err
		},
		"a whole pod": func() error {
			_, err := n.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: dir, ContainerIds: []string{c}})
			return err
		},
	} {
		if err := try(); err == nil {
			t.Errorf("%s: no error", what)
		}
		n.countsFrom(c, n.count(c))
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: left %v", what, left)
		}
		if left, _ := filepath.Glob(n.Engine.containerFile(c, "checkpoint*")); len(left) > 0 {
			t.Errorf("%s: left %v", what, left)
		}
	}
	for _, bad := range []*runtimeapi.CheckpointContainerRequest{
		{ContainerId: c, Location: "relative"}, {ContainerId: c, Location: dir + "/a", Timeout: -1},
	} {
		if _, err := n.CheckpointContainer(t.Context(), bad); cri.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
	_, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "none", Location: dir + "/a"})
	if cri.Code(err) != codes.NotFound {
		t.Errorf("no container: %v", err)
	}
}

// A terminal's output goes on in the new container's log.
func TestRestoreTerminal(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.run(n.pod())
	tty := func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }
	c := n.begin(pod, n.script(counting, tty))
	eventually(t, "a first count", func() bool { return len(n.sh(c, "cat /count").Stdout) > 0 })
	archive := filepath.Join(t.TempDir(), "archive.tar")
	if _, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: c, Location: archive}); err != nil {
		t.Fatal(err)
	}
	n.countsFrom(c, n.count(c))
	r := n.begin(pod, n.script("x", tty, func(c *runtimeapi.ContainerConfig) { c.Image.Image = archive }))
	eventually(t, "output in the log", func() bool {
		log, err := os.ReadFile(n.status(r).LogPath)
		return err == nil && strings.Count(string(log), " stdout F ") > 2
	})
	for _, id := range []string{c, r} {
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
	}
}

// An engine that is started anew knows restored containers as any other, and
// ends those that were not restored yet: what that takes went with it.
func TestRestartAndRestore(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.run(n.pod())
	c := n.begin(pod, n.script(counting))
	eventually(t, "a first count", func() bool { return len(n.sh(c, "cat /count").Stdout) > 0 })
	archive := filepath.Join(t.TempDir(), "archive.tar")
	if _, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: c, Location: archive}); err != nil {
		t.Fatal(err)
	}
	from := func(c *runtimeapi.ContainerConfig) { c.Image.Image = archive }
	restored := n.begin(pod, n.script("x", from))
	created := n.create(pod, n.script("x", from))
	n.restart()
	n.countsFrom(restored, n.count(restored))
	if end := n.exited(created); end.Reason != reasonStartError || !strings.Contains(end.Message, "create it again") {
		t.Errorf("the other: %v", end)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: restored}); err != nil {
		t.Fatal(err)
	}
	if end := n.exited(restored); end.ExitCode != 137 {
		t.Errorf("ended with %d (%s)", end.ExitCode, end.Reason)
	}
}

// What an archive holds is no way to more rights than the request gives.
func TestRestoreObeysTheRequest(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	ctx := t.Context()
	volume := t.TempDir()
	pod := n.run(n.pod())
	volumes := func(readonly bool) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: "/volume", HostPath: volume, Readonly: readonly})
		}
	}
	c := n.begin(pod, n.script(counting, volumes(false), func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	}))
	eventually(t, "a first count", func() bool { return len(n.sh(c, "cat /count").Stdout) > 0 })
	archive := filepath.Join(t.TempDir(), "archive.tar")
	if _, err := n.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: c, Location: archive}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"capability": volumes(false),
		"read-only volume": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
			volumes(true)(c)
		},
		"no volume": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := n.run(n.pod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Uid += name }))
			r := n.create(pod, n.script("x", change, func(c *runtimeapi.ContainerConfig) { c.Image.Image = archive }))
			_, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r})
			if err == nil {
				t.Fatal("it runs")
			}
			end := n.exited(r)
			if end.Reason != reasonStartError || end.ExitCode != exitStartError {
				t.Errorf("ended as %v (start: %v)", end, err)
			}
		})
	}
}

func TestCheckpointAndRestorePod(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	pod := n.run(n.pod())
	var ids []string
	var configs []*runtimeapi.ContainerConfig
	for i := range 2 {
		config := n.script(counting, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = fmt.Sprint("c", i) })
		configs = append(configs, config)
		c := n.begin(pod, config)
		eventually(t, "a first count", func() bool { return len(n.sh(c, "cat /count").Stdout) > 0 })
		ids = append(ids, c)
	}
	dir := t.TempDir()
	if _, err := n.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: dir, ContainerIds: ids}); err != nil {
		t.Fatal(err)
	}
	for _, c := range ids {
		n.countsFrom(c, n.count(c))
	}
	if _, err := n.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: dir, ContainerIds: ids}); cri.Code(err) != codes.InvalidArgument {
		t.Errorf("into a directory that is not empty: %v", err)
	}
	config := n.pod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Uid += "-2" })
	renamed := n.script(counting, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "other" })
	otherArgs := n.script("other", func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "c1" })
	for name, list := range map[string][]*runtimeapi.ContainerConfig{
		"one too few": configs[:1], "another name": {configs[0], renamed}, "other arguments": {configs[0], otherArgs},
	} {
		before := len(n.Engine.allSandboxes())
		_, err := n.RestorePod(ctx, &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: config, ContainerConfigs: list})
		if cri.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if now := len(n.Engine.allSandboxes()); now != before {
			t.Errorf("%s: %d sandboxes, were %d", name, now, before)
		}
	}
	r, err := n.RestorePod(ctx, &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: config, ContainerConfigs: configs})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.RestoredContainers) != 2 {
		t.Fatalf("%v", r)
	}
	for _, c := range r.RestoredContainers {
		if st := n.status(c.ContainerId); st.State != runtimeapi.ContainerState_CONTAINER_CREATED || st.Metadata.Name != c.Name {
			t.Errorf("%s: %v", c.Name, st)
		}
		if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			t.Fatal(err)
		}
		n.countsFrom(c.ContainerId, 0)
	}
	if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
		t.Fatal(err)
	}
}
