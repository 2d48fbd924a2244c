package oci

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	victimVariable      = "PODSTEAD_TEST_VICTIM"
	unprotectedVariable = "PODSTEAD_TEST_UNPROTECTED"
)

// TestOverwriteTheRuntime has a container execute /proc/self/exe, by which it gets
// hold of the runtime's program, and overwrite that when it runs no more
// (CVE-2019-5736). Without the protection the attack succeeds.
func TestOverwriteTheRuntime(t *testing.T) {
	const attack = `
for dir in /proc/[0-9]*; do
	case "$(readlink $dir/exe)" in */busybox) ;; *) victim=${dir#/proc/} ;; esac
done
exec 3</proc/$victim/exe || exit 1
kill -9 $victim
i=0
while [ $((i+=1)) -lt 600 ]; do # it runs for a moment yet
	said=$( (echo overwritten >/proc/self/fd/3) 2>&1 ) && break
	case "$said" in *Read-only*) break ;; esac
	sleep 0.1
done
echo "said: $said" >/result`
	for _, protected := range []bool{true, false} {
		b := newBox(t, "")
		b.id += "-" + strconv.FormatBool(protected)
		program, err := os.ReadFile(b.runtime)
		if err != nil {
			t.Fatal(err)
		}
		b.runtime = filepath.Join(t.TempDir(), "runtime")
		if err := os.WriteFile(b.runtime, program, 0o755); err != nil {
			t.Fatal(err)
		}
		b.up()
		cmd := b.cmd("exec", "--detach", "--env", victimVariable+"=1", b.id, "/proc/self/exe")
		if !protected {
			cmd.Env = append(cmd.Env, unprotectedVariable+"=1")
		}
		if r := b.runWith(cmd); r.code != 0 {
			t.Fatalf("%+v", r)
		}
		// Detached, as a program cannot be overwritten while it runs.
		b.must("exec", "--detach", b.id, "sh", "-c", attack)
		b.eventually("the attack's end", func() bool { return b.content("result") != "" })
		now, err := os.ReadFile(b.runtime)
		if err != nil {
			t.Fatal(err)
		}
		if overwritten := !bytes.Equal(now, program); overwritten == protected {
			t.Errorf("protected %v: the program is overwritten: %v; %s", protected, overwritten, b.content("result"))
		}
		if protected != strings.Contains(b.content("result"), "Read-only") {
			t.Errorf("protected %v: %s", protected, b.content("result"))
		}
		b.eventually("the program, to clean up with", func() bool { // it may be about to end still
			err := os.WriteFile(b.runtime, program, 0o755)
			if err != nil && !errors.Is(err, unix.ETXTBSY) {
				t.Fatal(err)
			}
			return err == nil
		})
		b.must("delete", "--force", b.id)
	}
}

// TestNothingOfOursInside: when a container runs, and when a process is exec'd in it,
// nothing of the runtime runs or stays mapped or open inside, and nothing of it runs
// outside either.
func TestNothingOfOursInside(t *testing.T) {
	for name, limit := range map[string]int64{"no limit": 0, "512 KiB": 512 << 10} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, "")
			if limit > 0 {
				b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
			}
			b.spec.Process.Args = []string{"sleep", "1000"}
			b.up()
			init := b.state().Pid
			b.eventually("the image", func() bool { return sleepsInImage(b, init) })
			b.nothingOfOurs(init)
			file := filepath.Join(t.TempDir(), "pid")
			b.must("exec", "--detach", "--pid-file", file, b.id, "sleep", "1001")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(string(text))
			if err != nil {
				t.Fatal(err)
			}
			b.eventually("the exec'd image", func() bool { return sleepsInImage(b, pid) })
			b.nothingOfOurs(pid)
			pids := []int{init, pid}
			slices.Sort(pids)
			// The container's processes are these, and nobody else has to do with it.
			if got := inNamespaceOf(t, init); fmt.Sprint(got) != fmt.Sprint(pids) {
				t.Errorf("processes %v in the pid namespace, want %v", got, pids)
			}
			if got, err := b.group().Procs(); err != nil || len(got) != len(pids) {
				t.Errorf("processes %v in the cgroup, %v, want %v", got, err, pids)
			}
			cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, file := range cmdlines {
				if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(b.id)) {
					t.Errorf("%s: %q is left running", file, text)
				}
			}
		})
	}
}

// sleepsInImage tells whether a process executes the container's busybox, and is
// done with its start, which changes what is mapped.
func sleepsInImage(b *box, pid int) bool {
	var exe, busybox unix.Stat_t
	err := unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &exe)
	call, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	number, _, _ := strings.Cut(string(call), " ")
	sleeps := number == strconv.Itoa(unix.SYS_NANOSLEEP) || number == strconv.Itoa(unix.SYS_CLOCK_NANOSLEEP)
	return sleeps && err == nil && unix.Stat(b.inside("bin/busybox"), &busybox) == nil && exe.Ino == busybox.Ino && exe.Dev == busybox.Dev
}

// nothingOfOurs looks at what a process, which is busybox, has mapped and open.
func (b *box) nothingOfOurs(pid int) {
	b.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	f, err := os.Open(dir + "maps")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	total := uint64(0)
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		var from, to uint64
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			b.Fatal(err)
		}
		what := strings.Join(fields[5:], " ")
		switch {
		case what == "" || strings.HasPrefix(what, "[v"): // its own bss; the kernel's vdso, vvar, vsyscall
		case what == "[heap]", what == "[stack]", strings.HasSuffix(what, "/bin/busybox"):
		default:
			b.Errorf("mapped: %s", s.Text())
		}
		if !strings.HasPrefix(what, "[v") {
			total += to - from
		}
	}
	// A runtime of Go maps more than 60 MiB, a copy of one no less.
	if total == 0 || total > 8<<20 {
		b.Errorf("%d bytes are mapped", total)
	}
	fds, err := os.ReadDir(dir + "fd")
	if err != nil || len(fds) != 3 {
		b.Errorf("descriptors %v, %v", fds, err)
	}
	for name, want := range map[string]string{"task": strconv.Itoa(pid), "map_files": ""} {
		entries, err := os.ReadDir(dir + name)
		if err != nil {
			b.Fatal(err)
		}
		for _, e := range entries {
			link, _ := os.Readlink(dir + name + "/" + e.Name())
			if name == "task" && e.Name() != want || name == "map_files" && !strings.HasSuffix(link, "/bin/busybox") {
				b.Errorf("%s%s/%s %s", dir, name, e.Name(), link)
			}
		}
	}
}

// inNamespaceOf lists the processes in a process's pid namespace.
func inNamespaceOf(t *testing.T, pid int) (pids []int) {
	t.Helper()
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink("/proc/" + e.Name() + "/ns/pid"); err == nil && link == want {
			pids = append(pids, n)
		}
	}
	slices.Sort(pids)
	return pids
}
