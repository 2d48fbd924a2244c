package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

const kubeletPod = `
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {sysctls: [{name: net.core.somaxconn, value: "77"}]}
  containers:
  - name: c
    image: localhost/busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "grep Seccomp: /proc/self/status; cat /proc/sys/net/core/somaxconn /etc/resolv.conf; echo end; exec sleep 1000"]
`

// A KubeletConfiguration means to pods what it means under a kubelet.
func TestKubeletConfiguration(t *testing.T) {
	n := newNode(t)
	config := writeFile(t, "config.yaml", `
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
seccompDefault: true
podPidsLimit: 20
allowedUnsafeSysctls: [net.core.*]
clusterDNS: [10.9.8.7]
clusterDomain: cluster.local
kubeAPIQPS: 3
oomScoreAdj: 7
maxOpenFiles: 4321
authentication: {anonymous: {enabled: true}}
authorization: {mode: AlwaysAllow}
address: 127.0.0.1
port: 10257
healthzPort: 0
evictionHard: {memory.available: 1Mi} # whatever disk the test runs on
`)
	n.start("--config", config)
	n.loadBusybox()
	n.write("app.yaml", kubeletPod)
	n.await("app", "ready", ready)
	n.eventually("its log is whole", func() error {
		out := n.do("logs", "app")
		for _, want := range []string{"Seccomp:\t2\n", "\n77\n", "nameserver 10.9.8.7\n", "search default.svc.cluster.local svc.cluster.local cluster.local", "options ndots:5", "end\n"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("it lacks %q:\n%s", want, out)
			}
		}
		return nil
	})
	// A fork bomb stays in its pod.
	out, _ := n.try("exec", "app", "--", "sh", "-c", "for i in $(seq 40); do sleep 5 & done; jobs | wc -l")
	if strings.TrimSpace(out) == "40" {
		t.Error("a pod of 20 processes has 40")
	}
	if log, err := os.ReadFile(n.log.Name()); err != nil || strings.Count(string(log), "kubeAPIQPS has no effect") != 1 {
		t.Errorf("no warning, or several, of kubeAPIQPS in the log: %v", err)
	}
	engine := fmt.Sprintf("/proc/%d/", n.engine())
	if score, err := os.ReadFile(engine + "oom_score_adj"); string(score) != "7\n" {
		t.Errorf("oom_score_adj: %s, %v", score, err)
	}
	if limits, err := os.ReadFile(engine + "limits"); !regexp.MustCompile(`Max open files +4321 +4321 `).Match(limits) {
		t.Errorf("limits: %s, %v", limits, err)
	}
	debugging := func() bool {
		log, err := os.ReadFile(n.log.Name())
		return err == nil && strings.Contains(string(log), "level=DEBUG")
	}
	if debugging() {
		t.Error("it is verbose from the start")
	}
	verbose(t, 5)
	n.eventually("it logs more", func() error {
		if n.do("ctl", "pods"); !debugging() { // calls of the runtime, then
			return errors.New("it does not")
		}
		return nil
	})
	bad := exec.Command(os.Getenv(podsteadVariable), "node", "--state", n.state, "--run", n.run+"2", "--config", writeFile(t, "bad.yaml", "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nmaxpods: 1\n"))
	if out, err := bad.CombinedOutput(); err == nil || !strings.Contains(string(out), `bad.yaml: unknown field "maxpods"`) {
		t.Errorf("a bad file: %v, %s", err, out)
	}
}

// verbose changes how much a node logs.
func verbose(t *testing.T, level int) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), "PUT", "https://127.0.0.1:10257/debug/flags/v", strings.NewReader(fmt.Sprint(level)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("verbosity: %s", resp.Status)
	}
}
