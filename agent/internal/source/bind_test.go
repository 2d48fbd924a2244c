package source

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func volumeYAML(name, more string) string {
	return "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: " + name + ", labels: {disk: " + name + "}}\n" +
		"spec: {capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce], local: {path: /disks/" + name + "}" + more + "}\n---\n"
}

func claimYAML(name, more string) string {
	return "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: " + name + "}\n" +
		"spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}" + more + "}\n---\n"
}

// bind merges a manifest, binds its claims and tells where each of them is.
func bind(t *testing.T, b *Binder, manifest string) map[string]string {
	t.Helper()
	objects, _, err := decoder(t).Decode([]byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	set := Merge(nil, objects)
	if err := b.Bind(set); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, claim := range set.Claims {
		s, err := set.Claim(claim.Namespace, claim.Name)
		switch {
		case err != nil:
			out[claim.Name] = "waits: " + err.Error()
		case s.HostPath != nil:
			out[claim.Name] = "hostPath " + s.HostPath.Path
		default:
			out[claim.Name] = s.Local + s.Directory
		}
	}
	return out
}

func TestClaimsFindStorage(t *testing.T) {
	a, b, c := claimYAML("a", ""), claimYAML("b", ""), claimYAML("c", "")
	for _, test := range []struct {
		name, manifest string
		want           map[string]string
	}{
		{"a directory for who asks for nothing special", a, map[string]string{"a": "/claims/default/a"}},
		{"the smallest that fits", volumeYAML("big", "") + strings.Replace(volumeYAML("small", ""), "5Gi", "2Gi", 1) +
			strings.Replace(volumeYAML("tiny", ""), "5Gi", "1Mi", 1) + a, map[string]string{"a": "/disks/small"}},
		{"each volume once", volumeYAML("v", "") + a + b, map[string]string{"a": "/disks/v", "b": "/claims/default/b"}},
		{"a volume by name goes first", volumeYAML("v", "") + a + claimYAML("b", ", volumeName: v") + c,
			map[string]string{"a": "/claims/default/a", "b": "/disks/v", "c": "/claims/default/c"}},
		{"a volume that is reserved", volumeYAML("v", ", claimRef: {namespace: default, name: b}") + a + b,
			map[string]string{"a": "/claims/default/a", "b": "/disks/v"}},
		{"a class", volumeYAML("v", ", storageClassName: fast") + a + claimYAML("b", ", storageClassName: fast"),
			map[string]string{"a": "/claims/default/a", "b": "/disks/v"}},
		{"no class means none is made", claimYAML("a", `, storageClassName: ""`),
			map[string]string{"a": `waits: no persistent volume fits the claim default/a (class "", 1Gi, [ReadWriteOnce]); one without storageClassName and selector gets a directory`}},
		{"labels", volumeYAML("v", "") + volumeYAML("w", "") + claimYAML("a", ", selector: {matchLabels: {disk: w}}"), map[string]string{"a": "/disks/w"}},
		{"access modes", volumeYAML("v", "") + strings.Replace(a, "[ReadWriteOnce]", "[ReadWriteMany]", 1), map[string]string{"a": "/claims/default/a"}},
		{"a volume that is too small for who names it", volumeYAML("v", "") + strings.Replace(claimYAML("a", ", volumeName: v"), "1Gi", "6Gi", 1),
			map[string]string{"a": `waits: persistentvolume "v" does not fit: it has 5Gi, asked for are 6Gi`}},
		{"a volume that is not there", claimYAML("a", ", volumeName: v"), map[string]string{"a": `waits: persistentvolume "v" not found`}},
		{"one volume for two", volumeYAML("v", "") + claimYAML("a", ", volumeName: v") + claimYAML("b", ", volumeName: v"),
			map[string]string{"a": "/disks/v", "b": `waits: persistentvolume "v" belongs to the claim default/a`}},
		{"a host path", strings.Replace(volumeYAML("v", ""), "local", "hostPath", 1) + a, map[string]string{"a": "hostPath /disks/v"}},
	} {
		binder := &Binder{File: filepath.Join(t.TempDir(), "claims.json"), Dir: "/claims"}
		if got := bind(t, binder, test.manifest); !maps.Equal(got, test.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", test.name, got, test.want)
		}
	}
}

// Data stays with its claim, whatever comes and goes beside it.
func TestClaimsKeepTheirStorage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "claims.json")
	b := &Binder{File: file, Dir: "/claims"}
	bind(t, b, volumeYAML("v", "")+claimYAML("b", ""))
	bind(t, b, volumeYAML("v", "")+claimYAML("a", "")+claimYAML("b", "")+claimYAML("c", ""))
	bind(t, b, volumeYAML("v", "")+volumeYAML("w", "")+claimYAML("a", "")) // b and c went
	again := &Binder{File: file, Dir: "/claims"}
	if err := again.Load(); err != nil {
		t.Fatal(err)
	}
	all := claimYAML("a", "") + claimYAML("b", "") + claimYAML("c", "")
	got := bind(t, again, volumeYAML("v", "")+volumeYAML("w", "")+all)
	if want := (map[string]string{"a": "/claims/default/a", "b": "/disks/v", "c": "/claims/default/c"}); !maps.Equal(got, want) {
		t.Errorf("after a restart: %q, want %q", got, want)
	}
	if got := bind(t, again, all)["b"]; !strings.Contains(got, `"v", which is not defined any more`) {
		t.Errorf("without its volume: %q", got)
	}
	got = bind(t, again, volumeYAML("v", "")+claimYAML("d", "")+claimYAML("e", ", volumeName: v"))
	if want := (map[string]string{"d": "/claims/default/d", "e": "/disks/v"}); !maps.Equal(got, want) {
		t.Errorf("a volume whose claim is gone: %q, want %q", got, want)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.Load(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a broken file: %v", err)
	}
	if _, err := os.Stat(file + ".bad"); err != nil {
		t.Error(err)
	}
}

func TestVolumesRefusedByName(t *testing.T) {
	d := decoder(t)
	for _, c := range []struct{ manifest, want string }{
		{strings.Replace(volumeYAML("v", ""), "{storage: 5Gi}", "{}", 1), "spec.capacity[storage]: Required value"},
		{strings.Replace(volumeYAML("v", ""), "[ReadWriteOnce]", "[Any]", 1), "spec.accessModes[0]: Unsupported value"},
		{strings.Replace(volumeYAML("v", ""), "/disks/v", "disks", 1), "spec.local.path: Invalid value"},
		{strings.Replace(volumeYAML("v", ""), "{path: /disks/v}", "{path: /d/../..}", 1), "spec.local.path: Invalid value"},
		{volumeYAML("v", ", hostPath: {path: /x}"), "must have exactly one source"},
		{volumeYAML("v", ", nfs: {server: a, path: /}"), "spec.nfs: Forbidden: mount it on the host"},
		{volumeYAML("v", ", volumeMode: Block"), "spec.volumeMode: Forbidden"},
		{strings.Replace(volumeYAML("v", ""), "local: {path: /disks/v}", "claimRef: {name: x}", 1), "spec.local: Required value"},
		{strings.Replace(claimYAML("a", ""), "{storage: 1Gi}", "{}", 1), "spec.resources.requests[storage]: Required value"},
		{claimYAML("a", ", dataSource: {kind: PersistentVolumeClaim, name: b}"), "spec.dataSource: Forbidden"},
		{claimYAML("a", ", selector: {matchExpressions: [{key: a, operator: Near}]}"), "spec.selector: Invalid value"},
		{container(`}], volumes: [{name: v, persistentVolumeClaim: {claimName: ""}`), "spec.volumes[0].persistentVolumeClaim.claimName: Required value"},
		{container(`}], volumes: [{name: v, persistentVolumeClaim: {claimName: ../x}`), "spec.volumes[0].persistentVolumeClaim.claimName: Invalid value"},
		{container(`}], volumes: [{name: v, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], storageClassName: a, resources: {requests: {storage: 1}}}}}`),
			"spec.volumes[0].ephemeral.volumeClaimTemplate.spec.storageClassName: Forbidden"},
	} {
		if _, _, err := d.Decode([]byte(c.manifest)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n%v, want %s", c.manifest, err, c.want)
		}
	}
}
