package e2etest

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent"
)

const kubeletURL = "https://127.0.0.1:10250"

// TestKubeletAPI asks the kubelet's API as an API server, a monitoring system and
// a person do.
func TestKubeletAPI(t *testing.T) {
	onEach(t, func(n *node) {
		n.stop()
		n.kubelet = &agent.KubeletAPI{Address: "127.0.0.1", Port: 10250, ReadOnlyPort: 10255, HealthzAddress: "127.0.0.1", HealthzPort: 10248,
			Anonymous: true, AlwaysAllow: true, MinVersion: tls.VersionTLS12, Debugging: true}
		n.start()
		n.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: test.local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "echo served > /scratch/file; httpd -p 8080 -h /scratch; echo hello; exec sleep 100000"]
    readinessProbe: {timeoutSeconds: 300, exec: {command: ["true"]}, periodSeconds: 1}
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes: [{name: scratch, emptyDir: {}}]
`)
		pod := n.until("web", "ready", ready)
		n.line("web", "c") // it has written its line
		n.fetched("http://127.0.0.1:10248/healthz", "ok")
		n.fetched(kubeletURL+"/pods", `"uid":"`+string(pod.UID)+`"`)
		n.fetched("http://127.0.0.1:10255/pods", `"uid":"`+string(pod.UID)+`"`)
		n.fetched(kubeletURL+"/runningpods/", `"name":"web"`)
		n.fetched(kubeletURL+"/containerLogs/default/web/c?tailLines=1", "hello\n")
		n.fetched(kubeletURL+"/metrics", "kubelet_running_pods 1\n", `kubelet_running_containers{container_state="running"} 1`+"\n",
			`kubelet_runtime_operations_total{operation_type="run_podsandbox"} 1`+"\n", `kubelet_started_containers_total{container_type="container"} 1`+"\n",
			"kubelet_pod_start_duration_seconds_count 1\n", "kubelet_pod_start_total_duration_seconds_count 1\n", "kubelet_pod_start_sli_duration_seconds_count 1\n",
			`kubelet_pod_worker_duration_seconds_count{operation_type="create"} `, `kubelet_http_requests_total{long_running="false",method="GET",path="pods",server_type="readonly"} 1`+"\n", `kubelet_node_name{node="node1"} 1`+"\n", "process_resident_memory_bytes ")
		n.fetched(kubeletURL+"/metrics/probes", `prober_probe_total{container="c",namespace="default",pod="web",pod_uid="`+string(pod.UID)+`",probe_type="Readiness",result="successful"} `)
		n.fetched(kubeletURL+"/metrics/resource", `container_cpu_usage_seconds_total{container="c",namespace="default",pod="web"} `,
			`container_memory_working_set_bytes{container="c",namespace="default",pod="web"} `, `container_start_time_seconds{container="c",namespace="default",pod="web"} `,
			`pod_memory_working_set_bytes{namespace="default",pod="web"} `, "node_cpu_usage_seconds_total ", "resource_scrape_error 0\n")
		if strings.HasSuffix(n.Name(), "podstead") { // containerd 1.6 has none
			n.fetched(kubeletURL+"/metrics/cadvisor", `container_memory_working_set_bytes{`, `pod="web"`)
		} else { // nor does it tell of its cgroup driver
			n.fetched(kubeletURL+"/metrics", `kubelet_cri_losing_support{version="1.38.0"} 1`+"\n")
		}
		n.summary(pod)
		if got := n.kubeletExec("/exec/default/web/"+string(pod.UID)+"/c", "cat", "/proc/1/comm"); got != "sleep\n" {
			n.Errorf("exec: %q", got)
		}
		n.webSockets()
		if resp, err := insecure().Post(kubeletURL+"/run/default/web/c?cmd=hostname", "", nil); err != nil {
			n.Error(err)
		} else if body, _ := io.ReadAll(resp.Body); string(body) != "web\n" {
			n.Errorf("run: %s %q", resp.Status, body)
		}
		if resp, err := http.Post("http://127.0.0.1:10255/run/default/web/c?cmd=hostname", "", nil); err != nil || resp.StatusCode != http.StatusNotFound {
			n.Errorf("the read-only port runs commands: %v, %v", resp, err)
		}
		if err := n.client.DeletePod(n.Context(), "default", "web", nil); err != nil {
			n.Error(err)
		}
		n.until("web", "gone", gone)
		n.fetched(kubeletURL+"/metrics", "kubelet_running_pods 0\n")
		n.clean()
	})
}

func insecure() *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
}

// fetched gets a URL, as soon as it is served and its body has all parts.
func (n *node) fetched(from string, parts ...string) string {
	n.Helper()
	for deadline := time.Now().Add(patience); ; {
		body, err := fetch(from)
		missing := slices.DeleteFunc(slices.Clone(parts), func(p string) bool { return strings.Contains(body, p) })
		if err == nil && len(missing) == 0 {
			return body
		}
		if time.Now().After(deadline) {
			n.Fatalf("%s: %v, no %q in\n%s", from, err, missing, body)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}

func fetch(from string) (string, error) {
	resp, err := insecure().Get(from)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// summary checks the figures of the one pod.
func (n *node) summary(pod *corev1.Pod) {
	n.Helper()
	var sum stats.Summary
	if err := json.Unmarshal([]byte(n.fetched(kubeletURL+"/stats/summary")), &sum); err != nil {
		n.Fatal(err)
	}
	if sum.Node.NodeName != "node1" || sum.Node.Runtime.ImageFs == nil || *sum.Node.Runtime.ImageFs.CapacityBytes == 0 {
		n.Errorf("node: %+v", sum.Node)
	}
	if len(sum.Pods) != 1 || sum.Pods[0].PodRef.UID != string(pod.UID) || len(sum.Pods[0].Containers) != 1 {
		n.Fatalf("pods: %+v", sum.Pods)
	}
	p, c := sum.Pods[0], sum.Pods[0].Containers[0]
	if c.Name != "c" || *c.CPU.UsageCoreNanoSeconds == 0 || *c.Memory.WorkingSetBytes == 0 || c.StartTime.IsZero() || c.Rootfs == nil || c.Logs == nil || *c.Logs.UsedBytes == 0 {
		n.Errorf("container: %+v", c)
	}
	if *p.Memory.WorkingSetBytes == 0 || len(p.VolumeStats) != 1 || p.VolumeStats[0].Name != "scratch" || p.EphemeralStorage == nil {
		n.Errorf("pod: %+v", p)
	}
}

// kubeletExec runs a command as an API server has it run.
func (n *node) kubeletExec(path string, command ...string) string {
	n.Helper()
	u, err := url.Parse(kubeletURL + path)
	if err != nil {
		n.Fatal(err)
	}
	u.RawQuery = url.Values{"command": command, "output": {"1"}, "error": {"1"}}.Encode()
	exec, err := remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "POST", u)
	if err != nil {
		n.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if err := exec.StreamWithContext(n.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}); err != nil {
		n.Errorf("exec: %v: %s", err, errOut.String())
	}
	return out.String()
}
