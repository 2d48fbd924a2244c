// Package service tests what systemd makes of our units: on a machine of its own,
// which it reboots.
package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podstead/image/imagetest"
	"podstead/test/programs"
)

const (
	// rebootVariable names a file. Where it is set, the machine is there for the
	// tests alone: whoever makes the file has it rebooted, and the test run again.
	rebootVariable = "PODSTEAD_TEST_REBOOT"
	// before is what the second run knows of the first.
	before = "/var/lib/podstead-test-service"

	unit     = "podstead.service"
	unitDir  = "/etc/systemd/system"
	bin      = "/usr/local/bin"
	data     = "/var/lib/podstead-test-data"
	manifest = "/etc/podstead/manifests/keeps.yaml"
	patience = 5 * time.Minute
)

const pod = `apiVersion: v1
kind: Pod
metadata: {name: keeps}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: c
    image: localhost/busybox:1
    imagePullPolicy: Never
    command: [sleep, "1000000"]
    lifecycle: {preStop: {exec: {command: [sh, -c, echo stopped >>/data/log]}}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, hostPath: {path: ` + data + `, type: DirectoryOrCreate}}]
`

// TestServiceSystemd installs the unit, starts, stops, restarts and kills the
// service below a pod, has its watchdog bark, and reboots: the pod ends in good order and is there again
// by itself.
func TestServiceSystemd(t *testing.T) {
	reboot := os.Getenv(rebootVariable)
	if reboot == "" {
		t.Skip("needs a machine with systemd to itself: make test-vm-systemd")
	}
	was, err := os.ReadFile(before)
	if errors.Is(err, os.ErrNotExist) {
		was := firstBoot(t)
		if t.Failed() {
			return
		}
		write(t, before, was)
		write(t, reboot, "")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	secondBoot(t, string(was))
}

// firstBoot returns which container runs.
func firstBoot(t *testing.T) string {
	install(t)
	run(t, "systemctl", "start", unit)
	// A service that has started answers.
	run(t, "podstead", "get", "pods")
	archive := imagetest.Archive(t, imagetest.Busybox(t), "localhost/busybox:1")
	run(t, "podstead", "image", "load", archive)
	write(t, manifest, pod)
	id := ready(t)
	if got := run(t, "podstead", "exec", "keeps", "--", "sh", "-c", "cat /proc/1/oom_score_adj /proc/self/oom_score_adj; ulimit -n"); got != "1000\n1000\n1024\n" {
		t.Errorf("the scores of container and exec, and the limit of open files, are %q", got)
	}
	for _, what := range [][]string{
		{"reload"}, {"restart"}, {"kill", "--kill-who=main", "--signal=KILL"}, {"stop"}, {"enable", "--now"},
	} {
		run(t, "systemctl", append(what, unit)...)
		if what[0] == "stop" {
			continue // and the container goes on
		}
		until(t, "the service is active", func() error { return try("systemctl", "is-active", unit) })
		if got := ready(t); got != id {
			t.Errorf("after %s the container is %s, and was %s", what[0], got, id)
		}
	}
	watchdog(t)
	if got := ready(t); got != id {
		t.Errorf("after the watchdog the container is %s, and was %s", got, id)
	}
	return id
}

// watchdog has systemd notice that the engine does not answer any more.
func watchdog(t *testing.T) {
	const soon = "/run/systemd/system/" + unit + ".d"
	if err := os.MkdirAll(soon, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, soon+"/watchdog.conf", "[Service]\nWatchdogSec=15s\n")
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "restart", unit)
	stuck := engine(t)
	if err := syscall.Kill(stuck, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until(t, "the engine is another one", func() error {
		if list := pods(t); list == nil || engine(t) == stuck {
			return fmt.Errorf("it is %d", stuck)
		}
		return nil
	})
	// Of a service that has not said yet that it has started, or whose watchdog
	// barks again on a slow machine, systemd runs no ExecStop.
	remove(t, soon)
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "restart", unit)
	until(t, "the service is active", func() error { return try("systemctl", "is-active", unit) })
}

// engine finds the service's.
func engine(t *testing.T) int {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		exe, _ := os.Readlink(dir + "/exe")
		line, _ := os.ReadFile(dir + "/cmdline")
		if exe == bin+"/podstead" && strings.Contains(string(line), "\x00node\x00") {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	return 0
}

func secondBoot(t *testing.T, was string) {
	if got := ready(t); got == was {
		t.Errorf("the container is %s still", got)
	}
	// The pod did not end with the machine, but before it.
	if log, err := os.ReadFile(data + "/log"); string(log) != "stopped\n" {
		t.Errorf("its preStop hook has written %q, %v", log, err)
	}
	remove(t, manifest)
	until(t, "the pod has gone", func() error {
		if list := pods(t); len(list) > 0 {
			return fmt.Errorf("there is %s", list[0].Name)
		}
		return nil
	})
	run(t, "systemctl", "disable", "--now", unit)
	until(t, "nothing is left", func() error {
		for _, dir := range []string{"/sys/fs/cgroup/podstead", "/sys/fs/cgroup/system.slice/" + unit} {
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: %v", dir, err)
			}
		}
		return nil
	})
	remove(t, before, data, filepath.Join(unitDir, unit), "/etc/podstead", "/var/lib/podstead", "/run/podstead", bin+"/podstead", bin+"/podstead-supervisor")
}

// install does what "make install" does.
func install(t *testing.T) {
	program, err := programs.Podstead()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"podstead", "podstead-supervisor"} {
		run(t, "cp", filepath.Join(filepath.Dir(program), name), bin+"/"+name)
	}
	run(t, "cp", "../../packaging/systemd/"+unit, unitDir+"/"+unit)
	run(t, "systemctl", "daemon-reload")
}

// ready waits until the pod is, and returns which container it has since when.
func ready(t *testing.T) (id string) {
	t.Helper()
	until(t, "the pod is ready", func() error {
		list := pods(t)
		if len(list) != 1 {
			return fmt.Errorf("%d pods", len(list))
		}
		for _, c := range list[0].Status.ContainerStatuses {
			if c.Ready && c.State.Running != nil {
				id = fmt.Sprintf("%s since %s after %d restarts", c.ContainerID, c.State.Running.StartedAt.UTC(), c.RestartCount)
				return nil
			}
		}
		return fmt.Errorf("%+v", list[0].Status)
	})
	return id
}

// pods is nil where nobody answers.
func pods(t *testing.T) []corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "podstead", "get", "pods", "-o", "json").Output()
	if err != nil {
		return nil
	}
	var list corev1.PodList
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return list.Items
}

// until waits; what it has waited for last is the failure's reason.
func until(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	out, _ := exec.Command("systemctl", "status", "--no-pager", "--full", "--lines=50", unit).CombinedOutput()
	t.Fatalf("%s: not in %s: %v\n%s", what, patience, err, out)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func try(name string, args ...string) error { return exec.Command(name, args...).Run() }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.RemoveAll(path); err != nil {
			t.Error(err)
		}
	}
}
