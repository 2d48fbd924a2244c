package source

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func decoder(t testing.TB) *Decoder {
	t.Helper()
	d, err := NewDecoder("node1")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// pod is a manifest with a specification in flow style.
func pod(spec string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {" + spec + "}\n"
}

func container(more string) string {
	return pod(`containers: [{name: app, image: "busybox:1"` + more + `}]`)
}

func TestDecodeRefusesByName(t *testing.T) {
	d := decoder(t)
	for _, c := range []struct{ manifest, want string }{
		{"kind: [", "document 1"},
		{"a: 1\na: 2\n", `key "a" already set`},
		{"just text", "not a Kubernetes object"},
		{"apiVersion: v1\n", "no kind"},
		{"kind: Deployment\napiVersion: apps/v1\n", "kind Deployment is not supported: write its spec.template as a Pod"},
		{"kind: Service\napiVersion: v1\n", "hostPort"},
		{"kind: Widget\napiVersion: x/v1\n", "kind Widget is not supported"},
		{"kind: Pod\napiVersion: v1beta1\n", `apiVersion is "v1beta1", want v1`},
		{pod(`containers: []`), "spec.containers: Required value"},
		{pod(`containers: [{image: a}]`), "spec.containers[0].name: Required value"},
		{pod(`containers: [{name: a}]`), "spec.containers[0].image: Required value"},
		{pod(`containers: [{name: A_b, image: x}]`), `spec.containers[0].name: Invalid value: "A_b"`},
		{pod(`containers: [{name: a, image: x}, {name: a, image: x}]`), "spec.containers[1].name: Duplicate value"},
		{pod(`containers: [{name: a, image: "x y"}]`), "spec.containers[0].image: Invalid value"},
		{pod(`containers: [{name: a, image: x, comand: [x]}]`), `unknown field "spec.containers[0].comand"`},
		{pod(`container: []`), `unknown field "spec.container"`},
		{pod(`containers: [{name: a, image: 5}]`), "image"},
		{container(`, imagePullPolicy: Sometimes`), "spec.containers[0].imagePullPolicy: Unsupported value"},
		{pod(`containers: [{name: a, image: x}], securityContext: {supplementalGroupsPolicy: Strickt}`), `spec.securityContext.supplementalGroupsPolicy: Unsupported value: "Strickt"`},
		{pod(`containers: [{name: a, image: x}], securityContext: {fsGroupChangePolicy: Never}`), `spec.securityContext.fsGroupChangePolicy: Unsupported value: "Never"`},
		{container(`, lifecycle: {stopSignal: SIGFOO}`), `spec.containers[0].lifecycle.stopSignal: Invalid value: "SIGFOO": must be the name of a signal`},
		{container(`, lifecycle: {stopSignal: TERM}`), "lifecycle.stopSignal"},
		{container(`, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [1]}}]`), "spec.containers[0].restartPolicy: Required value"},
		{container(`, restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [1]}}]`), "spec.containers[0].restartPolicyRules[0].action: Forbidden"},
		{container(`, restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: Is, values: []}}]`), "spec.containers[0].restartPolicyRules[0].exitCodes.operator: Unsupported value"},
		{container(`, volumeMounts: [{name: v, mountPath: /v}]`), `spec.containers[0].volumeMounts[0].name: Not found: "v"`},
		{container(`, ports: [{containerPort: 99999}]`), "spec.containers[0].ports[0].containerPort"},
		{container(`, ports: [{name: a, containerPort: 1}, {name: a, containerPort: 2}]`), "ports[1].name: Duplicate value"},
		{container(`, livenessProbe: {exec: {command: [a]}, tcpSocket: {port: 1}}`), "must have exactly one action"},
		{container(`, livenessProbe: {httpGet: {port: web}}`), "the container has no port of that name"},
		{container(`, livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}`), "successThreshold: Invalid value: 2: must be 1"},
		{container(`, env: [{name: A, value: b, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]`), "together with value"},
		{container(`, env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.containers}}}]`), "downward API"},
		{container(`, env: [{name: A, valueFrom: {resourceFieldRef: {resource: requests.hugepages}}}]`), "must be limits or requests of cpu, memory, ephemeral-storage or hugepages-SIZE"},
		{container(`, env: [{name: A, valueFrom: {resourceFieldRef: {resource: hugepages-2Mi}}}]`), "must be limits or requests"},
		{container(`, resources: {limits: {memory: 1Mi}, requests: {memory: 2Mi}}`), "must be at most the limit"},
		{container(`, resources: {limits: {hugepages-2Mi: 2Mi}}`), "huge pages require cpu or memory"},
		{container(`, resources: {limits: {memory: 1Mi, hugepages-2Mi: 3Mi}}`), "must be a multiple of the size of a page"},
		{container(`, resources: {limits: {memory: 1Mi, hugepages-3Mi: 3Mi}}`), "must name a size of pages"},
		{container(`, resources: {limits: {memory: 1Mi, hugepages-2Mi: 4Mi}, requests: {hugepages-2Mi: 2Mi}}`), "must be equal to the limit of 4Mi"},
		{pod(`volumes: [{name: v, emptyDir: {medium: HugePages-2Mi}}], containers: [{name: a, image: x}]`), "no container asks for huge pages of this size"},
		{pod(`volumes: [{name: v, emptyDir: {medium: HugePages}}], containers: [{name: a, image: x}]`), "of 0 sizes, must be one"},
		{pod(`volumes: [{name: v, emptyDir: {medium: Floppy}}], containers: [{name: a, image: x}]`), "Unsupported value"},
		{container(`, resources: {limits: {nvidia.com/gpu: 1500m}}`), "must be an integer"},
		{container(`, resources: {limits: {nvidia.com/gpu: 1}, requests: {nvidia.com/gpu: 0}}`), "must be equal to the limit of 1"},
		{container(`, resources: {requests: {nvidia.com/gpu: 1}}`), "must be equal to the limit of 0"},
		{container(`, securityContext: {privileged: true, allowPrivilegeEscalation: false}`), "allowPrivilegeEscalation"},
		{container(`, securityContext: {seccompProfile: {type: Localhost, localhostProfile: ""}}`), "localhostProfile: Required value"},
		{container(`, securityContext: {seccompProfile: {type: Localhost, localhostProfile: ../../x}}`), "must not contain '..'"},
		{container(`, volumeDevices: [{name: a, devicePath: /dev/a}]`), "spec.containers[0].volumeDevices: Forbidden: block volumes"},
		{pod(`volumes: [{name: v, hostPath: {path: /a/../etc}}], containers: [{name: a, image: x}]`), "must not contain '..'"},
		{pod(`volumes: [{name: v, hostPath: {path: /a}, emptyDir: {}}], containers: [{name: a, image: x}]`), "exactly one source"},
		{pod(`volumes: [{name: v, csi: {driver: ../x}}], containers: [{name: a, image: x}]`), "spec.volumes[0].csi.driver: Invalid value"},
		{pod(`volumes: [{name: v, csi: {driver: ""}}], containers: [{name: a, image: x}]`), "spec.volumes[0].csi.driver: Required value"},
		{pod(`volumes: [{name: v, nfs: {server: x, path: /x}}], containers: [{name: a, image: x}]`), "spec.volumes[0].nfs: Forbidden: mount it on the host"},
		{pod(`volumes: [{name: v, secret: {secretName: s, items: [{key: k, path: ../x}]}}], containers: [{name: a, image: x}]`), "must not contain '..'"},
		{pod(`volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}], containers: [{name: a, image: x}]`), "serviceAccountToken: Forbidden"},
		{pod(`hostUsers: false, hostNetwork: true, containers: [{name: a, image: x}]`), "spec.hostUsers: Forbidden"},
		{pod(`readinessGates: [{conditionType: x y}], containers: [{name: a, image: x}]`), "spec.readinessGates[0].conditionType: Invalid value"},
		{pod(`securityContext: {sysctls: [{name: kernel.core_pattern, value: x}]}, containers: [{name: a, image: x}]`), "not one of the safe ones"},
		{pod(`dnsPolicy: None, containers: [{name: a, image: x}]`), "spec.dnsConfig.nameservers: Required value"},
		{pod(`initContainers: [{name: i, image: x, readinessProbe: {exec: {command: [a]}}}], containers: [{name: a, image: x}]`), "spec.initContainers[0].readinessProbe: Forbidden"},
		{"apiVersion: v1\nkind: Pod\nmetadata: {generateName: a}\nspec: {containers: [{name: a, image: x}]}", "metadata.generateName: Forbidden"},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: a, uid: ../../x}\nspec: {containers: [{name: a, image: x}]}", "metadata.uid"},
		{"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {../x: b}", "data[../x]"},
		{"apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ntype: kubernetes.io/dockerconfigjson", "data[.dockerconfigjson]: Required value"},
		{container("") + "---\n" + container(""), "Pod default/web is defined twice"},
		{strings.Repeat("#", maxManifest+1), "more than"},
		{"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {}}]", "items[0]: Pod default/a: spec.containers"},
	} {
		objects, _, err := d.Decode([]byte(c.manifest))
		if err == nil {
			t.Errorf("accepted %.200s as %d objects", c.manifest, len(objects))
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200s\n\tgave: %v\n\twant: %s", c.manifest, err, c.want)
		}
	}
}

func TestDecodeAccepts(t *testing.T) {
	d := decoder(t)
	objects, warnings, err := d.Decode([]byte(`# a comment
---
apiVersion: v1
kind: Namespace
metadata: {name: x}
---
{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}},
  {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "n"}, "stringData": {"a": "b"}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeSelector: {a: b}
  containers:
  - {name: a, image: "busybox", env: [{name: H, valueFrom: {resourceFieldRef: {resource: limits.hugepages-2Mi}}}]}
  - {name: b, image: "busybox:1", lifecycle: {stopSignal: SIGRTMIN+1}, livenessProbe: {httpGet: {port: 80}}, resources: {limits: {cpu: 1}}}
  volumes:
  - {name: e}
  - {name: c, configMap: {name: c}}
...
`))
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, o := range objects {
		keys = append(keys, o.Key())
	}
	if got := fmt.Sprint(keys); got != "[ConfigMap default/c Secret n/s Pod default/web]" {
		t.Errorf("objects %s", got)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "Namespace") {
		t.Errorf("warnings %q", warnings)
	}
	if got := string(objects[1].Secret.Data["a"]); got != "b" {
		t.Errorf("stringData became %q", got)
	}
	p := objects[2].Pod
	if w := objects[2].Warnings; len(w) != 1 || !strings.HasPrefix(w[0], "spec.nodeSelector has no effect") {
		t.Errorf("warnings %q", w)
	}
	a, b := p.Spec.Containers[0], p.Spec.Containers[1]
	for _, c := range []struct{ what, got, want string }{
		{"restartPolicy", string(p.Spec.RestartPolicy), "Always"},
		{"dnsPolicy", string(p.Spec.DNSPolicy), "ClusterFirst"},
		{"grace", fmt.Sprint(*p.Spec.TerminationGracePeriodSeconds), "30"},
		{"pull policy without tag", string(a.ImagePullPolicy), "Always"},
		{"pull policy with tag", string(b.ImagePullPolicy), "IfNotPresent"},
		{"probe path", b.LivenessProbe.HTTPGet.Path, "/"},
		{"probe numbers", fmt.Sprint(b.LivenessProbe.PeriodSeconds, b.LivenessProbe.TimeoutSeconds, b.LivenessProbe.FailureThreshold, b.LivenessProbe.SuccessThreshold), "10 1 3 1"},
		{"request from limit", b.Resources.Requests.Cpu().String(), "1"},
		{"message path", a.TerminationMessagePath, "/dev/termination-log"},
		{"empty volume", fmt.Sprint(p.Spec.Volumes[0].EmptyDir != nil), "true"},
		{"file mode", fmt.Sprintf("%o", *p.Spec.Volumes[1].ConfigMap.DefaultMode), "644"},
	} {
		if c.got != c.want {
			t.Errorf("%s is %s, want %s", c.what, c.got, c.want)
		}
	}
}

func TestIdentityDependsOnNodeAndNameOnly(t *testing.T) {
	uid := func(d *Decoder, manifest string) string {
		objects, _, err := d.Decode([]byte(manifest))
		if err != nil {
			t.Fatal(err)
		}
		return string(objects[0].Pod.UID)
	}
	other, err := NewDecoder("node2")
	if err != nil {
		t.Fatal(err)
	}
	a, edited := uid(decoder(t), container("")), uid(decoder(t), container(", tty: true"))
	if a != edited {
		t.Errorf("an edit changed the UID from %s to %s", a, edited)
	}
	if b := uid(other, container("")); a == b {
		t.Error("the same UID on another node")
	}
	if len(a) != 36 || strings.Count(a, "-") != 4 {
		t.Errorf("%s does not look like a UUID", a)
	}
}

func TestPullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"a": corev1.PullAlways, "a:latest": corev1.PullAlways, "host:5000/a": corev1.PullAlways, "a:1": corev1.PullIfNotPresent,
		"a@sha256:" + strings.Repeat("0", 64): corev1.PullIfNotPresent, "host:5000/a:v": corev1.PullIfNotPresent,
	} {
		if got := pullPolicy(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

// Whatever the bytes are, decoding ends, does not panic and, if it accepts
// them, gives objects with safe names.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(container("")))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems: [{}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {a: Yg==}"))
	d := decoder(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, _, err := d.Decode(data)
		if err != nil {
			return
		}
		for _, o := range objects {
			if m := o.Meta(); m.Name == "" || strings.ContainsAny(m.Name+m.Namespace+string(m.UID), "/\x00") {
				t.Errorf("accepted the name %q/%q %q", m.Namespace, m.Name, m.UID)
			}
		}
	})
}

// TestDecodeLastLine is about files whose last line has no end and is just as
// long as a reader's buffer.
func TestDecodeLastLine(t *testing.T) {
	d, err := NewDecoder("node")
	if err != nil {
		t.Fatal(err)
	}
	const object = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"v"}}`
	for _, size := range []int{4095, 4096, 4097, 8192, 65536} {
		objects, _, err := d.Decode([]byte(object + strings.Repeat(" ", size-len(object))))
		if err != nil || len(objects) != 1 {
			t.Errorf("a manifest of %d bytes: %d objects, %v", size, len(objects), err)
		}
	}
}
