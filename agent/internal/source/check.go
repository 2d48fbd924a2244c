package source

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Verdict is what would become of one object of a manifest.
type Verdict struct {
	Kind, Name string // as far as they can be told
	Warnings   []string
	Err        error // why it is refused
	// Template is of the pods of a workload, which itself is refused.
	Template *Verdict
}

// Check judges every object of a manifest by itself, and the pod templates of
// workloads, too; Decode refuses a manifest as a whole.
func (d *Decoder) Check(data []byte) (out []Verdict) {
	ended := io.MultiReader(bytes.NewReader(data), strings.NewReader("\n"))
	r := utilyaml.NewYAMLReader(bufio.NewReader(ended))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			return append(out, Verdict{Err: err})
		}
		out = append(out, d.check(doc)...)
	}
}

func (d *Decoder) check(doc []byte) []Verdict {
	var meta struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Items []runtime.RawExtension `json:"items"`
	}
	data, err := yaml.YAMLToJSON(doc)
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, &meta)
	}
	if of, ok := strings.CutSuffix(meta.Kind, "List"); ok && err == nil {
		var out []Verdict
		for _, item := range meta.Items {
			out = append(out, d.check(typed(item.Raw, metav1.TypeMeta{Kind: of, APIVersion: meta.APIVersion}))...)
		}
		return out
	}
	v := Verdict{Kind: meta.Kind, Name: meta.Metadata.Name}
	objects, warnings, err := d.document(doc, 0)
	v.Err, v.Warnings = err, warnings
	for _, o := range objects {
		v.Warnings = append(v.Warnings, o.Warnings...)
	}
	if err == nil && len(objects) == 0 && v.Kind == "" {
		return nil // only comments
	}
	if pod := template(meta.Kind, data); pod != nil {
		t := d.check(pod)[0]
		v.Template = &t
	}
	return []Verdict{v}
}

// template is the manifest of the pods that a workload makes, nil if it is none.
func template(kind string, data []byte) []byte {
	path := []string{"spec", "template"}
	switch kind {
	case "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "ReplicationController", "Job":
	case "CronJob":
		path = []string{"spec", "jobTemplate", "spec", "template"}
	case "PodTemplate":
		path = []string{"template"}
	default:
		return nil
	}
	var object map[string]any
	if json.Unmarshal(data, &object) != nil {
		return nil
	}
	owner, _ := object["metadata"].(map[string]any)
	whole, ok := object, true
	for _, name := range path {
		if object, ok = dig(object, name); !ok {
			return nil
		}
	}
	meta, _ := object["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
	}
	if claims, ok := dig(object, "spec"); ok {
		addClaims(claims, whole, fmt.Sprint(owner["name"]))
	}
	meta["name"], meta["namespace"] = fmt.Sprint(owner["name"], "-0"), owner["namespace"]
	object["apiVersion"], object["kind"], object["metadata"] = "v1", "Pod", meta
	pod, err := json.Marshal(object)
	if err != nil {
		return nil
	}
	return pod
}

func dig(object map[string]any, name string) (map[string]any, bool) {
	inner, ok := object[name].(map[string]any)
	return inner, ok
}

// addClaims mounts what a StatefulSet would claim for its first pod.
func addClaims(pod, set map[string]any, name string) {
	spec, _ := dig(set, "spec")
	templates, _ := spec["volumeClaimTemplates"].([]any)
	volumes, _ := pod["volumes"].([]any)
	for _, t := range templates {
		claim, _ := t.(map[string]any)
		if meta, ok := dig(claim, "metadata"); ok {
			volumes = slices.DeleteFunc(volumes, func(v any) bool {
				have, _ := v.(map[string]any)
				return have["name"] == meta["name"]
			})
			volumes = append(volumes, map[string]any{"name": meta["name"],
				"persistentVolumeClaim": map[string]any{"claimName": fmt.Sprintf("%v-%s-0", meta["name"], name)}})
		}
	}
	if len(volumes) > 0 {
		pod["volumes"] = volumes
	}
}
