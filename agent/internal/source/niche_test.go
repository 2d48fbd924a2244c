package source

import (
	"strings"
	"testing"
)

// TestNicheFieldsAreRefused sets, one by one, what a kubelet has and this agent
// has not. Each is refused by the path of its field.
func TestNicheFieldsAreRefused(t *testing.T) {
	d := decoder(t)
	volume := func(v string) string { return `volumes: [{name: v, ` + v + `}], containers: [{name: a, image: x}]` }
	container := func(c string) string { return `containers: [{name: a, image: x, ` + c + `}]` }
	for spec, want := range map[string]string{
		`resourceClaims: [{name: gpu, resourceClaimName: gpu}], containers: [{name: a, image: x}]`: "spec.resourceClaims: Forbidden: dynamic resource allocation",
		container(`resources: {claims: [{name: gpu}]}`):                                            "spec.containers[0].resources.claims: Forbidden: dynamic resource allocation",
		container(`volumeDevices: [{name: v, devicePath: /dev/v}]`):                                "spec.containers[0].volumeDevices: Forbidden",
		container(`env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: k}}}]`):   "valueFrom.fileKeyRef: Forbidden",
		container(`livenessProbe: {grpc: {port: 1, mode: TLS}}`):                                   "livenessProbe.grpc.mode: Forbidden",
		container(`livenessProbe: {httpGet: {port: 1, protocol: HTTP2}}`):                          "livenessProbe.httpGet.protocol: Forbidden",
		container(`lifecycle: {preStop: {tcpSocket: {port: 1}}}`):                                  "preStop.tcpSocket: Forbidden",
		container(`volumeMounts: [{name: v, mountPath: /v, bindMountOptions: [noexec]}]`):          "volumeMounts[0].bindMountOptions: Forbidden",
		volume(`iscsi: {targetPortal: x, iqn: q, lun: 0}`):                                         "spec.volumes[0].iscsi: Forbidden",
		volume(`fc: {lun: 0}`):                                                                                                          "spec.volumes[0].fc: Forbidden",
		volume(`gitRepo: {repository: x}`):                                                                                              "spec.volumes[0].gitRepo: Forbidden",
		volume(`flexVolume: {driver: x}`):                                                                                               "spec.volumes[0].flexVolume: Forbidden",
		volume(`emptyDir: {mode: 2048}`):                                                                                                "spec.volumes[0].emptyDir.mode: Invalid value",
		volume(`configMap: {name: c, defaultUser: 7}`):                                                                                  "spec.volumes[0].configMap.defaultUser: Forbidden",
		volume(`projected: {sources: [{clusterTrustBundle: {path: p}}]}`):                                                               "clusterTrustBundle: Forbidden",
		volume(`projected: {sources: [{podCertificate: {signerName: s, keyType: ED25519}}]}`):                                           "podCertificate: Forbidden",
		`overhead: {cpu: 1}, containers: [{name: a, image: x}]`:                                                                         "spec.overhead: Forbidden: it is a RuntimeClass's",
		`runtimeClassName: c, overhead: {cpu: -1}, containers: [{name: a, image: x}]`:                                                   "spec.overhead[cpu]: Invalid value",
		`runtimeClassName: c, overhead: {gpu: 1}, containers: [{name: a, image: x}]`:                                                    "spec.overhead[gpu]: Forbidden",
		`setHostnameAsFQDN: true, hostnameOverride: h, containers: [{name: a, image: x}]`:                                               "spec.setHostnameAsFQDN: Forbidden: together with hostnameOverride",
		`schedulingGates: [{name: g}], containers: [{name: a, image: x}]`:                                                               "spec.schedulingGates: Forbidden",
		container(`restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [1]}}], restartPolicy: Never`): "restartPolicyRules[0].action",
	} {
		_, _, err := d.Decode([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {" + spec + "}\n"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n\tgave: %v\n\twant: %s", spec, err, want)
		}
	}
}
