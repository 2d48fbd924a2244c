package crictl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"podstead/image/imagetest"
	"podstead/test/host"
)

// patience bounds waits for what should come soon.
const patience = 5 * time.Minute

// client is crictl, or what stands in for it, with an endpoint.
type client struct {
	path, endpoint string
	prefix         []string // arguments before crictl's own
	webSocket      bool     // the runtime speaks the version of it that crictl does
	metrics        bool     // the runtime has them
}

func (c client) command(t *testing.T, args ...string) *exec.Cmd {
	args = append(append(slices.Clip(c.prefix), "--runtime-endpoint", c.endpoint, "--image-endpoint", c.endpoint, "--timeout", patience.String()), args...)
	cmd := exec.CommandContext(t.Context(), c.path, args...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// run runs crictl, which must succeed, and returns what it prints.
func (c client) run(t *testing.T, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := c.command(t, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("crictl %s: %v\n%s%s", strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

// id runs crictl, which must print one id.
func (c client) id(t *testing.T, args ...string) string {
	t.Helper()
	id := strings.TrimSpace(c.run(t, args...))
	if id == "" || strings.ContainsAny(id, " \n") {
		t.Fatalf("crictl %s prints %q, want an id", args[0], id)
	}
	return id
}

// prints runs crictl and looks for parts of its output.
func (c client) prints(t *testing.T, want []string, args ...string) string {
	t.Helper()
	out := c.run(t, args...)
	for _, part := range want {
		if !regexp.MustCompile(part).MatchString(out) {
			t.Errorf("crictl %s prints\n%s\nwithout %q", strings.Join(args, " "), out, part)
		}
	}
	return out
}

// object runs crictl, which must print JSON.
func (c client) object(t *testing.T, args ...string) map[string]any {
	t.Helper()
	out := c.run(t, args...)
	var object map[string]any
	if err := json.Unmarshal([]byte(out), &object); err != nil {
		t.Fatalf("crictl %s prints no JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
	return object
}

// at follows keys into an object.
func at(object any, keys ...string) any {
	for _, key := range keys {
		m, _ := object.(map[string]any)
		object = m[key]
	}
	return object
}

// short is how crictl shows ids, and how users then write them.
func short(id string) string { return id[:min(13, len(id))] }

// files are the configurations that crictl reads.
type files struct{ pod, container string }

func writeFiles(t *testing.T, image string) files {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, object any) string {
		b, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	type object = map[string]any
	// By these, which the kubelet sets, crictl tells the names of pods.
	labels := object{"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "crictl"}
	return files{
		pod: write("pod.json", object{
			"metadata":      object{"name": "web", "namespace": "crictl", "uid": host.Name(), "attempt": 1},
			"hostname":      "web",
			"log_directory": dir,
			"labels":        labels,
			"linux":         object{"cgroup_parent": host.Cgroup() + "/web", "security_context": object{"namespace_options": object{"pid": 1}}},
		}),
		container: write("container.json", object{
			"metadata": object{"name": "echo"},
			"labels":   labels,
			"image":    object{"image": image},
			"command":  []string{"sh", "-c", "echo started; nc -ll -p 7000 -e /bin/cat & while read line; do echo got $line; done; sleep 1000"},
			"envs":     []object{{"key": "GREETING", "value": "hello"}},
			"log_path": "echo.log",
			"stdin":    true,
			"linux":    object{"security_context": object{"namespace_options": object{"pid": 1}}},
		}),
	}
}

// walk does with a runtime what people do with crictl.
func walk(t *testing.T, c client) {
	registry := imagetest.Registry(t, map[string]imagetest.Image{"test/busybox:1": imagetest.Busybox(t)})
	image := registry + "/test/busybox:1"
	f := writeFiles(t, image)

	c.prints(t, []string{`Version: +0\.1\.0`, `RuntimeName: +\S`, `RuntimeApiVersion: +v1\n`}, "version")
	conditions, _ := json.Marshal(at(c.object(t, "info"), "status", "conditions"))
	if n := strings.Count(string(conditions), `"status":true`); n < 2 {
		t.Errorf("info has conditions %s", conditions)
	}

	t.Run("image", func(t *testing.T) {
		c.prints(t, []string{"Image is up to date for sha256:"}, "pull", image)
		c.prints(t, []string{`(?m)^` + registry + `/test/busybox +1 +[0-9a-f]{13} +\d`}, "images")
		if tags := at(c.object(t, "inspecti", image), "status", "repoTags"); fmt.Sprint(tags) != "["+image+"]" {
			t.Errorf("inspecti has tags %v", tags)
		}
		c.prints(t, []string{"imageFilesystems"}, "imagefsinfo")
	})
	pod := c.id(t, "runp", f.pod)
	id := c.id(t, "create", "--no-pull", pod, f.container, f.pod)
	c.prints(t, []string{`(?m)^` + short(id) + ` .*Created +echo`}, "ps", "-a")
	c.run(t, "start", id)
	t.Run("look", func(t *testing.T) { look(t, c, pod, id) })
	t.Run("exec", func(t *testing.T) { execute(t, c, id) })
	t.Run("attach", func(t *testing.T) { attach(t, c, id) })
	t.Run("port-forward", func(t *testing.T) { forward(t, c, pod) })
	t.Run("stats", func(t *testing.T) {
		eventually(t, "stats show the container's memory", func() bool {
			return regexp.MustCompile(`(?m)^` + short(id) + ` +echo +\S+ +[1-9][0-9.]*\S*B`).MatchString(c.run(t, "stats"))
		})
		c.prints(t, []string{short(pod)[:8], "web"}, "statsp")
		c.prints(t, []string{`"usageCoreNanoSeconds"`, `"workingSetBytes"`}, "stats", "-o", "json", id)
	})
	if c.metrics {
		t.Run("metrics", func(t *testing.T) {
			c.prints(t, []string{`"name": "container_cpu_usage_seconds_total"`, `"labelKeys"`}, "metricdescs")
			c.prints(t, []string{`"podSandboxId": "` + pod + `"`, `"containerId": "` + id + `"`, `"name": "container_memory_working_set_bytes"`}, "metricsp")
		})
	}
	t.Run("end", func(t *testing.T) { end(t, c, pod, id, image) })
}

func look(t *testing.T, c client, pod, id string) {
	c.prints(t, []string{`(?m)^` + short(pod) + ` .*Ready +web +crictl +1 `}, "pods")
	if ip, _ := at(c.object(t, "inspectp", pod), "status", "network", "ip").(string); net.ParseIP(ip) == nil {
		t.Errorf("inspectp has the IP %q", ip)
	}
	c.prints(t, []string{`(?m)^` + short(id) + ` .*Running +echo +0 +` + short(pod) + ` +web`}, "ps")
	if state := at(c.object(t, "inspect", id), "status", "state"); state != "CONTAINER_RUNNING" {
		t.Errorf("inspect has the state %v", state)
	}
	if state := at(c.object(t, "inspect", short(id)), "status", "state"); state != "CONTAINER_RUNNING" {
		t.Errorf("inspect by the short id has the state %v", state)
	}
	eventually(t, "logs show the first line", func() bool { return c.run(t, "logs", id) == "started\n" })
	c.prints(t, []string{`^started\n$`}, "logs", "--tail", "1", id)
}

func execute(t *testing.T, c client, id string) {
	c.prints(t, []string{`^hello\n`}, "exec", "-s", id, "sh", "-c", "echo $GREETING")
	c.prints(t, []string{`^hello\n$`}, "exec", id, "sh", "-c", "echo $GREETING")
	if c.webSocket {
		c.prints(t, []string{`^hello\n$`}, "exec", "--transport", "websocket", id, "sh", "-c", "echo $GREETING")
	}
	cmd := c.command(t, "exec", "-i", id, "cat")
	cmd.Stdin = strings.NewReader("through and back\n")
	if out, err := cmd.Output(); err != nil || string(out) != "through and back\n" {
		t.Errorf("exec -i prints %q, %v", out, err)
	}
	for _, args := range [][]string{{"exec", id, "sh", "-c", "exit 7"}, {"exec", "-s", id, "sh", "-c", "exit 7"}} {
		out, err := c.command(t, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "7") {
			t.Errorf("crictl %v succeeds, or does not tell the exit code: %s", args, out)
		}
	}
}

// attach writes a line to the container and reads its answer.
func attach(t *testing.T, c client, id string) {
	cmd := c.command(t, "attach", "-i", id)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	lines := start(t, cmd)
	io.WriteString(in, "a line\n")
	waitLine(t, lines, "got a line")
	cmd.Process.Kill() // it takes two interrupts to end
	cmd.Wait()
	eventually(t, "logs show the answer", func() bool { return strings.Contains(c.run(t, "logs", id), "got a line\n") })
}

func forward(t *testing.T, c client, pod string) {
	cmd := c.command(t, "port-forward", pod, "0:7000")
	lines := start(t, cmd)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(waitLine(t, lines, "Forwarding from 127.0.0.1"))
	eventually(t, "the echo server answers at "+address, func() bool {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		got := make([]byte, 6)
		_, err = io.WriteString(conn, "hello\n")
		if err == nil {
			_, err = io.ReadFull(conn, got)
		}
		return err == nil && string(got) == "hello\n"
	})
	cmd.Process.Kill()
	cmd.Wait()
}

func end(t *testing.T, c client, pod, id, image string) {
	c.run(t, "stop", "--timeout", "1", id)
	c.prints(t, []string{`(?m)^` + short(id) + ` .*Exited +echo`}, "ps", "-a")
	if code := at(c.object(t, "inspect", id), "status", "exitCode"); code != float64(137) {
		t.Errorf("inspect has the exit code %v", code)
	}
	c.run(t, "rm", id)
	c.run(t, "stopp", pod)
	c.prints(t, []string{`(?m)^` + short(pod) + ` .*NotReady +web`}, "pods")
	c.run(t, "rmp", pod)
	if out := c.run(t, "pods", "-q") + c.run(t, "ps", "-a", "-q"); out != "" {
		t.Errorf("still listed: %q", out)
	}
	c.run(t, "rmi", image)
	if out := c.run(t, "images"); strings.Contains(out, "test/busybox") {
		t.Errorf("still listed:\n%s", out)
	}
}

// start starts a command and delivers the lines of its output.
func start(t *testing.T, cmd *exec.Cmd) <-chan string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

func waitLine(t *testing.T, lines <-chan string, part string) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("the output ended without %q", part)
			}
			if strings.Contains(line, part) {
				return line
			}
		case <-deadline:
			t.Fatalf("no line with %q came", part)
		}
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
