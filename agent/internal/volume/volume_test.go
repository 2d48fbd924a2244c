package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/env"
	"podstead/agent/internal/pressure"
	"podstead/sys"
	"podstead/sys/quota"
	"podstead/sys/quota/quotatest"
	"podstead/test/host"
)

func TestMain(m *testing.M) { host.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

func TestAtomicWriter(t *testing.T) {
	dir := t.TempDir()
	f := func(pairs ...string) map[string]file {
		m := map[string]file{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = file{data: []byte(pairs[i+1])}
		}
		return m
	}
	show := func() string {
		var parts []string
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "..") {
				continue
			}
			must(t, filepath.WalkDir(filepath.Join(dir, "..data"), func(string, os.DirEntry, error) error { return nil }))
			st, err := os.Stat(filepath.Join(dir, e.Name()))
			must(t, err)
			if st.IsDir() {
				parts = append(parts, e.Name()+"/")
			} else {
				parts = append(parts, e.Name()+"="+read(t, filepath.Join(dir, e.Name())))
			}
		}
		return strings.Join(parts, " ")
	}
	versions := func() (n int) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		files map[string]file
		want  string
	}{
		{f("a", "1", "b", "2"), "a=1 b=2"},
		{f("a", "1", "b", "2"), "a=1 b=2"},
		{f("a", "3", "sub/x", "4"), "a=3 sub/"},
		{f("sub/y", "5"), "sub/"},
		{f("sub", "a file now"), "sub=a file now"},
		{f(), ""},
	} {
		must(t, write(dir, c.files, 0o644, nil))
		if got := show(); got != c.want {
			t.Errorf("the volume shows %q, want %q", got, c.want)
		}
		if versions() != 1 {
			t.Errorf("%d versions are left", versions())
		}
	}
	must(t, write(dir, f("a", "1"), 0o644, nil))
	before, _ := os.Readlink(filepath.Join(dir, "..data"))
	must(t, write(dir, f("a", "1"), 0o644, nil))
	if after, _ := os.Readlink(filepath.Join(dir, "..data")); after != before {
		t.Error("nothing changed, and yet there is a new version")
	}
	// What a crash left behind does not matter.
	must(t, os.Symlink("nowhere", filepath.Join(dir, tempLink)))
	must(t, os.Mkdir(filepath.Join(dir, "..v_left"), 0o700))
	must(t, write(dir, f("a", "2"), 0o600, nil))
	if show() != "a=2" || versions() != 1 {
		t.Errorf("after a crash: %q, %d versions", show(), versions())
	}
	st, err := os.Stat(filepath.Join(dir, "a"))
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", st.Mode().Perm())
	}
}

// objects has one ConfigMap and one Secret, of which tests change the content.
type objects struct {
	conf map[string]string
	sec  map[string][]byte
}

func (o *objects) ConfigMap(ns, name string) *corev1.ConfigMap {
	if o.conf == nil || name != "conf" {
		return nil
	}
	return &corev1.ConfigMap{Data: o.conf}
}

func (o *objects) Secret(ns, name string) *corev1.Secret {
	if o.sec == nil || name != "sec" {
		return nil
	}
	return &corev1.Secret{Data: o.sec}
}

func newPod(t testing.TB, volumes ...corev1.Volume) Pod {
	dir := filepath.Join(t.TempDir(), "pod")
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return Pod{Dir: dir, Spec: &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{Volumes: volumes, SecurityContext: &corev1.PodSecurityContext{}},
	}}
}

func vol(name string, src corev1.VolumeSource) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: src}
}

func ptr[T any](v T) *T { return &v }

func configMap(name string) corev1.VolumeSource {
	return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, DefaultMode: ptr(int32(0o644))}}
}

func TestVolumesOfObjects(t *testing.T) {
	host.Require(t)
	p := newPod(t,
		vol("c", configMap("conf")),
		vol("s", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec", DefaultMode: ptr(int32(0o400)),
			Items: []corev1.KeyToPath{{Key: "k", Path: "deep/er/key", Mode: ptr(int32(0o440))}}}}),
		vol("p", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o644)), Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: ptr(true)}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
		}}}))
	objs := &objects{conf: map[string]string{"x": "1"}}
	err := p.Setup(objs, env.Facts{})
	var waits *NotReady
	if !errors.As(err, &waits) || waits.Volume != "s" || !strings.Contains(err.Error(), `secret "sec" not found`) {
		t.Fatalf("without the secret: %v", err)
	}
	objs.sec = map[string][]byte{"k": []byte("v")}
	must(t, p.Setup(objs, env.Facts{}))
	at := func(i int, name string) string { return filepath.Join(p.path(&p.Spec.Spec.Volumes[i]), name) }
	for path, want := range map[string]string{at(0, "x"): "1", at(1, "deep/er/key"): "v", at(2, "x"): "1", at(2, "labels"): `a="b"`} {
		if got := read(t, path); got != want {
			t.Errorf("%s has %q, want %q", path, got, want)
		}
	}
	if st, _ := os.Stat(at(1, "deep/er/key")); st.Mode().Perm() != 0o440 {
		t.Errorf("mode of the item %o", st.Mode().Perm())
	}
	if !sys.IsMount(at(1, "")) || sys.IsMount(at(0, "")) {
		t.Error("secrets are to be in memory, ConfigMaps on disk")
	}
	objs.conf["x"], objs.sec = "2", nil
	must(t, p.Setup(objs, env.Facts{})) // what containers see of the secret stays
	if got := read(t, at(0, "x")) + read(t, at(1, "deep/er/key")); got != "2v" {
		t.Errorf("after the change: %q", got)
	}
}

// TestEmptyDirIsAProject: the kernel counts what is in it, as a walk does.
func TestEmptyDirIsAProject(t *testing.T) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind, func(t *testing.T) {
			pods := t.TempDir()
			quotatest.Mount(t, kind, pods)
			projects, err := quota.Open(pods)
			must(t, err)
			defer projects.Close()
			p := newPod(t, vol("v", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}))
			p.Dir, p.Projects = filepath.Join(pods, "pod"), projects
			must(t, p.Setup(&objects{}, env.Facts{}))
			dir := p.Scratch()["v"]
			for i := range 50 {
				sub := filepath.Join(dir, strconv.Itoa(i))
				must(t, os.Mkdir(sub, 0o700))
				must(t, os.WriteFile(filepath.Join(sub, "file"), make([]byte, 10_000), 0o600))
			}
			unix.Sync()
			walked, err := pressure.Measure(t.Context(), dir)
			must(t, err)
			if u, ok := projects.Measure(dir); !ok || int64(u.Bytes) != walked.Bytes || int64(u.Inodes) != walked.Inodes || u.Inodes != 101 {
				t.Errorf("the kernel counts %+v (%v), a walk %+v", u, ok, walked)
			}
			must(t, p.Setup(&objects{}, env.Facts{}))
			must(t, p.Free())
			must(t, p.Setup(&objects{}, env.Facts{}))
			if u, ok := projects.Measure(dir); !ok || u.Inodes != 1 {
				t.Errorf("in a new one the kernel counts %+v, %v", u, ok)
			}
		})
	}
}

// TestEmptyDirMode: the bits are those that are asked for, and those of the group.
func TestEmptyDirMode(t *testing.T) {
	host.Require(t)
	for _, c := range []struct {
		mode  *int32
		group *int64
		want  os.FileMode
	}{{nil, nil, 0o777}, {ptr(int32(0o1777)), nil, 0o777 | os.ModeSticky}, {ptr(int32(0o750)), nil, 0o750}, {ptr(int32(0)), nil, 0},
		{ptr(int32(0o1700)), ptr(int64(4321)), 0o770 | os.ModeSticky | os.ModeSetgid}} {
		p := newPod(t, vol("disk", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Mode: c.mode}}),
			vol("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, Mode: c.mode}}))
		p.Spec.Spec.SecurityContext.FSGroup = c.group
		must(t, p.Setup(&objects{}, env.Facts{}))
		for i := range p.Spec.Spec.Volumes {
			if st, err := os.Stat(p.path(&p.Spec.Spec.Volumes[i])); err != nil || st.Mode()&^os.ModeDir != c.want {
				t.Errorf("%+v: volume %d has %v, want %v: %v", c, i, st.Mode(), c.want, err)
			}
		}
		must(t, p.Free())
	}
}

func TestEmptyDir(t *testing.T) {
	host.Require(t)
	p := newPod(t,
		vol("disk", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		vol("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("64Ki"))}}))
	p.Spec.Spec.SecurityContext.FSGroup = ptr(int64(4321))
	must(t, p.Setup(&objects{}, env.Facts{}))
	for i := range 2 {
		st, err := os.Stat(p.path(&p.Spec.Spec.Volumes[i]))
		must(t, err)
		if st.Sys().(*syscall.Stat_t).Gid != 4321 || st.Mode()&os.ModeSetgid == 0 || st.Mode().Perm() != 0o777 {
			t.Errorf("volume %d: %v, group %d", i, st.Mode(), st.Sys().(*syscall.Stat_t).Gid)
		}
	}
	mem := p.path(&p.Spec.Spec.Volumes[1])
	err := os.WriteFile(filepath.Join(mem, "big"), make([]byte, 100<<10), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("100 KiB into 64 KiB: %v", err)
	}
	keep := filepath.Join(p.path(&p.Spec.Spec.Volumes[0]), "keep")
	must(t, os.WriteFile(keep, []byte("x"), 0o600))
	// The content is the pod's, which could have it changed to lead outside: a
	// second Setup, while containers run, touches nothing.
	must(t, os.Mkdir(filepath.Join(mem, "private"), 0o700))
	must(t, os.WriteFile(filepath.Join(mem, "private", "keep"), nil, 0o600))
	must(t, os.Chown(filepath.Join(mem, "private", "keep"), 1, 1))
	must(t, os.Chmod(mem, 0o711))
	must(t, p.Setup(&objects{}, env.Facts{}))
	if read(t, keep) != "x" {
		t.Error("a second Setup lost the content")
	}
	for path, want := range map[string]os.FileMode{mem: 0o711, mem + "/private": 0o700, mem + "/private/keep": 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s after a second Setup: %v, %v", path, st.Mode(), err)
		}
	}
	if st, err := os.Stat(mem + "/private/keep"); err != nil || st.Sys().(*syscall.Stat_t).Gid != 1 {
		t.Errorf("a second Setup changed a file's group: %+v, %v", st, err)
	}
}

// TestLabels: what is made for a pod gets its SELinux label, what is the host's
// keeps its own.
func TestLabels(t *testing.T) {
	host.Require(t)
	p := newPod(t,
		vol("made", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		vol("hosts", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv"}}))
	mounts, err := p.Mounts(&corev1.Container{VolumeMounts: []corev1.VolumeMount{{Name: "made", MountPath: "/a"}, {Name: "hosts", MountPath: "/b"}}}, Options{})
	must(t, err)
	if !mounts[0].SelinuxRelabel || mounts[1].SelinuxRelabel {
		t.Errorf("%v", mounts)
	}
}

func TestHugePages(t *testing.T) {
	host.Require(t)
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		t.Skip("the kernel has no huge pages of 2 MiB")
	}
	p := newPod(t,
		vol("named", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "HugePages-2Mi"}}),
		vol("only", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumHugePages}}))
	p.Spec.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"hugepages-2Mi": resource.MustParse("2Mi")}}}}
	must(t, p.Setup(&objects{}, env.Facts{}))
	must(t, p.Setup(&objects{}, env.Facts{})) // it is there
	for i := range 2 {
		var st unix.Statfs_t
		must(t, unix.Statfs(p.path(&p.Spec.Spec.Volumes[i]), &st))
		if st.Type != unix.HUGETLBFS_MAGIC || st.Bsize != 2<<20 {
			t.Errorf("volume %d: file system %x of pages of %d", i, st.Type, st.Bsize)
		}
	}
	must(t, Remove(p.Dir))
}

func mountOf(p Pod, sub string) ([]*runtimeapi.Mount, error) {
	return p.Mounts(&corev1.Container{Name: "app", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPath: sub}}}, Options{})
}

func TestSubPath(t *testing.T) {
	host.Require(t)
	p := newPod(t, vol("v", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}))
	must(t, p.Setup(&objects{}, env.Facts{}))
	root := p.path(&p.Spec.Spec.Volumes[0])
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.MkdirAll(outside, 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("of the host"), 0o644))
	must(t, os.MkdirAll(filepath.Join(root, "dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "dir", "f"), []byte("mine"), 0o644))
	must(t, os.Symlink("dir", filepath.Join(root, "inside")))
	must(t, os.Symlink(outside, filepath.Join(root, "absolute")))
	must(t, os.Symlink("../../../../../../../../../../etc", filepath.Join(root, "dots")))
	must(t, os.Symlink("/proc/self/root", filepath.Join(root, "magic")))
	for _, sub := range []string{"dir", "inside", "new/made/dir", "dir/f"} {
		mounts, err := mountOf(p, sub)
		if err != nil {
			t.Errorf("%s: %v", sub, err)
			continue
		}
		// A second instance of the container mounts it again.
		if mounts, err = mountOf(p, sub); err != nil {
			t.Errorf("%s again: %v", sub, err)
			continue
		}
		if strings.HasSuffix(sub, "f") && read(t, mounts[0].HostPath) != "mine" {
			t.Errorf("%s is something else", sub)
		}
		// Names may be swapped now; the mount stays what it was.
		must(t, os.Rename(filepath.Join(root, "dir"), filepath.Join(root, "away")))
		must(t, os.Symlink(outside, filepath.Join(root, "dir")))
		if _, err := os.Stat(filepath.Join(mounts[0].HostPath, "secret")); err == nil {
			t.Errorf("%s: the swap shows the host", sub)
		}
		must(t, os.Remove(filepath.Join(root, "dir")))
		must(t, os.Rename(filepath.Join(root, "away"), filepath.Join(root, "dir")))
	}
	for _, sub := range []string{"absolute", "absolute/secret", "absolute/new", "dots", "dots/passwd", "magic", "magic/etc"} {
		if mounts, err := mountOf(p, sub); err == nil {
			t.Errorf("%s escaped to %s", sub, mounts[0].HostPath)
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("something was made outside: %v", entries)
	}
}

func TestRemoveDoesNotCrossMounts(t *testing.T) {
	host.Require(t)
	base := t.TempDir()
	foreign := filepath.Join(base, "foreign")
	must(t, os.MkdirAll(foreign, 0o755))
	must(t, os.WriteFile(filepath.Join(foreign, "data"), []byte("precious"), 0o644))
	dir := filepath.Join(base, "pod")
	inside := filepath.Join(dir, "volumes", "kubernetes.io~empty-dir", "v", "mnt")
	must(t, os.MkdirAll(inside, 0o755))
	must(t, unix.Mount(foreign, inside, "", unix.MS_BIND, ""))
	err := Remove(dir)
	if err == nil || !strings.Contains(err.Error(), inside) {
		t.Errorf("the mount is not named: %v", err)
	}
	if got := read(t, filepath.Join(foreign, "data")); got != "precious" {
		t.Errorf("data is %q", got)
	}
	must(t, unix.Unmount(inside, 0))
	must(t, Remove(dir))
	must(t, Remove(dir))
	if _, err := os.Lstat(dir); err == nil {
		t.Error("still there")
	}
}

func TestRemoveManyFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	for i := range 1500 {
		sub := filepath.Join(dir, fmt.Sprintf("d%d", i%7))
		must(t, os.MkdirAll(sub, 0o755))
		must(t, os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), nil, 0o400))
	}
	must(t, os.Symlink("/etc", filepath.Join(dir, "link")))
	must(t, Remove(dir))
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

func TestClaims(t *testing.T) {
	host.Require(t)
	claims := filepath.Join(t.TempDir(), "claims")
	claim := func(name string) corev1.Volume {
		return vol(name, corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}})
	}
	p := newPod(t, claim("made"), claim("local"), claim("absent"), claim("unbound"))
	local := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, nil, 0o600))
	must(t, os.Mkdir(filepath.Join(local, "sub"), 0o700))
	must(t, os.WriteFile(filepath.Join(local, "sub", "f"), []byte("data"), 0o600))
	must(t, os.Symlink(outside, filepath.Join(local, "sub", "link")))
	p.Spec.Spec.SecurityContext.FSGroup = ptr(int64(2000))
	p.Claims = map[string]Claim{
		"made":    {Directory: filepath.Join(claims, "ns", "made")},
		"local":   {Local: local},
		"absent":  {Local: filepath.Join(local, "nothing")},
		"unbound": {Err: errors.New("it has no storage")},
	}
	err := p.Setup(&objects{}, env.Facts{})
	for _, want := range []string{`volume "absent" : local volume: ` + local + "/nothing is not a directory", `volume "unbound" : it has no storage`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for path, want := range map[string]string{
		p.Claims["made"].Directory:       "drwxrwsrwx 2000", // as ls shows it
		local:                            "drwxrws",
		filepath.Join(local, "sub"):      "drwxrws--- 2000",
		filepath.Join(local, "sub", "f"): "-rw-rw---- 2000",
		outside:                          "-rw------- 0",
		filepath.Join(claims, "ns"):      "drwx--x--x 0",
		filepath.Join(local, "sub/link"): "Lrwxrwxrwx 2000",
		filepath.Join(p.Dir, "volumes/kubernetes.io~local-volume/made"): "drwxr-xr-x 0",
	} {
		if got := listed(t, path); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	// It is done once: what the pod does afterwards is its own business.
	must(t, os.Chmod(filepath.Join(local, "sub", "f"), 0o600))
	p.Setup(&objects{}, env.Facts{})
	if got := listed(t, filepath.Join(local, "sub", "f")); !strings.HasPrefix(got, "-rw-------") {
		t.Errorf("after a second time: %s", got)
	}
	must(t, Remove(p.Dir))
	if read(t, filepath.Join(local, "sub", "f")) != "data" {
		t.Error("the data went with the pod")
	}
	if _, err := os.Stat(p.Claims["made"].Directory); err != nil {
		t.Error(err)
	}
}

// listed shows mode and group as ls does.
func listed(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	out := []byte(map[uint32]string{unix.S_IFDIR: "d", unix.S_IFREG: "-", unix.S_IFLNK: "L"}[st.Mode&unix.S_IFMT] + "rwxrwxrwx")
	for i := range 9 {
		if st.Mode&(1<<(8-i)) == 0 {
			out[i+1] = '-'
		}
	}
	if st.Mode&unix.S_ISGID != 0 {
		out[6] = 's'
	}
	return fmt.Sprintf("%s %d", out, st.Gid)
}
