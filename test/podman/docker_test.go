package podman

import (
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"podstead/cgroup"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/peer"
)

// docker is a Docker Engine that runs its containers on our runtime.
type docker struct{ client }

// TestDocker is what users of a Docker Engine do, on our runtime in runc's place.
func TestDocker(t *testing.T) {
	host.Require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	engine := peer.RunDocker(t, map[string]any{
		"default-runtime": "podstead",
		"runtimes":        map[string]any{"podstead": map[string]any{"path": runtimePath()}},
	})
	d := &docker{client{T: t, program: "docker", env: []string{"DOCKER_HOST=" + engine.Endpoint, "HOME=/run"}}}
	box, err := peer.Busybox()
	if err != nil {
		t.Skip(err)
	}
	archive := filepath.Join(t.TempDir(), "box.tar")
	if err := peer.Archive(archive, map[string]v1.Image{image: box}); err != nil {
		t.Fatal(err)
	}
	d.must("load", "--input", archive)
	t.Cleanup(func() { d.run("rm", "--force", "life", "limits", "health") })
	for name, f := range map[string]func(d *docker){
		"run": dockerRun, "exec and lifecycle": dockerLifecycle, "limits": dockerLimits, "health": dockerHealth,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := *d
			q.T = t
			f(&q)
		})
	}
}

func dockerRun(d *docker) {
	// With a network of its own, which Docker sets up in a prestart hook.
	r := d.runWith("from outside\n", "run", "--rm", "-i", "--init", "--hostname", "box", image, "sh", "-c",
		"cat; hostname; cat /proc/1/comm; ls /sys/class/net; grep -E '^(Seccomp|CapEff):' /proc/self/status; echo err >&2; exit 7")
	const want = "from outside\nbox\ndocker-init\neth0\nlo\nCapEff:\t00000000a80425fb\nSeccomp:\t2\n"
	if r.code != 7 || r.stdout != want || r.stderr != "err\n" {
		d.Errorf("%+v", r)
	}
	for args, want := range map[string]int{"/no/such": 127, "/etc": 126} {
		if r := d.run("run", "--rm", image, args); r.code != want {
			d.Errorf("%s: %+v, want exit code %d", args, r, want)
		}
	}
	r = d.run("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/data", "--user", "12:34", image, "sh", "-c",
		"id -u; id -g; touch /x; test -w /data && echo data")
	if r.stdout != "12\n34\ndata\n" || !strings.Contains(r.stderr, "Read-only file system") {
		d.Errorf("%+v", r)
	}
}

func dockerLifecycle(d *docker) {
	d.must("create", "--name", "life", "--network", "none", image, "sh", "-c",
		"trap 'echo usr1' USR1; trap 'echo term; exit 42' TERM; echo up; while :; do sleep 0.1; done")
	d.must("start", "life")
	if got := d.inspect("life", ".HostConfig.Runtime"); got != "podstead" {
		d.Errorf("runtime %s", got)
	}
	logs := func() string { return strings.Join(strings.Fields(d.must("logs", "life")), " ") }
	d.eventually("the process", func() bool { return logs() == "up" })
	r := d.runWith("in\n", "exec", "-i", "-u", "12:34", "-e", "B=2", "-w", "/bin", "life", "sh", "-c", "cat; id -u; echo $B; pwd; exit 3")
	if r.code != 3 || r.stdout != "in\n12\n2\n/bin\n" {
		d.Errorf("%+v", r)
	}
	if r := d.run("exec", "life", "no-such"); r.code != 126 && r.code != 127 { // as Docker's version has it
		d.Errorf("a program that is not there: %+v", r)
	}
	d.must("pause", "life")
	if s := d.inspect("life", ".State.Status"); s != "paused" {
		d.Errorf("status %s", s)
	}
	d.must("unpause", "life")
	d.must("kill", "--signal", "USR1", "life")
	d.eventually("a signal", func() bool { return logs() == "up usr1" })
	if out := d.must("top", "life"); !strings.Contains(out, "trap") {
		d.Errorf("top: %s", out)
	}
	d.must("stop", "life")
	if code := d.inspect("life", ".State.ExitCode"); code != "42" {
		d.Errorf("exit code %s", code)
	}
	d.must("restart", "life")
	d.must("kill", "life")
	if code := strings.TrimSpace(d.must("wait", "life")); code != "137" {
		d.Errorf("exit code %s", code)
	}
}

func dockerLimits(d *docker) {
	d.must("run", "-d", "--name", "limits", "--network", "none", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5", image, "sleep", "1000")
	h, err := cgroup.Detect()
	if err != nil {
		d.Fatal(err)
	}
	group := h.Group(host.Cgroup() + "/docker/" + d.inspect("limits", ".Id"))
	if s, err := group.Stats(); err != nil || s.MemoryLimitBytes != 64<<20 || s.Pids != 1 {
		d.Errorf("%+v, %v", s, err)
	}
	d.must("update", "--memory", "48m", "--memory-swap", "96m", "limits")
	if s, err := group.Stats(); err != nil || s.MemoryLimitBytes != 48<<20 {
		d.Errorf("after an update: %+v, %v", s, err)
	}
	if r := d.run("exec", "limits", "sh", "-c", "for i in $(seq 60); do sleep 1000 & done; wait"); r.code == 0 {
		d.Errorf("60 processes: %+v", r)
	}
	if out := d.must("stats", "--no-stream", "--format", "{{.MemUsage}}", "limits"); !strings.Contains(out, "48MiB") {
		d.Errorf("stats: %s", out)
	}
	d.must("rm", "--force", "limits")
	if group.Exists() {
		d.Errorf("cgroup %s is left", group.Path())
	}
}

func dockerHealth(d *docker) {
	d.must("run", "-d", "--name", "health", "--network", "none", "--health-cmd", "test -e /healthy", "--health-interval", "200ms",
		"--health-retries", "1", image, "sleep", "1000")
	status := func(want string) func() bool {
		return func() bool { return d.inspect("health", ".State.Health.Status") == want }
	}
	d.eventually("it to be unhealthy", status("unhealthy"))
	d.must("exec", "health", "touch", "/healthy")
	d.eventually("it to be healthy", status("healthy"))
}
