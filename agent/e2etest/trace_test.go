package e2etest

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"podstead/cri/tracing"
	"podstead/cri/tracing/tracingtest"
	"podstead/image/imagetest"
	"podstead/test/host"
	runtimenode "podstead/test/node"
)

// tracedPod waits for two probes, and is told a secret.
const tracedPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: %s/app/web:1
    command: [httpd, -f, -p, "8080", -h, /etc]
    env: [{name: PASSWORD, value: s3cret}]
    startupProbe: {timeoutSeconds: 300, tcpSocket: {port: 8080}, periodSeconds: 1}
    readinessProbe: {timeoutSeconds: 300, httpGet: {path: /passwd, port: 8080}, periodSeconds: 1}
`

// TestTraces: a pod's start is one trace, from its first sight until it is
// ready, across the socket into the runtime and its parts.
func TestTraces(t *testing.T) {
	host.Require(t)
	collector := tracingtest.Start(t)
	img := imagetest.Busybox(t)
	registry := imagetest.Registry(t, map[string]imagetest.Image{"app/web:1": img})
	n := newNode(t)
	config := filepath.Join(n.dir, "engine.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "tracing: {endpoint: %q}\n", collector.Endpoint), 0o600); err != nil {
		t.Fatal(err)
	}
	p := runtimenode.Run(t, os.Getenv(podsteadVariable), "cri", "--config", config)
	flush := n.trace(tracing.Settings{Endpoint: collector.Endpoint, PerMillion: 1e6})
	n.connect(p.Endpoint())

	n.apply(fmt.Sprintf(tracedPod, "first", registry))
	n.until("first", "ready", ready)
	spans := collector.Await(t, "engine's part of the start", func(spans []tracingtest.Span) bool {
		all := paths(spans)
		return all["pod start"].Name != "" && all["pod start/start/"+call("StartContainer")+"/"+call("StartContainer")].Name != ""
	})
	n.startIsTraced(spans, registry, img)

	// Nobody hears of pods with a rate of 0, and nobody waits for a collector that
	// is not there; the engine has one, and sends its part.
	n.stop()
	flush()
	for name, s := range map[string]tracing.Settings{
		"untraced": {Endpoint: collector.Endpoint}, "unheard": {Endpoint: "127.0.0.1:1", PerMillion: 1e6},
	} {
		flush := n.trace(s)
		n.start()
		n.apply(fmt.Sprintf(tracedPod, name, registry))
		n.until(name, "ready", ready)
		n.stop()
		flush()
		for _, s := range collector.Spans() {
			if s.Attributes["k8s.pod.name"] == name && (name == "untraced" || s.Service != "podstead-cri") {
				t.Errorf("a span of %s: %+v", name, s)
			}
		}
	}
	n.tracing = nil
	n.start()
	for _, name := range []string{"first", "untraced", "unheard"} {
		if err := n.client.DeletePod(n.Context(), "default", name, nil); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"first", "untraced", "unheard"} {
		n.until(name, "gone", gone)
	}
	n.clean()
}

// trace has the next agent send its spans; flush sends the last of them.
func (n *node) trace(s tracing.Settings) (flush func()) {
	n.Helper()
	provider, stop, err := tracing.Start(n.Context(), s, tracing.Source{Service: "podstead-node", Version: "1", Host: "node1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		n.Fatal(err)
	}
	n.tracing = provider
	return stop
}

func (n *node) startIsTraced(spans []tracingtest.Span, registry string, img imagetest.Image) {
	n.Helper()
	all := paths(spans)
	tree := tracingtest.Tree(spans)
	run, pull, create := call("RunPodSandbox"), call("PullImage"), call("CreateContainer")
	for path, want := range map[string]map[string]string{
		"pod start":                                   {"k8s.pod.name": "first", "k8s.namespace.name": "default", "service.name": "podstead-node", "host.name": "node1"},
		"pod start/prepare":                           nil,
		"pod start/create sandbox/" + run:             {"k8s.pod.name": "first"},
		"pod start/create sandbox/" + run + "/" + run: {"service.name": "podstead-cri"},
		"pod start/create sandbox/" + run + "/" + run + "/make cgroup":     nil,
		"pod start/create sandbox/" + run + "/" + run + "/connect network": nil,
		"pod start/start":                                         {"k8s.container.name": "web"},
		"pod start/start/image":                                   {"container.image.name": registry + "/app/web:1", "server.address": registry, "container.image.id": img.ID()},
		"pod start/start/image/" + pull:                           {"container.image.id": img.ID()},
		"pod start/start/image/" + pull + "/" + pull + "/resolve": {"server.address": registry, "oci.manifest.digest": img.Manifest.Digest()},
		"pod start/start/image/" + pull + "/" + pull + "/layer": {"server.address": registry, "podstead.layer.digest": img.Layers[0].Digest(),
			"podstead.layer.bytes": fmt.Sprint(len(img.Layers[0].Data))},
		"pod start/start/" + create:                            {"k8s.container.name": "web"},
		"pod start/start/" + create + "/" + create + "/launch": nil,
		"pod start/start/" + call("StartContainer"):            nil,
		"pod start/startup probe":                              {"k8s.container.name": "web"},
		"pod start/readiness probe":                            {"k8s.container.name": "web"},
	} {
		s, ok := all[path]
		if !ok {
			n.Errorf("no span %s", path)
		}
		for key, v := range want {
			if s.Attributes[key] != v {
				n.Errorf("%s: %s is %q, want %q", path, key, s.Attributes[key], v)
			}
		}
	}
	root := all["pod start"]
	if !slices.Contains(root.Events, "ready") {
		n.Errorf("events of the start: %v", root.Events)
	}
	for path, s := range all {
		if !strings.HasPrefix(path, "pod start/") {
			continue
		}
		if s.Begin.Before(root.Begin) || s.End.After(root.End) || s.Error != "" {
			n.Errorf("%s is not within its pod's start: %+v", path, s)
		}
		for key, v := range s.Attributes {
			if strings.Contains(v, "s3cret") {
				n.Errorf("%s: a secret in %s", path, key)
			}
		}
	}
	if n.Failed() {
		n.Log("spans:\n" + tree)
	}
}

func call(verb string) string {
	if verb == "PullImage" {
		return "runtime.v1.ImageService/" + verb
	}
	return "runtime.v1.RuntimeService/" + verb
}

// paths finds spans by their names and those of the spans above them, of each
// the first that arrived.
func paths(spans []tracingtest.Span) map[string]tracingtest.Span {
	byID := map[string]tracingtest.Span{}
	for _, s := range spans {
		byID[s.ID] = s
	}
	out := map[string]tracingtest.Span{}
	for _, s := range spans {
		path := s.Name
		for up, ok := byID[s.Parent]; ok; up, ok = byID[up.Parent] {
			path = up.Name + "/" + path
		}
		if _, ok := out[path]; !ok {
			out[path] = s
		}
	}
	return out
}
