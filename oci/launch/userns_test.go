package launch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func withUserns(spec *specs.Spec) *specs.Spec {
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	spec.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	return spec
}

const usernsScript = "id -u; id -g; cat /proc/self/uid_map; cat /proc/self/oom_score_adj; ulimit -n; stat -c %t:%T /dev/null; grep CapEff /proc/self/status; hostname; stat -c '%u %g' /dev/shm"

// TestUserNamespace makes one, with everything else new.
func TestUserNamespace(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	if err := os.Lchown(root, 100000, 200000); err != nil {
		t.Fatal(err)
	}
	spec := withUserns(testSpec(root, usernsScript))
	adj := 300
	spec.Process.OOMScoreAdj = &adj
	spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 55, Hard: 55}}
	spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
	out, _ := run(t, spec, Options{})
	want := "0\n0\n         0     100000      65536\n300\n55\n1:3\nCapEff:\t00000000a80425fb\nbox\n0 0\n"
	if out != want {
		t.Errorf("output %q, want %q", out, want)
	}
}

// TestJoinedUserNamespace joins the user namespace, and others, of a pod: new
// ones must belong to it, or proc could not be mounted.
func TestJoinedUserNamespace(t *testing.T) {
	needRoot(t)
	podSpec := withUserns(&specs.Spec{Hostname: "pod", Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
	}}})
	p, err := CompilePause(podSpec, Options{ID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	pause := start(t, p)
	root := rootfs(t)
	if err := os.Lchown(root, 100000, 200000); err != nil {
		t.Fatal(err)
	}
	for _, shared := range []bool{false, true} {
		spec := withUserns(testSpec(root, "echo pid $$; "+usernsScript))
		spec.Hostname = ""
		for i := range spec.Linux.Namespaces {
			ns := &spec.Linux.Namespaces[i]
			switch ns.Type {
			case specs.NetworkNamespace:
				ns.Path = procFile(pause, "ns/net")
			case specs.IPCNamespace:
				ns.Path = procFile(pause, "ns/ipc")
			case specs.UTSNamespace:
				ns.Path = procFile(pause, "ns/uts")
			case specs.UserNamespace:
				ns.Path = procFile(pause, "ns/user")
			case specs.PIDNamespace:
				if shared {
					ns.Path = procFile(pause, "ns/pid")
				}
			}
		}
		out, status := run(t, spec, Options{})
		if !strings.Contains(out, "0     100000      65536") || !strings.Contains(out, "\npod\n") || status.ExitStatus() != 0 || strings.HasPrefix(out, "pid 1\n") == shared {
			t.Errorf("shared %v: status %v, output %q", shared, status, out)
		}

		// And exec into such a container.
		spec.Process.Args[2] = "exec sleep 1000"
		pid := start(t, mustCompile(t, spec))
		proc := *spec.Process
		proc.Args = []string{"sh", "-c", "id -u; hostname; ps | grep -c '[s]leep 1000'"}
		proc.User.UID = 1000
		x, err := CompileExec(spec, &proc, ExecOptions{ID: "box/1", Pid: pid})
		if err != nil {
			t.Fatal(err)
		}
		if out, _, err := execute(t, x); err != nil || out != "1000\npod\n1\n" {
			t.Errorf("shared %v: exec: output %q, %v", shared, out, err)
		}
	}
}

// TestNewUserNamespaceInHostNetwork makes one and joins a network namespace
// that does not belong to it.
func TestNewUserNamespaceInHostNetwork(t *testing.T) {
	needRoot(t)
	other := start(t, mustCompile(t, testSpec(rootfs(t), "exec sleep 1000")))
	root := rootfs(t)
	if err := os.Lchown(root, 100000, 200000); err != nil {
		t.Fatal(err)
	}
	spec := withUserns(testSpec(root, "readlink /proc/self/ns/net; echo $$"))
	spec.Linux.Namespaces[1].Path = procFile(other, "ns/net")
	want, err := os.Readlink(procFile(other, "ns/net"))
	if err != nil {
		t.Fatal(err)
	}
	spec.Mounts = spec.Mounts[:5] // sysfs belongs to the network namespace's owner
	expectOutput(t, spec, Options{}, want+"\n1\n")
}

// TestIDMapped has a root and a volume whose files belong to the host's root,
// and to the container's inside it.
func TestIDMapped(t *testing.T) {
	needRoot(t)
	volume := t.TempDir()
	mustWrite(t, filepath.Join(volume, "file"))
	spec := withUserns(testSpec("", "stat -c '%u %g' /bin/busybox /data/file; touch /data/new /new; stat -c '%u %g' /data/new /new"))
	spec.Mounts = append(spec.Mounts, bind(volume, "/data", "idmap"))
	o := overlayOptions(t, rootfs(t))
	o.IDMapped = true
	expectOutput(t, spec, Options{Rootfs: o}, "0 0\n0 0\n0 0\n0 0\n")
	for _, file := range []string{filepath.Join(volume, "new"), filepath.Join(o.Upper, "new")} {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil || st.Uid != 0 || st.Gid != 0 {
			t.Errorf("%s on the host: uid %d, gid %d, %v", file, st.Uid, st.Gid, err)
		}
	}
}
