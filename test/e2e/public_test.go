package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"podstead/agent"
)

// publicManifests names a directory of manifests that others wrote.
const publicManifests = "PODSTEAD_TEST_MANIFESTS"

// TestPublicManifests runs what `podstead check` accepts of a directory of
// manifests, all images replaced by one of our own, and tells what becomes of it.
// It asserts that each pod is dealt with: it runs, has run to its end, or says
// why it does not.
func TestPublicManifests(t *testing.T) {
	dir := os.Getenv(publicManifests)
	if dir == "" {
		t.Skip(publicManifests + " does not name a directory of manifests (make manifests)")
	}
	n := newNode(t)
	n.start()
	n.loadBusybox()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for batch := range slices.Chunk(files, 90) { // a node takes 110 pods
		for _, line := range n.live(dir, batch) {
			t.Log(line)
		}
	}
}

// live runs the manifests of some files and tells what became of each pod.
func (n *node) live(dir string, files []string) (lines []string) {
	origin := map[string]string{}
	for i, path := range files {
		namespace := fmt.Sprintf("m%d", i)
		if docs := localized(n.T, path, namespace); len(docs) > 0 {
			origin[namespace], _ = filepath.Rel(dir, path)
			n.write(namespace+".yaml", strings.Join(docs, "\n---\n"))
		}
	}
	const patience = 45 * time.Second
	time.Sleep(patience) // what is not ready by then is no better later
	pods, err := n.pods()
	if err != nil {
		n.Fatal(err)
	}
	for _, p := range pods {
		outcome := become(&p)
		if outcome == "" {
			why, _ := n.try("why", p.Name, "-n", p.Namespace)
			if outcome = waits(why); outcome == "" {
				n.Errorf("%s: pod %s: it is not told why it does not run: %+v\n%s", origin[p.Namespace], p.Name, p.Status, why)
			}
		}
		lines = append(lines, fmt.Sprintf("| %s | Pod %s | %s |", origin[p.Namespace], p.Name, outcome))
	}
	slices.Sort(lines)
	for namespace := range origin {
		if err := os.Remove(filepath.Join(n.manifests, namespace+".yaml")); err != nil {
			n.Fatal(err)
		}
	}
	n.eventually("all pods are gone", func() error {
		pods, err := n.pods()
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%d are left", len(pods))
		}
		return err
	})
	return lines
}

// localized returns those documents of a file that are accepted, in a namespace
// of their own, with our image and without ports of the host.
func localized(t *testing.T, path, namespace string) (docs []string) {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, doc := range bytes.Split(append([]byte("\n"), data...), []byte("\n---")) {
		verdicts, err := agent.Check(doc)
		if err != nil {
			t.Fatal(err)
		}
		if len(verdicts) != 1 || verdicts[0].Err != nil || verdicts[0].Kind == "PersistentVolume" {
			continue
		}
		var object map[string]any
		if err := yaml.Unmarshal(doc, &object); err != nil {
			continue
		}
		key := verdicts[0].Kind + verdicts[0].Name
		meta, ok := object["metadata"].(map[string]any)
		if !ok || seen[key] {
			continue
		}
		seen[key] = true
		meta["namespace"] = namespace
		if object["kind"] == "Pod" {
			ours(object["spec"].(map[string]any))
		}
		out, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, string(out))
	}
	return docs
}

// ours replaces what this machine does not have.
func ours(spec map[string]any) {
	spec["terminationGracePeriodSeconds"] = 1
	for _, field := range []string{"initContainers", "containers"} {
		list, _ := spec[field].([]any)
		for _, x := range list {
			c := x.(map[string]any)
			c["image"], c["imagePullPolicy"] = busybox, "Never"
			if c["command"] == nil { // what the image would have run
				c["command"], c["args"] = []string{"sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"}, nil
				if field == "initContainers" {
					c["command"] = []string{"true"}
				}
			}
			ports, _ := c["ports"].([]any)
			for _, p := range ports {
				delete(p.(map[string]any), "hostPort")
			}
		}
	}
}

// waits is what "podstead why" says that a pod waits for.
func waits(why string) string {
	for line := range strings.Lines(why) {
		if _, text, ok := strings.Cut(line, "waits: "); ok {
			text, _, _ = strings.Cut(text, " (again in")
			return strings.TrimSpace(text)
		}
	}
	return ""
}

// become tells what became of a pod, "" if nobody can tell.
func become(p *corev1.Pod) string {
	if ready(p) {
		return "Ready"
	}
	if p.Status.Phase == corev1.PodSucceeded {
		return "ran to its end"
	}
	var why []error
	if p.Status.Reason != "" {
		why = append(why, errors.New(p.Status.Reason))
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Message != "":
			why = append(why, fmt.Errorf("%s: %s", c.State.Waiting.Reason, c.State.Waiting.Message))
		case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
			why = append(why, fmt.Errorf("%s ended with %d", c.Name, c.State.Terminated.ExitCode))
		case c.State.Running != nil && !c.Ready:
			why = append(why, fmt.Errorf("%s runs; its probe finds no server", c.Name))
		}
	}
	if len(why) == 0 {
		return ""
	}
	return strings.Join(strings.Fields(fmt.Sprintf("%.200s", errors.Join(why...).Error())), " ")
}
