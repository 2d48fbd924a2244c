package conformance

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountTests are about what a container gets mounted.
var mountTests = []test{
	{"bind mounts", "ContainerConfig.mounts Mount.{container_path,host_path,readonly,selinux_relabel} ContainerStatus.mounts", bindMounts},
	{"a missing host path is made", "Mount.host_path", func(t *testing.T, s *suite) {
		dir := filepath.Join(t.TempDir(), "not", "there")
		s.pod(t).sh(t, "echo x > /m/file", mounts(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m"})).output(t)
		if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "x\n" {
			t.Errorf("the host sees %q, %v", b, err)
		}
	}},
	{"mount of something missing", "Mount.host_path", func(t *testing.T, s *suite) {
		err := s.pod(t).refuses(t, mounts(&runtimeapi.Mount{HostPath: "/dev/null/no-such", ContainerPath: "/x"}))
		if err == nil || !strings.Contains(err.Error(), "no-such") {
			t.Errorf("error is %v, want one that names the path", err)
		}
	}},
	{"mount over a link does not leave the root", "Mount.container_path", func(t *testing.T, s *suite) {
		// /bin/../../../ climbs out of a root that is resolved carelessly.
		c := s.pod(t).sh(t, "ls /tmp/made-by-mount", mounts(&runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/bin/../../../tmp/made-by-mount"}))
		c.output(t)
		if _, err := os.Stat("/tmp/made-by-mount"); err == nil {
			t.Error("the mount point was made on the host")
			os.Remove("/tmp/made-by-mount")
		}
	}},
	{"parents before children, over the runtime's own files", "ContainerConfig.mounts", func(t *testing.T, s *suite) {
		outer, inner, hosts := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "hosts")
		for file, text := range map[string]string{outer + "/a": "outer\n", inner + "/a": "inner\n", hosts: "my hosts\n"} {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c := s.pod(t).sh(t, "cat /m/a /m/deeper/a /etc/hosts", mounts(
			&runtimeapi.Mount{HostPath: inner, ContainerPath: "/m/deeper"},
			&runtimeapi.Mount{HostPath: outer, ContainerPath: "/m"},
			&runtimeapi.Mount{HostPath: hosts, ContainerPath: "/etc/hosts"},
		))
		if got := c.output(t); got != "outer\ninner\nmy hosts\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"options", "Mount.mount_options RuntimeFeatures.mount_options", mountOptions},
	{"propagation", "Mount.propagation", propagation},
	{"recursively read-only mounts", "Mount.recursive_read_only RuntimeHandlerFeatures.recursive_read_only_mounts", recursiveReadOnly},
	{"recursively read-only, refused", "Mount.recursive_read_only", func(t *testing.T, s *suite) {
		p, dir := s.pod(t), t.TempDir()
		wantError(t, "without readonly", p.refuses(t, mounts(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", RecursiveReadOnly: true})))
		wantError(t, "with propagation", p.refuses(t, mounts(&runtimeapi.Mount{
			HostPath: dir, ContainerPath: "/m", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		})))
	}},
	{"image volumes", "Mount.{image,image_sub_path} ImageSpec.image_ref", imageVolumes},
	{"image volumes, refused", "Mount.{image,image_sub_path}", imageVolumesRefused},
	{"with id mappings", "Mount.{uidMappings,gidMappings} IDMapping.{host_id,length}", mappedMount},
	{"shared memory", "", func(t *testing.T, s *suite) {
		p := s.pod(t)
		a := p.sh(t, `echo $(stat -c %a /dev/shm) $(df -k /dev/shm | tail -1 | awk '{print $2}'); echo hello > /dev/shm/file; sleep 1000`)
		a.says(t, "1777 65536\n")
		eventually(t, "another container reads the file", func() bool {
			return p.sh(t, "cat /dev/shm/file").output(t) == "hello\n"
		})
		if got := s.pod(t).sh(t, "ls /dev/shm").output(t); got != "" {
			t.Errorf("another pod sees %q", got)
		}
	}},
}

func mounts(list ...*runtimeapi.Mount) func(*runtimeapi.ContainerConfig) {
	return func(config *runtimeapi.ContainerConfig) { config.Mounts = list }
}

// refuses returns the error with which a container's creation fails, or its
// start, which some runtimes leave the work to.
func (p *pod) refuses(t *testing.T, change func(*runtimeapi.ContainerConfig)) error {
	t.Helper()
	config := p.script("refused", "true")
	change(config)
	r, err := p.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		if left := p.containers(t, &runtimeapi.ContainerFilter{PodSandboxId: p.id, LabelSelector: map[string]string{"container": "refused"}}); len(left) > 0 {
			t.Errorf("the failed creation left %v", left)
		}
		return err
	}
	c := &container{pod: p, id: r.GetContainerId()}
	_, err = p.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
	c.remove(t)
	return err
}

// feature returns the runtime's features, and those of the default handler.
func (s *suite) features(t *testing.T) (*runtimeapi.RuntimeFeatures, *runtimeapi.RuntimeHandlerFeatures) {
	t.Helper()
	r, err := s.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range r.GetRuntimeHandlers() {
		if h.GetName() == "" {
			return r.GetFeatures(), h.GetFeatures()
		}
	}
	return r.GetFeatures(), nil
}

func bindMounts(t *testing.T, s *suite) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := s.pod(t).sh(t, "exec 2>&1; cat /rw/file /one; echo x > /rw/new; echo y > /ro/new; true", mounts(
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/rw", SelinuxRelabel: true}, // as the kubelet always says
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/ro", Readonly: true},
		&runtimeapi.Mount{HostPath: filepath.Join(dir, "file"), ContainerPath: "/one", Readonly: true},
	))
	got := c.output(t)
	if !strings.HasPrefix(got, "from the host\nfrom the host\n") || !strings.Contains(strings.ToLower(got), "read-only") {
		t.Errorf("output is %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(b) != "x\n" {
		t.Errorf("the host sees %q, %v", b, err)
	}
	if mounts := c.status(t).GetMounts(); len(mounts) != 3 {
		t.Errorf("status has mounts %v, want three", mounts)
	}
}

func mountOptions(t *testing.T, s *suite) {
	if features, _ := s.features(t); !features.GetMountOptions() {
		t.Fatal("the runtime does not have the feature mount_options")
	}
	dir := t.TempDir()
	copyFile(t, "/bin/busybox", filepath.Join(dir, "busybox"))
	p := s.pod(t)
	const script = `/m/busybox echo ran 2>/dev/null; awk '$5 == "/m" { print $6 }' /proc/self/mountinfo | tr , '\n' | grep ^no | sort`
	for _, test := range []struct {
		options []string
		want    string
	}{
		{nil, "ran\n"},
		{[]string{"nosuid"}, "ran\nnosuid\n"},
		{[]string{"noexec", "nodev", "nosuid"}, "nodev\nnoexec\nnosuid\n"},
	} {
		c := p.sh(t, script+" | grep -v atime; true", mounts(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", MountOptions: test.options}))
		if got := c.output(t); got != test.want {
			t.Errorf("with %v: %q, want %q", test.options, got, test.want)
		}
		if got := c.status(t).GetMounts()[0].GetMountOptions(); len(got) != len(test.options) {
			t.Errorf("status has the options %v, want %v", got, test.options)
		}
	}
	err := p.refuses(t, mounts(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", MountOptions: []string{"suid"}}))
	wantCode(t, "an option that is not in the API", err, codes.InvalidArgument)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Skip(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
}

// sharedDirectory makes a directory whose mounts propagate, in the mount
// namespace that the test shares with the runtime.
func sharedDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot mount a file system for the test: %v", err)
	}
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

func propagation(t *testing.T, s *suite) {
	dir := sharedDirectory(t)
	for _, sub := range []string{"host", "guest"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) { config.Linux.SecurityContext.Privileged = true })
	at := func(mode runtimeapi.MountPropagation) *container {
		return p.sh(t, "sleep 1000", func(config *runtimeapi.ContainerConfig) {
			config.Linux.SecurityContext.Privileged = true
			config.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/m", Propagation: mode}}
		})
	}
	private := at(runtimeapi.MountPropagation_PROPAGATION_PRIVATE)
	slave := at(runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER)
	shared := at(runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL)
	if err := unix.Mount("tmpfs", filepath.Join(dir, "host"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "host", "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for c, want := range map[*container]string{private: "", slave: "new", shared: "new"} {
		if got := c.exec(t, "ls", "/m/host"); got != want {
			t.Errorf("a mount made on the host shows %q in the container, want %q", got, want)
		}
	}
	slave.exec(t, "mount", "-t", "tmpfs", "x", "/m/guest")
	private.exec(t, "mount", "-t", "tmpfs", "x", "/m/guest")
	if isMountPoint(t, filepath.Join(dir, "guest")) {
		t.Error("a mount of a container that must not reach the host did")
	}
	shared.exec(t, "mount", "-t", "tmpfs", "x", "/m/guest")
	if !isMountPoint(t, filepath.Join(dir, "guest")) {
		t.Error("a mount with BIDIRECTIONAL propagation did not reach the host")
	}
}

func isMountPoint(t *testing.T, dir string) bool {
	t.Helper()
	var here, above unix.Stat_t
	if err := unix.Stat(dir, &here); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(filepath.Dir(dir), &above); err != nil {
		t.Fatal(err)
	}
	return here.Dev != above.Dev
}

// recursiveReadOnly needs to be root in the runtime's mount namespace.
func recursiveReadOnly(t *testing.T, s *suite) {
	if _, features := s.features(t); !features.GetRecursiveReadOnlyMounts() {
		t.Skip("needs mount_setattr (Linux 5.12)")
	}
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount a file system for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(below, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := s.pod(t).sh(t, "touch /ro/below/a 2>/dev/null && echo one; touch /rro/below/b 2>/dev/null && echo two; true", mounts(
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/ro", Readonly: true},
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
	))
	if got := c.output(t); got != "one\n" {
		t.Errorf("it could write below: %q", got)
	}
	if m := c.status(t).GetMounts(); len(m) != 2 || m[0].GetRecursiveReadOnly() || !m[1].GetRecursiveReadOnly() {
		t.Errorf("status has mounts %v", m)
	}
}

func imageVolume(image, subPath string) *runtimeapi.Mount {
	return &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: subPath, ContainerPath: "/volume", Readonly: true}
}

func imageVolumes(t *testing.T, s *suite) {
	p := s.pod(t)
	image := s.image(t, s.Image)
	for subPath, file := range map[string]string{"": "/volume/bin/busybox", "bin": "/volume/busybox"} {
		c := p.sh(t, "exec 2>&1; "+file+" echo runs; touch /volume/x", mounts(imageVolume(s.Image, subPath)))
		c.exited(t)
		if got := c.log(t); !strings.HasPrefix(got, "runs\n") || !strings.Contains(strings.ToLower(got), "read-only") {
			t.Errorf("with sub-path %q: %q", subPath, got)
		}
		got := c.status(t).GetMounts()[0]
		if ref := s.image(t, got.GetImage().GetImageRef()); ref == nil || ref.GetId() != image.GetId() {
			t.Errorf("status has the mount %v, want the reference of image %s", got, image.GetId())
		}
	}
}

func imageVolumesRefused(t *testing.T, s *suite) {
	p := s.pod(t)
	for what, m := range map[string]*runtimeapi.Mount{
		"a sub-path that is not in the image": imageVolume(s.Image, "no/such/path"),
		"a sub-path that leads out":           imageVolume(s.Image, "../../../../etc"),
		"an absolute sub-path":                imageVolume(s.Image, "/bin"),
		"an image that is not there":          imageVolume("test.local/no/such:image", ""),
	} {
		err := p.refuses(t, mounts(m))
		wantError(t, what, err)
		if text := status.Convert(err).Message(); err != nil && !strings.HasPrefix(text, "ImageVolumeMountFailed: ") {
			t.Errorf("%s: the error begins with no reason: %s", what, text)
		}
	}
	writable := imageVolume(s.Image, "")
	writable.Readonly = false
	wantError(t, "a writable image", p.refuses(t, mounts(writable)))
}

// mappedMount shows a directory of root's to a pod with a user namespace, as
// the kubelet does with volumes.
func mappedMount(t *testing.T, s *suite) {
	s.needUserNamespaces(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := s.pod(t, inUserNamespace)
	c := p.sh(t, "stat -c %u:%g /m/file; echo x > /m/new; chown 7:8 /m/new; stat -c %u:%g /m/new", mounts(&runtimeapi.Mount{
		HostPath: dir, ContainerPath: "/m",
		UidMappings: mapping(), GidMappings: mapping(),
	}))
	if got := c.output(t); got != "0:0\n7:8\n" {
		t.Errorf("output is %q", got)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "new"), &st); err != nil || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("on the host the new file belongs to %d:%d (%v), want 7:8", st.Uid, st.Gid, err)
	}
}
