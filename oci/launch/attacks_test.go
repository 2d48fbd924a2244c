package launch

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// An attack is shown twice: our program withstands it, and a program from which
// the defence was taken does not, or the attack would show nothing. A program is
// a list of calls, so the tests weaken it after it was compiled; no other build is
// needed, and none that is weak can be made by mistake.

// weakened is a program in which each call has been changed by change.
func weakened(p *Program, change func(p *Program, o *op)) *Program {
	w := *p
	w.ops, w.data = slices.Clone(p.ops), slices.Clone(p.data)
	for i := range w.ops {
		change(&w, &w.ops[i])
	}
	return &w
}

// drop makes a call one that does nothing.
func drop(o *op) {
	*o = op{call: cTestReg, out: noReg, pass: o.pass, skipOK: o.skipOK, skipErr: o.skipErr, text: o.text}
}

// pathOf is a string argument of a call.
func pathOf(p *Program, a arg) string {
	s, _ := p.cString(a.value)
	return s
}

// resolveAnyhow lets destinations be resolved as the host resolves paths.
func resolveAnyhow(p *Program, o *op) {
	switch o.call {
	case cMakePath:
		o.args[3].value = 0
	case cOpenat2:
		binary.NativeEndian.PutUint64(p.data[o.args[2].value+16:], 0)
	}
}

// followLinks lets links of the image lead elsewhere in the image.
func followLinks(_ *Program, o *op) {
	if o.call == cMakePath {
		o.args[3].value &^= unix.RESOLVE_NO_SYMLINKS
	}
}

// trustDevices drops what looks at the nodes that are there.
func trustDevices(_ *Program, o *op) {
	if o.call == cTest && (o.text == "verify /dev/null" || strings.HasPrefix(o.text, "make device")) {
		drop(o)
	}
}

// attack is one of what images have done to runtimes.
type attack struct {
	name    string // CVEs
	prepare func(t *testing.T, root, host string)
	change  func(s *specs.Spec, host string)
	weaken  func(p *Program, o *op)
	opt     Options
	// succeeded looks at what came of it. before is the host's directory.
	succeeded func(output, before, after string) bool
}

func changed(_, before, after string) bool { return before != after }

func says(what string) func(output, before, after string) bool {
	return func(output, _, _ string) bool { return strings.Contains(output, what) }
}

var attacks = []attack{
	{
		name: "CVE-2019-16884 a volume of the image covers a part of proc", prepare: link("data", "proc/sys"),
		change: func(s *specs.Spec, _ string) {
			s.Mounts = append(s.Mounts, tmpfs("/data"))
			s.Process.Args[2] = "ls /proc/sys/kernel >/dev/null 2>&1 || echo covered"
		},
		weaken: func(_ *Program, o *op) {
			if o.call == cFail && strings.Contains(o.text, "leads into /proc") {
				drop(o)
			}
		},
		succeeded: says("covered"),
	},
	{
		name: "CVE-2019-19921 CVE-2023-27561 CVE-2023-28642 proc is a link", prepare: link("proc", "/tmp"),
		change: func(s *specs.Spec, _ string) {
			s.Mounts, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = s.Mounts[:2], nil, nil
			s.Process.Args[2] = "test -e /tmp/self && echo proc is elsewhere"
		},
		weaken: followLinks, succeeded: says("elsewhere"),
	},
	{
		name: "CVE-2019-18837 CVE-2021-30465 a link leads a mount to the host", prepare: link("data", "HOST"),
		change: func(s *specs.Spec, _ string) { s.Mounts = append(s.Mounts, tmpfs("/data/new")) },
		weaken: resolveAnyhow, succeeded: changed,
	},
	{
		name: "CVE-2024-45310 a mount point is made on the host", prepare: link("data", "HOST"),
		change: func(s *specs.Spec, _ string) { s.Mounts = append(s.Mounts, bind("/bin/busybox", "/data/a/b/file")) },
		weaken: resolveAnyhow, succeeded: changed,
	},
	{
		name: "CVE-2026-41579 CVE-2026-47766 dev is a link", prepare: link("dev", "HOST"),
		change: func(s *specs.Spec, _ string) { s.Mounts, s.Linux.MaskedPaths = s.Mounts[:1], nil },
		weaken: resolveAnyhow, succeeded: changed,
	},
	{
		name: "CVE-2025-31133 what masks a path is the image's",
		prepare: func(t *testing.T, root, _ string) {
			mustMkdir(t, filepath.Join(root, "dev"))
			for _, file := range []string{"dev/null", "secret"} {
				if err := os.WriteFile(filepath.Join(root, file), []byte("of the image: "+file), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		},
		change: func(s *specs.Spec, _ string) {
			s.Mounts, s.Linux.MaskedPaths = s.Mounts[:1], []string{"/secret"}
			s.Process.Args[2] = "cat /secret"
		},
		weaken: trustDevices, succeeded: says("of the image"),
	},
	{
		name: "CVE-2022-29162 CVE-2022-24769 inheritable capabilities",
		change: func(s *specs.Spec, _ string) {
			s.Process.Args[2] = "grep -q 'CapInh:.*0000000000000000' /proc/self/status || echo has some"
		},
		weaken: func(p *Program, o *op) {
			if o.call == cCapset { // effective, permitted, inheritable; twice
				at := p.data[o.args[1].value:]
				copy(at[8:12], at[4:8])
			}
		},
		succeeded: says("has some"),
	},
}

func TestAttacks(t *testing.T) {
	needRoot(t)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			for _, weak := range []bool{false, true} {
				root, host := rootfs(t), t.TempDir()
				mustWrite(t, filepath.Join(host, "victim"))
				if a.prepare != nil {
					a.prepare(t, root, host)
				}
				spec := testSpec(root, "exit 0")
				a.change(spec, host)
				a.opt.ID = "box"
				p, err := Compile(spec, a.opt)
				if err != nil {
					t.Fatal(err)
				}
				if weak {
					p = weakened(p, a.weaken)
				}
				before := fingerprint(t, host)
				out, _, err := execute(t, p)
				if got := a.succeeded(out, before, fingerprint(t, host)); got != weak {
					t.Errorf("weakened %v: the attack succeeded: %v (%v, output %q)", weak, got, err, out)
				}
			}
		})
	}
}

// TestLeakedWorkingDirectory enters a directory of the host by way of a descriptor
// that is open while a container is made (CVE-2024-21626).
func TestLeakedWorkingDirectory(t *testing.T) {
	needRoot(t)
	group := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(group); err != nil {
		group = "/sys/fs/cgroup"
	}
	root := rootfs(t)
	enter := func(cwd string, weak bool) bool {
		spec := testSpec(root, "ls; cat cgroup.procs")
		spec.Process.Cwd = cwd
		p, err := Compile(spec, Options{ID: "box", CgroupDir: group})
		if err != nil {
			t.Fatal(err)
		}
		if weak {
			p = weakened(p, func(_ *Program, o *op) {
				if strings.HasPrefix(o.text, "make working directory") || o.call == cTest && strings.HasPrefix(o.text, "change to working directory") {
					drop(o)
				}
			})
		}
		out, _, _ := execute(t, p)
		return strings.Contains(out, "cgroup.procs")
	}
	succeeded := false
	for _, fd := range []string{"3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"} {
		if enter("/proc/self/fd/"+fd, false) {
			t.Errorf("descriptor %s leads out", fd)
		}
		succeeded = succeeded || enter("/proc/self/fd/"+fd, true)
	}
	if !succeeded {
		t.Error("the attack does not succeed on a weakened program either")
	}
}

// swapper is the process of race: it exchanges two names as
// fast as it can until it is killed.
func swapper(a, b string) {
	for {
		if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
			os.Exit(1)
		}
	}
}

// race has an attacker's process swap two names until the test ends.
func race(t *testing.T, a, b string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	attacker := exec.Command(exe, a, b)
	attacker.Env = append(os.Environ(), "PODSTEAD_TEST_SWAP=1")
	if err := attacker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = attacker.Process.Kill()
		_ = attacker.Wait()
	})
}

// TestSwappedLinks launches containers while a process of another container swaps a
// directory of a volume that they share for a link to the host (CVE-2021-30465,
// CVE-2024-45310).
func TestSwappedLinks(t *testing.T) {
	needRoot(t)
	rounds := 60
	reached := func(weak bool) bool {
		root, host := rootfs(t), t.TempDir()
		mustMkdir(t, filepath.Join(root, "vol"))
		mustMkdir(t, filepath.Join(root, "vol/a"))
		if err := os.Symlink(host, filepath.Join(root, "vol/b")); err != nil {
			t.Fatal(err)
		}
		race(t, filepath.Join(root, "vol/a"), filepath.Join(root, "vol/b"))
		spec := testSpec(root, "exit 0")
		spec.Mounts = append(spec.Mounts[:1], tmpfs("/vol/a/x/y/z"), bind("/bin/busybox", "/vol/a/file"))
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
		p, err := Compile(spec, Options{ID: "box"})
		if err != nil {
			t.Fatal(err)
		}
		if weak {
			p = weakened(p, resolveAnyhow)
		}
		before := fingerprint(t, host)
		for range rounds {
			_, _, _ = execute(t, p) // may fail: a name is gone for a moment
			if fingerprint(t, host) != before {
				return true
			}
		}
		return false
	}
	if reached(false) {
		t.Error("something was made on the host")
	}
	if !reached(true) {
		t.Error("the attack does not succeed on a weakened program either")
	}
}

// afterMounts is a program whose calls with a text are made only when the root is
// attached and filled, and by names in that root.
func afterMounts(p *Program, text string, names map[string]string) *Program {
	w := weakened(p, func(*Program, *op) {})
	root := w.ops[slices.IndexFunc(w.ops, func(o op) bool { return o.text == "attach the root" })].args[0]
	var late []op
	for i := range w.ops {
		o := &w.ops[i]
		if !strings.HasPrefix(o.text, text) {
			continue
		}
		l := *o
		for n, a := range o.args {
			if name := names[pathOf(w, a)]; a.kind == argData && name != "" {
				l.args[0], l.args[n].value = root, uint64(len(w.data))
				w.data = append(append(w.data, name...), 0)
				resolveAnyhow(w, &l)
			}
		}
		late = append(late, l)
		drop(o)
	}
	at := slices.IndexFunc(w.ops, func(o op) bool { return o.text == "start a session" })
	w.ops = slices.Insert(w.ops, at, late...)
	return w
}

// TestRedirectedWrites has a volume of the container's in the place of its /proc, as
// shared mounts allow, in which another process swaps directories for links to the
// host, while labels and sysctls are set (CVE-2019-16884, CVE-2025-52881).
func TestRedirectedWrites(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name, text string
		file       string // below /proc
		names      map[string]string
		change     func(s *specs.Spec)
	}{
		{"sysctl", "set sysctl", "sys/kernel/msgmax", map[string]string{"sys/kernel/msgmax": "proc/sys/kernel/msgmax"},
			func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.msgmax": "4096"} }},
		{"label", "process.apparmorProfile", "attr/apparmor/exec", map[string]string{"/proc/self/attr/apparmor/exec": "proc/attr/apparmor/exec"},
			func(s *specs.Spec) { s.Process.ApparmorProfile = "podstead-test" }}, // which there is none of: to set it fails
	} {
		t.Run(c.name, func(t *testing.T) {
			reached := func(weak bool) bool {
				root, volume, host := rootfs(t), t.TempDir(), t.TempDir()
				top, rest, _ := strings.Cut(c.file, "/")
				for _, dir := range []string{host, filepath.Join(volume, top)} {
					if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(rest)), 0o755); err != nil {
						t.Fatal(err)
					}
					mustWrite(t, filepath.Join(dir, rest))
				}
				link("link", "HOST")(t, volume, host)
				race(t, filepath.Join(volume, top), filepath.Join(volume, "link"))
				spec := testSpec(root, "exit 0")
				spec.Mounts = append(spec.Mounts[:1:1], bind(volume, "/proc"))
				spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
				c.change(spec)
				p := mustCompile(t, spec)
				if weak {
					p = afterMounts(p, c.text, c.names)
				}
				for range 60 {
					_, _, _ = execute(t, p) // fails where the file is not the kernel's
					if b, err := os.ReadFile(filepath.Join(host, rest)); err != nil || len(b) > 0 {
						return true
					}
				}
				return false
			}
			if reached(false) {
				t.Error("a file of the host was written to")
			}
			if !reached(true) {
				t.Error("the attack does not succeed on a weakened program either")
			}
		})
	}
}

// TestConsoleElsewhere has a volume at /dev/pts, over the container's own devpts, in
// which a terminal's name is a link to the host: what is bound as /dev/console, and
// stdio, must be the terminal nevertheless (CVE-2025-52565).
func TestConsoleElsewhere(t *testing.T) {
	needRoot(t)
	for _, weak := range []bool{false, true} {
		volume, host := t.TempDir(), t.TempDir()
		victim := filepath.Join(host, "victim")
		mustWrite(t, victim)
		link("0", "HOST/victim")(t, volume, host)
		spec := testSpec(rootfs(t), "echo from inside >/dev/console; echo ready; read x")
		spec.Mounts = append(spec.Mounts, bind(volume, "/dev/pts"))
		spec.Process.Terminal = true
		p := mustCompile(t, spec)
		if weak {
			p = afterConsole(p)
		}
		talkTerminal(t, p, "\n")
		if b, err := os.ReadFile(victim); err != nil || (len(b) > 0) != weak {
			t.Errorf("weakened %v: a file of the host has %q, %v", weak, b, err)
		}
	}
}

// afterConsole is a program that binds the terminal by its name.
func afterConsole(p *Program) *Program {
	var root arg
	return weakened(p, func(p *Program, o *op) {
		switch {
		case o.text == "attach the root":
			root = o.args[0]
		case o.text == "bind /dev/console" && o.call == cOpenTree:
			o.args[0], o.args[1].value = root, uint64(len(p.data))
			p.data = append(p.data, "dev/pts/0\x00"...)
			o.args[2].value &^= unix.AT_EMPTY_PATH
		}
	})
}

// TestHostsCgroups has a container in a user namespace, without a cgroup namespace,
// change the host's control groups, which it gets where it may not mount its own
// (CVE-2023-25809).
func TestHostsCgroups(t *testing.T) {
	needRoot(t)
	const group = "podstead-test-host"
	made := func() []string {
		one, _ := filepath.Glob("/sys/fs/cgroup/" + group)
		more, _ := filepath.Glob("/sys/fs/cgroup/*/" + group)
		return append(one, more...)
	}
	for _, weak := range []bool{false, true} {
		spec := testSpec(rootfs(t), "for dir in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $dir/"+group+"; done 2>/dev/null; exit 0")
		spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		spec.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 65536}}
		spec.Linux.GIDMappings = spec.Linux.UIDMappings
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup", Options: []string{"nosuid"}})
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
		p, err := Compile(spec, Options{ID: "box", Unprivileged: true})
		if err != nil {
			t.Fatal(err)
		}
		if weak {
			p = weakened(p, func(p *Program, o *op) {
				if o.call == cMountSetattr && strings.HasPrefix(o.text, "mount /sys/fs/cgroup") {
					p.data[o.args[3].value] &^= unix.MOUNT_ATTR_RDONLY
				}
			})
		}
		_, _, err = execute(t, p)
		dirs := made()
		for _, dir := range dirs {
			if err := unix.Rmdir(dir); err != nil {
				t.Error(err)
			}
		}
		if (len(dirs) > 0) != weak || err != nil {
			t.Errorf("weakened %v: made %v, %v", weak, dirs, err)
		}
	}
}
