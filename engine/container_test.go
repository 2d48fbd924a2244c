package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/image/imagetest"
	testhost "podstead/test/host"
)

// TestHostileAccounts runs images whose account files lead elsewhere or are no
// files: nothing of the host is read, nothing blocks, and the error says why.
func TestHostileAccounts(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	pod := n.run(n.pod())
	secret := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(secret, []byte("hostuser:x:4242:4242::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	without := func(files []imagetest.File, name string) []imagetest.File {
		var rest []imagetest.File
		for _, f := range files {
			if f.Name != name {
				rest = append(rest, f)
			}
		}
		return rest
	}
	base := without(imagetest.BusyboxFiles(t), "etc/passwd")
	for name, tc := range map[string]struct {
		passwd imagetest.File
		want   string
	}{
		"link to the host": {imagetest.File{Name: "etc/passwd", Link: secret}, "not in the image's /etc/passwd"},
		"link upwards":     {imagetest.File{Name: "etc/passwd", Link: "../../../../.." + secret}, "not in the image's /etc/passwd"},
		"directory":        {imagetest.File{Name: "etc/passwd/"}, "not a regular file"},
		"link to itself":   {imagetest.File{Name: "etc/passwd", Link: "passwd"}, "too many levels"},
		"huge":             {imagetest.File{Name: "etc/passwd", Data: []byte(strings.Repeat("x", 2<<20))}, "larger than"},
		"none":             {imagetest.File{Name: "etc/other"}, "not in the image's /etc/passwd"},
	} {
		t.Run(name, func(t *testing.T) {
			ref := "test.local/hostile:" + strings.ReplaceAll(name, " ", "-")
			n.load(imagetest.New(t, imagetest.Config{Cmd: []string{"/bin/sh"}},
				imagetest.Layer{Tar: imagetest.Tar(t, append(base[:len(base):len(base)], tc.passwd)...), Compression: imagetest.Gzip}), ref)
			_, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("id", func(c *runtimeapi.ContainerConfig) {
				c.Image.Image = ref
				c.Linux.SecurityContext.RunAsUsername = "hostuser"
			})})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

// TestLargeAccountsAreNotKept: many images with huge account files must not fill
// the engine's memory.
func TestLargeAccountsAreNotKept(t *testing.T) {
	testhost.Require(t)
	var cache accountCache
	for name, c := range map[string]struct {
		group string
		kept  bool
	}{
		"small": {"wheel:x:10:app\n", true},
		"large": {"wheel:x:10:" + strings.Repeat("app,", 100<<10) + "\n", false},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(dir+"/etc", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/etc/group", []byte(c.group), 0o644); err != nil {
			t.Fatal(err)
		}
		a, err := cache.get(name, []string{dir})
		if err != nil || len(a.Groups) != 1 {
			t.Errorf("%s: %v, %v", name, a.Groups, err)
		}
		if _, kept := cache.byImage[name]; kept != c.kept {
			t.Errorf("%s: kept is %v", name, kept)
		}
	}
}

// TestOOMIsTold kills a container for its memory limit; one whose child is
// killed and that ends well is not said to be killed itself.
func TestOOMIsTold(t *testing.T) {
	n := newNode(t)
	pod := n.run(n.pod())
	limit := func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}
	}
	const eat = `tail /dev/zero`
	killed := n.exited(n.begin(pod, n.script("exec "+eat, limit)))
	if killed.Reason != "OOMKilled" || killed.ExitCode != 137 || !strings.Contains(killed.Message, "memory limit") {
		t.Errorf("killed: %v", killed)
	}
	survivor := n.exited(n.begin(pod, n.script(eat+"; exit 0", limit)))
	if survivor.Reason != "Completed" || survivor.ExitCode != 0 || !strings.Contains(survivor.Message, "memory limit") {
		t.Errorf("survivor: %v", survivor)
	}
	small := n.exited(n.begin(pod, n.script("exit 4", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}
	})))
	if small.ExitCode != 4 {
		t.Errorf("a container with 1 MiB: %v", small)
	}
}

// TestOOMKillsAll: with memory.oom.group, which kubelets set, nothing of the
// container stays when one of its processes is killed, an exec'd one included.
func TestOOMKillsAll(t *testing.T) {
	n := newNode(t)
	if !n.host.spec.CgroupUnified {
		t.Skip("needs cgroup v2")
	}
	group := func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20, Unified: map[string]string{"memory.oom.group": "1"},
		}
	}
	pod := n.run(n.pod())
	own := n.exited(n.begin(pod, n.script("tail /dev/zero; exit 0", group)))
	if own.Reason != "OOMKilled" || own.ExitCode != 137 {
		t.Errorf("whose child took too much: %v", own)
	}
	c := n.ready(n.begin(pod, n.script(forever, group)))
	out, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"/bin/sh", "-c", "tail /dev/zero; exit 0"}})
	if err == nil && out.ExitCode != 137 {
		t.Errorf("the exec'd shell ended with %v", out)
	}
	if end := n.exited(c); end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("whose exec'd process took too much: %v", end)
	}
}

// TestPressure reads stalls where the kernel counts them.
func TestPressure(t *testing.T) {
	n := newNode(t)
	if !n.host.spec.CgroupUnified {
		t.Skip("needs cgroup v2")
	}
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever)))
	st, err := n.ContainerStats(context.Background(), &runtimeapi.ContainerStatsRequest{ContainerId: c})
	if err != nil || st.Stats.Cpu.Psi == nil || st.Stats.Memory.Psi == nil || st.Stats.Io.GetPsi() == nil {
		t.Errorf("stats %v, %v", st, err)
	}
}

// TestImageVolume mounts an image, and a part of it, in a container.
func TestImageVolume(t *testing.T) {
	n := newNode(t)
	pod := n.run(n.pod())
	n.load(imagetest.New(t, imagetest.Config{Cmd: []string{"x"}},
		imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "data/"}, imagetest.File{Name: "data/a", Data: []byte("lower")}), Compression: imagetest.Gzip},
		imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: "data/"}, imagetest.File{Name: "data/b", Data: []byte("upper")},
			imagetest.File{Name: "link", Link: "/data"}, imagetest.File{Name: "out", Link: "../../../../etc"}), Compression: imagetest.Gzip},
	), "test.local/volume:1")
	volume := func(sub string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{
				ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: "test.local/volume:1"}, ImageSubPath: sub, Readonly: true,
			}}
		}
	}
	for sub, script := range map[string]string{
		"":     "cat /v/data/a /v/data/b && ! touch /v/x",
		"data": "cat /v/a /v/b && ! touch /v/x",
		"link": "cat /v/a /v/b",
	} {
		c := n.begin(pod, n.script(script, volume(sub)))
		if st := n.exited(c); st.ExitCode != 0 {
			t.Errorf("sub path %q: %v", sub, st)
		}
		if ref := n.status(c).Mounts[0].Image.ImageRef; !strings.Contains(ref, "sha256:") {
			t.Errorf("image_ref of the mount is %q", ref)
		}
	}
	_, err := n.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.script("true", volume("out"))})
	if err == nil || !strings.HasPrefix(err.Error(), "ImageVolumeMountFailed: ") {
		t.Errorf("a link out of the image: %v", err)
	}
}

// TestExecTimeoutKillsAll lets an exec'd command time out that has started
// others: none of them stays, in whatever session it is.
func TestExecTimeoutKillsAll(t *testing.T) {
	n := newNode(t)
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever)))
	_, err := n.ExecSync(context.Background(), &runtimeapi.ExecSyncRequest{
		ContainerId: c, Timeout: 1,
		Cmd: []string{"/bin/sh", "-c", "setsid sleep 4321 & sleep 4321 & (sleep 4321; true) & wait"},
	})
	if cri.Code(err) != codes.DeadlineExceeded {
		t.Fatalf("error %v, want DeadlineExceeded", err)
	}
	if out := n.sh(c, "ps | grep '[4]321'"); len(out.Stdout) > 0 {
		t.Errorf("still there:\n%s", out.Stdout)
	}
	if st := n.status(c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container went with it: %v", st)
	}
}

// TestUpdateIsAllOrNothing makes an update fail in part: the limits stay.
func TestUpdateIsAllOrNothing(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	c := n.ready(n.begin(n.run(n.pod()), n.script(forever, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	})))
	_, err := n.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuShares: 100, CpusetCpus: "9999"},
	})
	if err == nil {
		t.Fatal("a cpuset that the machine has not was accepted")
	}
	if got := n.status(c).Resources.Linux; got.MemoryLimitInBytes != 64<<20 || got.CpuShares != 512 || got.CpusetCpus != "" {
		t.Errorf("status: %v", got)
	}
	st, err := n.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c})
	if err != nil {
		t.Fatal(err)
	}
	if m := st.Stats.Memory; m.AvailableBytes.Value < 33<<20 {
		t.Errorf("the kernel's limit is the failed update's: %v", m)
	}
}

// TestPropagation mounts below a shared host directory while containers run.
func TestPropagation(t *testing.T) {
	n := newNode(t)
	pod := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }))
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"in", "out"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	with := func(p runtimeapi.MountPropagation, privileged bool) *runtimeapi.ContainerConfig {
		return n.script(forever, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Privileged = privileged
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: dir, Propagation: p}}
		})
	}
	private := n.ready(n.begin(pod, with(runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false)))
	slave := n.ready(n.begin(pod, with(runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, false)))
	shared := n.ready(n.begin(pod, with(runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true)))
	if err := unix.Mount("tmpfs", dir+"/in", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/in", unix.MNT_DETACH) })
	for id, want := range map[string]int32{private: 1, slave: 0, shared: 0} {
		if out := n.sh(id, "grep -q ' /m/in ' /proc/mounts"); out.ExitCode != want {
			t.Errorf("%s: mount of the host: exit code %d, want %d", id, out.ExitCode, want)
		}
	}
	if out := n.sh(shared, "mount -t tmpfs tmpfs /m/out"); out.ExitCode != 0 {
		t.Fatalf("mount: %s", out.Stderr)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !strings.Contains(string(table), dir+"/out ") {
		t.Errorf("the container's mount is not on the host (%v)", err)
	}
	unix.Unmount(dir+"/out", unix.MNT_DETACH)
}

// TestUnprivilegedPort binds port 80 without privileges and pings oneself, as
// in other runtimes.
func TestUnprivilegedPort(t *testing.T) {
	n := newNode(t)
	c := n.exited(n.begin(n.run(n.pod()), n.script("nc -l -p 80 -e true & until cat /proc/net/tcp* | grep -q ':0050 [0-9A-F:]* 0A'; do sleep 0.01; done; echo | nc 127.0.0.1 80", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	})))
	if log, err := os.ReadFile(c.LogPath); err != nil || c.ExitCode != 0 {
		t.Errorf("%v\n%s%v", c, log, err)
	}
}

// TestManyPods runs 30 pods at once.
func TestManyPods(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	configs := make([]*runtimeapi.PodSandboxConfig, 30)
	for i := range configs {
		configs[i] = n.pod(func(c *runtimeapi.PodSandboxConfig) {
			if i%3 == 0 {
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
			}
		})
	}
	err := each(configs, func(config *runtimeapi.PodSandboxConfig) error {
		pod, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			return err
		}
		container := n.script(forever)
		container.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
		c, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: container})
		if err != nil {
			return err
		}
		if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return err
		}
		out, err := n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"hostname"}})
		if err == nil && string(out.Stdout) != config.Hostname+"\n" {
			err = fmt.Errorf("hostname is %q", out.Stdout)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != len(configs) {
		t.Fatalf("%d pods, %v", len(list.Items), err)
	}
	addresses := map[string]bool{}
	for _, item := range list.Items {
		st, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: item.Id})
		if err != nil {
			t.Fatal(err)
		}
		addresses[st.Status.Network.Ip] = true
	}
	if len(addresses) != len(configs) {
		t.Errorf("%d addresses for %d pods", len(addresses), len(configs))
	}
	err = each(list.Items, func(p *runtimeapi.PodSandbox) error {
		_, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestUserNamespace runs pods whose root is nobody on the host, with a volume
// that belongs to them inside.
func TestUserNamespace(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	for _, pid := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD} {
		mapping := []*runtimeapi.IDMapping{{HostId: 200000, Length: 65536}}
		options := &runtimeapi.NamespaceOption{Pid: pid, UsernsOptions: &runtimeapi.UserNamespace{Uids: mapping, Gids: mapping}}
		pod := n.run(n.pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions = options
			c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.tcp_syncookies": "0"}
		}))
		volume := t.TempDir()
		c := n.ready(n.begin(pod, n.script("touch /data/made /made && "+forever, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = options
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{}
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: volume, UidMappings: mapping, GidMappings: mapping}}
		})))
		out := n.sh(c, "id -u; read a b c </proc/self/uid_map; echo $a $b $c; cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/tcp_syncookies; "+
			"stat -c '%u %g' /bin/busybox /data/made /made /etc/hosts; touch /dev/shm/x && echo shm; echo >> /etc/hosts && echo hosts")
		want := "0\n0 200000 65536\n1\n0\n0 0\n0 0\n0 0\n0 0\nshm\nhosts\n"
		if string(out.Stdout) != want {
			t.Errorf("pid %v: output %q, want %q; %s", pid, out.Stdout, want, out.Stderr)
		}
		for _, file := range []string{filepath.Join(volume, "made"), n.containerFile(c, "upper/made")} {
			var st unix.Stat_t
			if err := unix.Lstat(file, &st); err != nil || st.Uid != 0 || st.Gid != 0 {
				t.Errorf("%s: uid %d, gid %d, %v", file, st.Uid, st.Gid, err)
			}
		}
		owner, err := os.Stat(fmt.Sprintf("/proc/%d", mustContainerRecord(t, n, c).Pid))
		if err != nil {
			t.Fatal(err)
		}
		if uid := owner.Sys().(*syscall.Stat_t).Uid; uid != 200000 {
			t.Errorf("the process runs as %d on the host", uid)
		}
		n.restart()
		if out := n.sh(c, "id -u"); string(out.Stdout) != "0\n" {
			t.Errorf("after a restart: %q", out.Stdout)
		}
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Error(err)
		}
	}
}

func mustContainerRecord(t *testing.T, n *node, id string) containerRecord {
	t.Helper()
	c, err := n.mustContainer(id)
	if err != nil {
		t.Fatal(err)
	}
	return c.record()
}
