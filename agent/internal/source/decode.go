// Package source knows what should run on the node: it reads Pods, ConfigMaps,
// Secrets, PersistentVolumes and their claims from manifests, defaults and validates them as the Kubernetes API
// would, refuses or warns about every field that has no meaning here, and keeps
// the objects of a watched directory (files.go) and of the API (applied.go).
//
// It is called by the agent's loop. What survives a crash: the last good version
// of each file and all applied objects, below the agent's state directory.
package source

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxManifest is the size in bytes above which a manifest is refused.
const maxManifest = 3 << 20

// maxErrors is how many bad documents of a manifest are told of.
const maxErrors = 10

// maxListDepth bounds Lists inside Lists.
const maxListDepth = 4

// Object is one decoded, defaulted and valid object: exactly one of its
// pointers is set.
type Object struct {
	Pod       *corev1.Pod
	ConfigMap *corev1.ConfigMap
	Secret    *corev1.Secret
	Volume    *corev1.PersistentVolume
	Claim     *corev1.PersistentVolumeClaim
	// Warnings name fields that are accepted and have no effect.
	Warnings []string
}

// which returns the object's kind and the object.
func (o Object) which() (kind string, object runtime.Object, meta *metav1.ObjectMeta) {
	switch {
	case o.Pod != nil:
		return "Pod", o.Pod, &o.Pod.ObjectMeta
	case o.ConfigMap != nil:
		return "ConfigMap", o.ConfigMap, &o.ConfigMap.ObjectMeta
	case o.Secret != nil:
		return "Secret", o.Secret, &o.Secret.ObjectMeta
	case o.Volume != nil:
		return "PersistentVolume", o.Volume, &o.Volume.ObjectMeta
	}
	return "PersistentVolumeClaim", o.Claim, &o.Claim.ObjectMeta
}

// Kind is "Pod", "ConfigMap" and so on.
func (o Object) Kind() string {
	kind, _, _ := o.which()
	return kind
}

// Meta is the object's metadata.
func (o Object) Meta() *metav1.ObjectMeta {
	_, _, meta := o.which()
	return meta
}

// Key names the object among all: "Pod default/web", "PersistentVolume data".
func (o Object) Key() string {
	kind, _, m := o.which()
	if o.Volume != nil {
		return kind + " " + m.Name
	}
	return kind + " " + m.Namespace + "/" + m.Name
}

// Decoder decodes manifests. It is immutable.
type Decoder struct {
	node    string
	sysctls []string // unsafe ones that are allowed
	support support
}

// NewDecoder returns a decoder for the node of that name; pods get UIDs that
// depend on it and on their namespace and name, and on nothing else, so that
// they keep their identity across restarts, edits and renamed files.
//
// Pods may set the safe sysctls and those named here; a * at a name's end stands
// for anything.
func NewDecoder(node string, unsafeSysctls ...string) (*Decoder, error) {
	s, err := parseSupport(supportText)
	if err != nil {
		return nil, err
	}
	return &Decoder{node: node, sysctls: unsafeSysctls, support: s}, nil
}

// Decode reads all documents of a manifest, YAML or JSON. On an error, which
// names document, object and field, nothing of the manifest is to be used.
// Warnings that concern no object of the result are returned apart.
func (d *Decoder) Decode(data []byte) (objects []Object, warnings []string, err error) {
	if len(data) > maxManifest {
		return nil, nil, fmt.Errorf("the manifest has %d bytes, more than %d", len(data), maxManifest)
	}
	var errs []error
	// The reader loses a last line that has no end if it fills its buffer exactly.
	ended := io.MultiReader(bytes.NewReader(data), strings.NewReader("\n"))
	r := utilyaml.NewYAMLReader(bufio.NewReader(ended))
	for n := 1; ; n++ {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n, err))
			break
		}
		objs, warns, err := d.document(doc, 0)
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n, err))
		}
		if len(errs) == maxErrors {
			errs = append(errs, errors.New("what follows was not looked at"))
			break
		}
		objects = append(objects, objs...)
		warnings = append(warnings, warns...)
	}
	errs = append(errs, duplicates(objects)...)
	if len(errs) > 0 {
		return nil, nil, bearable(errors.Join(errs...))
	}
	return objects, warnings, nil
}

// bearable cuts the text of an error that would fill logs and answers.
func bearable(err error) error {
	const limit = 4 << 10
	text := err.Error()
	if len(text) <= limit {
		return err
	}
	return fmt.Errorf("%s … (and %d bytes more)", strings.ToValidUTF8(text[:limit], ""), len(text)-limit)
}

func duplicates(objects []Object) (errs []error) {
	seen := map[string]bool{}
	for _, o := range objects {
		if seen[o.Key()] {
			errs = append(errs, fmt.Errorf("%s is defined twice", o.Key()))
		}
		seen[o.Key()] = true
	}
	return errs
}

func (d *Decoder) document(doc []byte, depth int) ([]Object, []string, error) {
	data, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		if bytes.Contains(doc, []byte("{{")) {
			return nil, nil, errors.New("this is a template: render it first (helm template), and use what comes out")
		}
		return nil, nil, plainYAMLError(err)
	}
	if s := strings.TrimSpace(string(data)); s == "null" || s == "" {
		return nil, nil, nil // only comments
	}
	var meta metav1.TypeMeta
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &meta); err != nil {
		return nil, nil, fmt.Errorf("not a Kubernetes object: %w", err)
	}
	if meta.Kind == "" {
		return nil, nil, errors.New("no kind: this is no Kubernetes object")
	}
	if of, ok := strings.CutSuffix(meta.Kind, "List"); ok {
		meta.Kind = of
		return d.list(meta, data, depth)
	}
	return d.object(meta, data)
}

func plainYAMLError(err error) error {
	return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
}

// list takes a List, or a list of one kind (PodList), whose items need not say
// what they are.
func (d *Decoder) list(of metav1.TypeMeta, data []byte, depth int) (objects []Object, warnings []string, err error) {
	if depth >= maxListDepth {
		return nil, nil, errors.New("lists are nested too deeply")
	}
	var list struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ListMeta        `json:"metadata"`
		Items           []runtime.RawExtension `json:"items"`
	}
	if err := strict(data, &list); err != nil {
		return nil, nil, err
	}
	var errs []error
	for i, item := range list.Items {
		objs, warns, err := d.document(typed(item.Raw, of), depth+1)
		if err != nil {
			errs = append(errs, fmt.Errorf("items[%d]: %w", i, err))
		}
		objects, warnings = append(objects, objs...), append(warnings, warns...)
	}
	return objects, warnings, errors.Join(errs...)
}

// typed says what an item of a list is, if it does not say so itself.
func typed(item []byte, of metav1.TypeMeta) []byte {
	var object map[string]json.RawMessage
	if of.Kind == "" || json.Unmarshal(item, &object) != nil || object == nil || object["kind"] != nil {
		return item
	}
	object["kind"], _ = json.Marshal(of.Kind)
	object["apiVersion"], _ = json.Marshal(of.APIVersion)
	if out, err := json.Marshal(object); err == nil {
		return out
	}
	return item
}

// strict decodes JSON and refuses unknown and repeated fields, with their path.
func strict(data []byte, into any) error {
	strictErrs, err := kjson.UnmarshalStrict(data, into)
	if err != nil {
		return err
	}
	return errors.Join(strictErrs...)
}

func (d *Decoder) object(meta metav1.TypeMeta, data []byte) ([]Object, []string, error) {
	var o Object
	var into any
	switch meta.Kind {
	case "Pod":
		o.Pod = &corev1.Pod{}
		into = o.Pod
	case "ConfigMap":
		o.ConfigMap = &corev1.ConfigMap{}
		into = o.ConfigMap
	case "Secret":
		o.Secret = &corev1.Secret{}
		into = o.Secret
	case "PersistentVolume":
		o.Volume = &corev1.PersistentVolume{}
		into = o.Volume
	case "PersistentVolumeClaim":
		o.Claim = &corev1.PersistentVolumeClaim{}
		into = o.Claim
	case "Namespace":
		return nil, []string{"Namespace has no effect: namespaces need not be made here"}, nil
	default:
		return nil, nil, fmt.Errorf("kind %s is not supported: %s", meta.Kind, instead(meta))
	}
	if meta.APIVersion != "v1" {
		return nil, nil, fmt.Errorf("%s: apiVersion is %q, want v1", meta.Kind, meta.APIVersion)
	}
	err := strict(data, into)
	if m := o.Meta(); m.Namespace == "" && o.Volume == nil {
		m.Namespace = metav1.NamespaceDefault
	}
	if err == nil {
		o.Warnings, err = d.accept(&o)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", o.Key(), err)
	}
	return []Object{o}, nil, nil
}

// accept defaults and validates an object and gives it its identity.
func (d *Decoder) accept(o *Object) (warnings []string, err error) {
	switch {
	case o.Pod != nil:
		return d.acceptPod(o.Pod)
	case o.ConfigMap != nil:
		return nil, validateConfigMap(o.ConfigMap).ToAggregate()
	case o.Secret != nil:
		return nil, acceptSecret(o.Secret).ToAggregate()
	case o.Volume != nil:
		return d.acceptVolume(o.Volume)
	}
	return d.acceptClaim(o.Claim)
}

func (d *Decoder) acceptPod(pod *corev1.Pod) (warnings []string, err error) {
	// Defaults fill fields in, so what the author wrote is checked before.
	warnings, errs := d.support.check(&pod.Spec, "spec")
	if hasStatus(pod) {
		warnings = append(warnings, "status has no effect: it is what the agent reports")
	}
	warnings = append(warnings, setPriority(&pod.Spec)...)
	setDefaults(pod)
	errs = append(errs, validatePod(pod, d.sysctls)...)
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	for key := range pod.Annotations {
		if strings.HasPrefix(key, "container.apparmor.security.beta.kubernetes.io/") ||
			key == "seccomp.security.alpha.kubernetes.io/pod" || strings.HasPrefix(key, "container.seccomp.security.alpha.kubernetes.io/") {
			warnings = append(warnings, "metadata.annotations["+key+"] has no effect: use securityContext")
		}
	}
	pod.Status = corev1.PodStatus{}
	pod.Generation = 0
	pod.ResourceVersion = ""
	pod.ManagedFields = nil
	pod.OwnerReferences = nil
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = nil, nil
	pod.Spec.NodeName = d.node
	if pod.UID == "" {
		pod.UID = podUID(d.node, pod.Namespace, pod.Name)
	}
	return warnings, nil
}

func hasStatus(pod *corev1.Pod) bool {
	st := pod.Status
	return st.Phase != "" || len(st.Conditions) > 0 || len(st.ContainerStatuses) > 0 || st.PodIP != ""
}

// instead says what to do about a kind that is not supported.
func instead(meta metav1.TypeMeta) string {
	switch meta.Kind {
	case "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "ReplicationController":
		return "write its spec.template as a Pod (one per replica)"
	case "Job", "CronJob":
		return "write its template as a Pod with restartPolicy OnFailure or Never"
	case "Service", "Endpoints", "EndpointSlice":
		return "give the containers' ports a hostPort; the containers of a pod share localhost"
	case "Ingress", "IngressClass", "Gateway", "HTTPRoute":
		return "run a proxy as a Pod with a hostPort"
	case "StorageClass":
		return "a PersistentVolumeClaim without storageClassName gets a directory on this node"
	case "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "APIService":
		return "there is no API server to be authorized at; leave it out"
	case "PodTemplate":
		return "write its template as a Pod"
	case "NetworkPolicy":
		return "nothing here would enforce it; filter on the host, or leave it out"
	case "LimitRange", "ResourceQuota":
		return "write requests and limits into the pods; leave it out"
	case "HorizontalPodAutoscaler", "VerticalPodAutoscaler", "PodDisruptionBudget", "PriorityClass":
		return "nothing is scheduled or scaled on one node; leave it out"
	case "PodSecurityPolicy":
		return "it was removed from Kubernetes; leave it out"
	case "Kustomization", "Component":
		return "it is input of kustomize: use what \"kustomize build\" prints"
	case "CustomResourceDefinition":
		return "there is no API server to extend; leave it out"
	}
	if group, _, ok := strings.Cut(meta.APIVersion, "/"); ok && strings.Contains(group, ".") && !strings.HasSuffix(group, ".k8s.io") {
		return "it is for a controller that serves " + group + " in a cluster; leave it out"
	}
	return "this node runs Pods and the ConfigMaps, Secrets and volumes that they use; leave it out"
}
