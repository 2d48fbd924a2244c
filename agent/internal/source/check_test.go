package source

import (
	"fmt"
	"strings"
	"testing"
)

const mixed = `# from a chart
---
---
apiVersion: v1
kind: Pod
metadata: {name: one}
spec: {nodeSelector: {a: b}, containers: [{name: c, image: i}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  template:
    spec:
      containers: [{name: c, image: i, volumeMounts: [{name: data, mountPath: /d}]}]
      volumes: [{name: data, emptyDir: {}}]
  volumeClaimTemplates: [{metadata: {name: data}}]
---
apiVersion: v1
kind: ConfigMapList
items:
- metadata: {name: m}
  data: {a: b}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: two}, date: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: tls}
---
name: {{ .Values.name }}
replicas: {{ .Values.replicas }}
`

func TestCheckJudgesEachObject(t *testing.T) {
	d, err := NewDecoder("n1")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range d.Check([]byte(mixed)) {
		line := fmt.Sprintf("%s %s: %v", v.Kind, v.Name, v.Err)
		if v.Template != nil {
			line += fmt.Sprintf(", %s %s: %v", v.Template.Kind, v.Template.Name, v.Template.Err)
		}
		if len(v.Warnings) > 0 {
			line += ", warned"
		}
		got = append(got, line)
	}
	want := []string{
		"Pod one: <nil>, warned",
		"StatefulSet db: kind StatefulSet is not supported: write its spec.template as a Pod (one per replica), Pod db-0: <nil>",
		"ConfigMap m: <nil>",
		`ConfigMap two: ConfigMap default/two: unknown field "date"`,
		"Certificate tls: kind Certificate is not supported: it is for a controller that serves cert-manager.io in a cluster; leave it out",
		" : this is a template: render it first (helm template), and use what comes out",
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
		t.Errorf("got\n%s\nwant\n%s", a, b)
	}
}

func TestListsOfOneKind(t *testing.T) {
	d, err := NewDecoder("n1")
	if err != nil {
		t.Fatal(err)
	}
	objects, _, err := d.Decode([]byte("{apiVersion: v1, kind: ConfigMapList, items: [{metadata: {name: a}}, {metadata: {name: b}}]}"))
	if err != nil || len(objects) != 2 || objects[1].Key() != "ConfigMap default/b" {
		t.Errorf("%v, %v", objects, err)
	}
}
