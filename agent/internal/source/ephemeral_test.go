package source

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestEphemeralContainersAreCheckedAsTheAPIServerDoes(t *testing.T) {
	d, err := NewDecoder("n1")
	if err != nil {
		t.Fatal(err)
	}
	manifest := func(extra string) []byte {
		return []byte(`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {volumes: [{name: v, emptyDir: {}}],
  initContainers: [{name: init, image: i}], containers: [{name: app, image: i}], ephemeralContainers: [{name: look, image: i, ` + extra + `}]}}`)
	}
	objs, _, err := d.Decode(manifest("targetContainerName: app, stdin: true, tty: true"))
	if err != nil {
		t.Fatal(err)
	}
	e := objs[0].Pod.Spec.EphemeralContainers[0]
	if e.ImagePullPolicy != corev1.PullAlways || e.TerminationMessagePath == "" {
		t.Errorf("no defaults: %+v", e)
	}
	for extra, want := range map[string]string{
		"name: look, ports: [{containerPort: 1}]":              "", // a repeated key is no YAML
		"ports: [{containerPort: 1}]":                          "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an ephemeral container",
		"livenessProbe: {tcpSocket: {port: 1}}":                "spec.ephemeralContainers[0].livenessProbe: Forbidden",
		"resources: {limits: {cpu: 1}}":                        "spec.ephemeralContainers[0].resources: Forbidden",
		"lifecycle: {preStop: {sleep: {seconds: 1}}}":          "spec.ephemeralContainers[0].lifecycle: Forbidden",
		"restartPolicy: Always":                                "spec.ephemeralContainers[0].restartPolicy: Forbidden",
		"targetContainerName: init":                            `spec.ephemeralContainers[0].targetContainerName: Not found: "init"`,
		"volumeMounts: [{name: v, mountPath: /v, subPath: s}]": "subPath: Forbidden",
		"volumeMounts: [{name: nothing, mountPath: /v}]":       "spec.ephemeralContainers[0].volumeMounts[0].name",
	} {
		if _, _, err := d.Decode(manifest(extra)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", extra, err, want)
		}
	}
	again := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "look", Image: "i"}}
	if _, err := d.AddEphemeral(objs[0].Pod, again); err == nil || !strings.Contains(err.Error(), `spec.ephemeralContainers[1].name: Duplicate value: "look"`) {
		t.Errorf("a second one of that name: %v", err)
	}
	again.Name = "other"
	if e, err := d.AddEphemeral(objs[0].Pod, again); err != nil || e.ImagePullPolicy != corev1.PullAlways {
		t.Errorf("another: %+v, %v", e, err)
	}
}
