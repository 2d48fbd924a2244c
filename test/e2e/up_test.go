package e2e

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"podstead/image/imagetest"
)

const upPod = `
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 3
  containers:
  - name: web
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "echo up; mkdir /www; echo hi >/www/index.html; httpd -f -p 80 -h /www"]
    ports: [{containerPort: 80, hostPort: 18081}]
    readinessProbe: {timeoutSeconds: 300, tcpSocket: {port: 80}, periodSeconds: 1}
`

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// foreground runs up until it ends by itself or by what look, which gets each line,
// does to it. It returns all lines.
func (n *node) foreground(look func(up *os.Process, line string), args ...string) string {
	n.Helper()
	cmd := n.command(n.Context(), append([]string{"up"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.Fatal(err)
	}
	cmd.Stderr = n.log
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	stop := time.AfterFunc(bound, func() { cmd.Process.Kill() })
	defer stop.Stop()
	var seen strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		seen.WriteString(lines.Text() + "\n")
		look(cmd.Process, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		n.Errorf("up ended with %v", err)
	}
	return seen.String()
}

func TestUpInTheForeground(t *testing.T) {
	n := newNode(t)
	seen := n.foreground(func(up *os.Process, line string) {
		if !strings.Contains(line, "open http://localhost:18081") {
			return
		}
		if body, err := get("http://127.0.0.1:18081/"); err != nil || body != "hi\n" {
			t.Errorf("the URL answers %q, %v", body, err)
		}
		up.Signal(syscall.SIGINT)
	}, "--load", imagetest.Archive(t, imagetest.Busybox(t), busybox), "-f", writeFile(t, "pod.yaml", upPod))
	for _, want := range []string{"Pod app created", "web started", "web | up", "taking down", "all down"} {
		if !strings.Contains(seen, want) {
			t.Errorf("up did not say %q:\n%s", want, seen)
		}
	}
}

// TestUpPrintsLastWords looks at what comes just before a container ends, by
// itself and by Ctrl-C.
func TestUpPrintsLastWords(t *testing.T) {
	n := newNode(t)
	archive := imagetest.Archive(t, imagetest.Busybox(t), busybox)
	pod := func(restart, script string) string {
		return writeFile(t, "pod.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: words}
spec:
  restartPolicy: `+restart+`
  containers:
  - name: c
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, '`+script+`']
`)
	}
	t.Run("its own end", func(t *testing.T) {
		out := n.do("up", "--load", archive, "-f", pod("Never", "seq 1 20000; echo the end"))
		if got := strings.Count(out, "c | "); got != 20001 || !strings.Contains(out, "c | the end") {
			t.Errorf("%d of 20001 lines; the end: %v; last:\n%s", got, strings.Contains(out, "c | the end"), out[max(0, len(out)-300):])
		}
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		seen := n.foreground(func(up *os.Process, line string) {
			if line == "c | up" {
				up.Signal(syscall.SIGINT)
			}
		}, "--load", archive, "-f", pod("Always", "trap \"echo farewell; exit\" TERM; echo up; while :; do sleep 0.1; done"))
		if !strings.Contains(seen, "c | farewell") || strings.Contains(seen, "read log") {
			t.Errorf("up said:\n%s", seen)
		}
	})
}

func TestUpDetachedTwiceAndDown(t *testing.T) {
	n := newNode(t)
	pod := writeFile(t, "pod.yaml", upPod)
	archive := imagetest.Archive(t, imagetest.Busybox(t), busybox)
	n.do("up", "-d", "--load", archive, "-f", pod)
	first, err := n.pod("app")
	if err != nil || !ready(first) {
		t.Fatalf("up -d returned before the pod was ready: %v, %v", first, err)
	}
	if out := n.do("up", "-d", "-f", pod); !strings.Contains(out, "Pod app unchanged") {
		t.Errorf("the second up says:\n%s", out)
	}
	second, err := n.pod("app")
	if err != nil || containerID(second, "web") != containerID(first, "web") {
		t.Errorf("the second up restarted the container: %v", err)
	}
	if out := n.do("down", "-f", pod); !strings.Contains(out, "Pod app deleted") {
		t.Errorf("down says:\n%s", out)
	}
	if _, err := n.try("get", "pods"); err == nil {
		t.Error("the node that up started still answers after the last pod is down")
	}
}
