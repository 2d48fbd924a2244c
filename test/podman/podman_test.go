package podman

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podstead/cgroup"
)

// TestPodman is one test: making the storage costs more than the rest.
func TestPodman(t *testing.T) {
	p := newPodman(t)
	for name, f := range map[string]func(p *podman){
		"run": testRun, "exec": testExec, "limits": testLimits, "lifecycle": testLifecycle, "attach": testAttach,
		"health": testHealth, "pod": testPod, "options": testOptions, "notify": testNotify,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := *p
			q.T = t
			f(&q)
		})
	}
}

func testRun(p *podman) {
	r := p.runWith("from outside\n", "run", "--rm", "-i", "--network", "none", image, "sh", "-c", "cat; echo err >&2; exit 7")
	if r.code != 7 || r.stdout != "from outside\n" || r.stderr != "err\n" {
		p.Errorf("%+v", r)
	}
	// podman reads our log to find out what went wrong.
	for args, want := range map[string]int{"/no/such": 127, "no-such": 127, "/etc": 126} {
		if r := p.run("run", "--rm", "--network", "none", image, args); r.code != want {
			p.Errorf("%s: %+v, want exit code %d", args, r, want)
		}
	}
	p.must("run", "-d", "-t", "--name", "terminal", "--network", "none", image, "tty")
	p.eventually("its output", func() bool { return strings.TrimSpace(p.must("logs", "terminal")) == "/dev/pts/0" })
}

func testExec(p *podman) {
	p.must("run", "-d", "--name", "exec", "--network", "none", "--env", "A=1", image, "sleep", "1000")
	r := p.runWith("in\n", "exec", "-i", "-u", "12:34", "-e", "B=2", "-w", "/bin", "exec", "sh", "-c", "cat; id -u; id -g; echo $A $B; pwd; exit 3")
	if r.code != 3 || r.stdout != "in\n12\n34\n1 2\n/bin\n" {
		p.Errorf("%+v", r)
	}
	if r := p.run("exec", "exec", "no-such"); r.code != 127 {
		p.Errorf("a program that is not there: %+v", r)
	}
	if out := p.must("exec", "-t", "exec", "tty"); strings.TrimSpace(out) != "/dev/pts/0" {
		p.Errorf("terminal %q", out)
	}
	p.must("exec", "-d", "exec", "sh", "-c", "echo done > /tmp-of-exec; sleep 1000")
	p.eventually("a detached exec", func() bool { return p.run("exec", "exec", "cat", "/tmp-of-exec").stdout == "done\n" })
	p.eventually("both sleep", func() bool { return strings.Count(p.must("top", "exec", "pid", "comm"), "sleep") == 2 })
	file := filepath.Join(p.TempDir(), "copied")
	p.must("cp", "exec:/tmp-of-exec", file)
	if b, err := os.ReadFile(file); err != nil || string(b) != "done\n" {
		p.Errorf("copied %q, %v", b, err)
	}
}

func testLimits(p *podman) {
	p.must("run", "-d", "--name", "limits", "--network", "none", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5", "--cpu-shares", "512", image, "sleep", "1000")
	h, err := cgroup.Detect()
	if err != nil {
		p.Fatal(err)
	}
	group := h.Group(p.inspect("limits", ".State.CgroupPath"))
	if s, err := group.Stats(); err != nil || s.MemoryLimitBytes != 64<<20 || s.Pids != 1 {
		p.Errorf("%+v, %v", s, err)
	}
	p.must("update", "--memory", "48m", "limits")
	if s, err := group.Stats(); err != nil || s.MemoryLimitBytes != 48<<20 {
		p.Errorf("after an update: %+v, %v", s, err)
	}
	if r := p.run("exec", "limits", "sh", "-c", "for i in $(seq 60); do sleep 1000 & done; wait"); r.code == 0 {
		p.Errorf("60 processes: %+v", r)
	}
	var stats []struct{ PIDs string }
	if out := p.must("stats", "--no-stream", "--format", "json", "limits"); json.Unmarshal([]byte(out), &stats) != nil ||
		len(stats) != 1 || stats[0].PIDs == "" {
		p.Errorf("stats: %s", out)
	}
	// The kernel's memory killer is a matter of the container's own limit.
	p.must("run", "-d", "--name", "oom", "--network", "none", "--memory", "16m", "--memory-swap", "16m", image,
		"sh", "-c", "x=$(dd if=/dev/zero bs=1M count=64 | tr '\\0' x); sleep 1000")
	if code := strings.TrimSpace(p.must("wait", "oom")); code == "0" {
		p.Errorf("64 MiB in 16: exit code %s", code)
	}
	if group.Exists() {
		p.must("rm", "--force", "--time", "0", "limits", "oom")
	}
	if group.Exists() {
		p.Errorf("cgroup %s is left", group.Path())
	}
}

func testLifecycle(p *podman) {
	p.must("create", "--name", "life", "--network", "none", image, "sh", "-c",
		"trap 'echo usr1' USR1; trap 'echo term; exit 42' TERM; echo up; while :; do sleep 0.1; done")
	if s := p.inspect("life", ".State.Status"); s != "created" {
		p.Errorf("status %s", s)
	}
	p.must("start", "life")
	logs := func() string { return strings.Join(strings.Fields(p.must("logs", "life")), " ") }
	p.eventually("the process", func() bool { return logs() == "up" })
	p.must("pause", "life")
	if s := p.inspect("life", ".State.Status"); s != "paused" {
		p.Errorf("status %s", s)
	}
	if r := p.run("exec", "life", "true"); r.code == 0 {
		p.Error("exec in a paused container succeeds")
	}
	p.must("unpause", "life")
	p.must("kill", "--signal", "USR1", "life")
	p.eventually("a signal", func() bool { return logs() == "up usr1" })
	p.must("stop", "life")
	if code := p.inspect("life", ".State.ExitCode"); code != "42" {
		p.Errorf("exit code %s", code)
	}
	p.must("restart", "life")
	if s := p.inspect("life", ".State.Status"); s != "running" {
		p.Errorf("status %s", s)
	}
	p.must("kill", "life")
	if code := strings.TrimSpace(p.must("wait", "life")); code != "137" {
		p.Errorf("exit code %s", code)
	}
	if r := p.inspect("life", ".OCIRuntime"); !strings.HasSuffix(r, "podstead-oci") {
		p.Errorf("runtime %s", r)
	}
	p.must("rm", "life")
}

func testAttach(p *podman) {
	p.must("run", "-d", "-i", "--name", "attach", "--network", "none", image, "sh", "-c", "read line; echo got $line; exit 5")
	if r := p.runWith("hello\n", "attach", "attach"); strings.TrimSpace(r.stdout) != "got hello" {
		p.Errorf("%+v", r)
	}
	if code := strings.TrimSpace(p.must("wait", "attach")); code != "5" {
		p.Errorf("exit code %s", code)
	}
}

func testHealth(p *podman) {
	p.must("run", "-d", "--name", "health", "--network", "none", "--health-cmd", "test -e /healthy", "--health-retries", "1", image, "sleep", "1000")
	if r := p.run("healthcheck", "run", "health"); r.code != 1 {
		p.Errorf("before it is healthy: %+v", r)
	}
	if s := p.inspect("health", ".State.Health.Status"); s != "unhealthy" {
		p.Errorf("status %s", s)
	}
	p.must("exec", "health", "touch", "/healthy")
	p.must("healthcheck", "run", "health")
	if s := p.inspect("health", ".State.Health.Status"); s != "healthy" {
		p.Errorf("status %s", s)
	}
}

func testPod(p *podman) {
	p.must("pod", "create", "--name", "pod", "--hostname", "in-the-pod", "--network", "none", "--share", "ipc,net,uts,pid",
		"--infra-image", image, "--infra-command", "sleep 1000")
	p.must("run", "-d", "--pod", "pod", "--name", "first", image, "sleep", "1001")
	out := p.must("run", "--rm", "--pod", "pod", image, "sh", "-c", "hostname; ps | grep -c '[s]leep 100'; readlink /proc/self/ns/net")
	if want := "in-the-pod\n2\n" + p.must("exec", "first", "readlink", "/proc/self/ns/net"); out != want {
		p.Errorf("got %q, want %q", out, want)
	}
	p.must("pod", "pause", "pod")
	p.must("pod", "unpause", "pod")
	p.must("pod", "rm", "--force", "--time", "0", "pod")
	if out := p.must("pod", "ps", "--quiet"); out != "" {
		p.Errorf("left: %s", out)
	}
}

// testNotify has podman be told by a container that it is ready (--sdnotify=container,
// the default).
func testNotify(p *podman) {
	path := filepath.Join(p.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		p.Fatal(err)
	}
	defer conn.Close()
	script := `echo $NOTIFY_SOCKET; test -S $NOTIFY_SOCKET && ls -ld $NOTIFY_SOCKET | cut -c1-10`
	r := p.runIn([]string{"NOTIFY_SOCKET=" + path}, "", "run", "--rm", "--network", "none", image, "sh", "-c", script)
	if r.stdout != "/run/notify/notify.sock\nsrwxrwxrwx\n" {
		p.Errorf("%+v", r)
	}
}

// testOptions runs a container for each option.
func testOptions(p *podman) {
	profile := filepath.Join(p.TempDir(), "seccomp.json")
	const noMkdir = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}`
	if err := os.WriteFile(profile, []byte(noMkdir), 0o644); err != nil {
		p.Fatal(err)
	}
	volume := p.TempDir()
	if err := os.WriteFile(volume+"/file", []byte("volume\n"), 0o644); err != nil {
		p.Fatal(err)
	}
	for options, c := range map[string]struct{ script, want string }{
		"":                                  {"grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status", "NoNewPrivs:\t0\nSeccomp:\t2\n"},
		"--security-opt seccomp=" + profile: {"mkdir /x", "mkdir: can't create directory '/x': No space left on device\n"},
		"--security-opt no-new-privileges":  {"grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
		"--read-only":                       {"touch /x; touch /tmp/x && echo tmp", "touch: /x: Read-only file system\ntmp\n"},
		"--uidmap 0:100000:65536 --gidmap 0:200000:65536":              {"cat /proc/self/uid_map /proc/self/gid_map; touch /x && stat -c %u /x", "0 100000 65536 0 200000 65536 0"},
		"--user 12:34 --group-add 56":                                  {"id -u; id -g; id -G", "12\n34\n34 56\n"},
		"--volume " + volume + ":/data:ro":                             {"cat /data/file; touch /data/x", "volume\ntouch: /data/x: Read-only file system\n"},
		"--tmpfs /data:size=1m,mode=700":                               {"stat -c %a /data; stat -f -c '%b %S' /data", "700\n256 4096\n"},
		"--cap-drop all --cap-add net_raw":                             {"grep CapEff /proc/self/status", "CapEff:\t0000000000002000\n"},
		"--privileged":                                                 {"grep -E '^(Seccomp):' /proc/self/status; test -w /proc/sys/kernel/domainname && echo writable", "Seccomp:\t0\nwritable\n"},
		"--hostname box --sysctl kernel.msgmax=4096":                   {"hostname; cat /proc/sys/kernel/msgmax", "box\n4096\n"},
		"--ulimit nofile=100:200 --ulimit nproc=100:100 --shm-size 2m": {"ulimit -n; ulimit -Hn; stat -f -c '%b %S' /dev/shm", "100\n200\n512 4096\n"},
		"--device /dev/null:/dev/other:r":                              {"test -c /dev/other && echo device", "device\n"},
		"--pid host --ipc host --uts host":                             {"test $$ -gt 1 && echo host", "host\n"},
		"--workdir /tmp":                                               {"pwd", "/tmp\n"},
		"--umask 0077":                                                 {"umask", "0077\n"},
		"--oom-score-adj 500":                                          {"cat /proc/self/oom_score_adj", "500\n"},
		"--init --init-path /usr/bin/docker-init":                      {"tr '\\0' ' ' </proc/1/cmdline | cut -d' ' -f1,2", "/run/podman-init --\n"},
		"--systemd=always":                                             {"for dir in /run /run/lock /tmp /var/log/journal; do stat -f -c %T $dir; done; echo $container", "tmpfs\ntmpfs\ntmpfs\ntmpfs\npodman\n"},
		"--userns=auto:size=4096":                                      {"cut -c1-10,22- /proc/self/uid_map | tr -s ' '; touch /x && stat -c %u /x", " 0 4096\n0\n"},
	} {
		args := append([]string{"run", "--rm", "--network", "none"}, strings.Fields(options)...)
		r := p.run(append(args, image, "sh", "-c", "("+c.script+") 2>&1")...)
		got := r.stdout
		if strings.Contains(options, "uidmap") {
			got = strings.Join(strings.Fields(got), " ")
		}
		if got != c.want {
			p.Errorf("%s: %q, %s; want %q", options, got, r.stderr, c.want)
		}
	}
}
