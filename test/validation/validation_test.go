package validation

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"podstead/cgroup"
	"podstead/test/host"
)

const ours = "podstead-oci"

// verdict is what a program says of a runtime: "" for nothing to complain about.
type verdict struct{ program, runtime, complaint string }

func TestRuntimes(t *testing.T) {
	host.Require(t)
	work := t.TempDir()
	for dir := work; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // root of a user namespace walks through it
			t.Fatal(err)
		}
	}
	runtimes := standIns(t, work)
	removeGroups(t)
	t.Cleanup(func() { removeGroups(t) })
	programs := prepare(t, work)

	found := map[string]map[string]string{} // complaints, by program and runtime
	explained := readExplanations(t)
	for v := range judgeAll(t.Context(), work, programs, runtimes, explained) {
		if found[v.program] == nil {
			found[v.program] = map[string]string{}
		}
		found[v.program][v.runtime] = v.complaint
	}
	compare(t, programs, runtimes, found, explained)
}

// compare prints the table and judges it.
func compare(t *testing.T, programs, runtimes []string, found map[string]map[string]string, explained map[string]explanation) {
	passed, count := map[string]int{}, map[string]int{}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "program\t"+strings.Join(runtimes, "\t"))
	for _, p := range programs {
		fmt.Fprint(w, p)
		for _, r := range runtimes {
			if found[p][r] == "" {
				passed[r]++
				if !explained[p].mistaken {
					count[r]++
				}
				fmt.Fprint(w, "\tpasses")
			} else {
				fmt.Fprint(w, "\tfails")
			}
		}
		fmt.Fprintln(w)
		why, known := explained[p]
		switch complaint := found[p][ours]; {
		case complaint != "" && !known:
			t.Errorf("%s: %s", p, complaint)
		case complaint == "" && known && !why.maybe:
			t.Errorf("%s passes: explained.txt need not explain it any more", p)
		}
		delete(explained, p)
	}
	fmt.Fprint(w, "passed")
	for _, r := range runtimes {
		fmt.Fprintf(w, "\t%d of %d", passed[r], len(programs))
		if count[r] > count[ours] {
			t.Errorf("%s passes %d programs that are not mistaken, %s %d", r, count[r], ours, count[ours])
		}
	}
	fmt.Fprintln(w)
	w.Flush()
	t.Logf("\n%s", table.String())
	for p := range explained {
		if *everything {
			t.Errorf("explained.txt: there is no program %s", p)
		}
	}
}

// explanation says why a program fails: always, or on some hosts or at times. One
// that is mistaken does not count when runtimes are compared: whoever passes it
// does not do what runtime-spec says, or is lucky.
type explanation struct {
	why             string
	maybe, mistaken bool
}

// readExplanations reads lines such as "hooks: compares with what no hook prints".
func readExplanations(t *testing.T) map[string]explanation {
	b, err := os.ReadFile("explained.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]explanation{}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		program, why, ok := strings.Cut(line, ": ")
		if !ok {
			t.Fatalf("explained.txt: %q", line)
		}
		name, mistaken := strings.CutSuffix(program, "!")
		name, maybe := strings.CutSuffix(name, "?")
		m[name] = explanation{why, maybe, mistaken}
	}
	return m
}

// standIns writes a script for each runtime that keeps its state below work,
// and returns their names. crun 1.8 refuses an ociVersion of later than 1.0, so
// its script changes that.
func standIns(t *testing.T, work string) []string {
	names := []string{ours}
	script := func(name, before, command string) {
		text := fmt.Sprintf("#!/bin/sh\n%sexec %s --root %s/state-%s \"$@\"\n", before, command, work, name)
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script(ours, "", filepath.Join(filepath.Dir(os.Getenv(podsteadVariable)), ours))
	if !*everything {
		return names
	}
	if path, err := exec.LookPath("runc"); err == nil {
		script("runc", "", path)
		names = append(names, "runc")
	}
	if path, err := exec.LookPath("crun"); err == nil {
		script("crun", `previous=
for argument; do
	[ "$previous" != --bundle ] || sed -i 's/"ociVersion": *"1\.[1-9][^"]*"/"ociVersion": "1.0.2"/' "$argument/config.json"
	previous=$argument
done
`, path)
		names = append(names, "crun")
	}
	return names
}

// prepare links the programs into work, beside what they expect in their working
// directory, and returns their names.
func prepare(t *testing.T, work string) []string {
	from := os.Getenv(validationVariable)
	list, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(work, "program-"+e.Name())); err != nil {
			t.Fatal(err)
		}
		if e.Name() != "runtimetest" && (*everything || slices.Contains(quick, e.Name())) {
			names = append(names, e.Name())
		}
	}
	// The programs copy it; a link would be copied as such.
	b, err := os.ReadFile(filepath.Join(from, "runtimetest"))
	if err == nil {
		err = os.WriteFile(filepath.Join(work, "runtimetest"), b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	makeRootfs(t, work)
	return names
}

func makeRootfs(t *testing.T, work string) {
	const script = `set -e
mkdir -p root/bin root/dev root/etc root/proc root/sys
cp "$1" root/bin/busybox
for applet in sh true false sleep echo cat touch ls; do ln -s busybox "root/bin/$applet"; done
echo root:x:0:0:root:/root:/bin/sh >root/etc/passwd
echo root:x:0: >root/etc/group
tar -C root -cf "$2" . # whatever its name: to compress it for each bundle is no use
rm -r root`
	cmd := exec.Command("sh", "-c", script, "sh", "/bin/busybox", "rootfs-"+runtime.GOARCH+".tar.gz")
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make the root file system: %v: %s", err, out)
	}
}

// atOnce is how many programs run at the same time; most of their time they wait
// for one second after the other.
const atOnce = 12

// chances are the runs that a program gets, with the machine for itself, that did
// not pass at first: programs do not wait for long, and some lose races.
const chances = 3

// judgeAll runs each program on each runtime.
func judgeAll(ctx context.Context, work string, programs, runtimes []string, explained map[string]explanation) <-chan verdict {
	out := make(chan verdict)
	go func() {
		defer close(out)
		var mu sync.Mutex
		var failed []verdict
		var cgroups sync.Mutex // programs of cgroups all use the same one
		slots := make(chan struct{}, atOnce)
		var all sync.WaitGroup
		for _, p := range programs {
			for _, r := range runtimes {
				all.Go(func() {
					if strings.Contains(p, "cgroups") || strings.Contains(p, "resources") {
						cgroups.Lock()
						defer cgroups.Unlock()
					}
					slots <- struct{}{}
					defer func() { <-slots }()
					v := judge(ctx, work, p, r)
					if v.complaint == "" {
						out <- v
						return
					}
					mu.Lock()
					defer mu.Unlock()
					failed = append(failed, v)
				})
			}
		}
		all.Wait()
		for _, v := range failed {
			if e, known := explained[v.program]; !known || e.maybe {
				for i := 0; i < chances && v.complaint != ""; i++ {
					v = judge(ctx, work, v.program, v.runtime)
				}
			}
			out <- v
		}
	}()
	return out
}

// judge runs a program. A program passes if it ends well and no line says "not
// ok"; those without any such line tell by a diagnostic whether they like what they
// saw.
func judge(ctx context.Context, work, program, runtime string) verdict {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	v := verdict{program: program, runtime: runtime}
	tmp, err := os.MkdirTemp(work, "tmp-")
	if err == nil {
		err = os.Chmod(tmp, 0o755)
	}
	if err != nil {
		v.complaint = err.Error()
		return v
	}
	defer os.RemoveAll(tmp)
	const withoutUnified = `! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec "$0"`
	cmd := exec.CommandContext(ctx, "./program-"+program)
	if runtime == "crun" { // 1.8 refuses hybrid cgroups
		cmd = exec.CommandContext(ctx, "sh", "-c", withoutUnified, "./program-"+program)
	}
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "RUNTIME="+filepath.Join(work, runtime), "TMPDIR="+tmp)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	// Containers without a mount namespace have their mounts where we are.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	v.complaint = complaint(stdout.String())
	if err != nil && v.complaint == "" {
		v.complaint = err.Error()
	}
	if v.complaint != "" {
		v.complaint += ": " + lastLines(stderr.String())
	}
	return v
}

var diagnosed = regexp.MustCompile(`(?m)^ +"error": "(.+)"`)

func complaint(tap string) string {
	points := 0
	for s := bufio.NewScanner(strings.NewReader(tap)); s.Scan(); {
		switch {
		case strings.HasPrefix(s.Text(), "not ok"):
			return s.Text()
		case strings.HasPrefix(s.Text(), "ok"):
			points++
		}
	}
	if m := diagnosed.FindStringSubmatch(tap); m != nil && points == 0 {
		return m[1]
	}
	return ""
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// removeGroups removes the control groups whose names the programs have for
// absolute and relative paths: runc and crun leave the parents behind.
func removeGroups(t *testing.T) {
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Concat(groupPaths("/cgrouptest"), groupPaths("/testdir")) {
		if err := h.Group(path).Remove(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// groupPaths is a place below the root, and below the group that we are in.
func groupPaths(p string) []string {
	list := []string{p}
	b, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[2] != "/" {
			list = append(list, f[2]+p)
		}
	}
	return list
}
