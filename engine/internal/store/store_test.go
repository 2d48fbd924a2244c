package store

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type record struct {
	Name   string
	Config Message[runtimeapi.PodSandboxConfig, *runtimeapi.PodSandboxConfig]
}

func id(c string) string { return strings.Repeat(c, 64) }

func TestRecordsComeBack(t *testing.T) {
	d, err := Open[record](t.TempDir(), "sandbox")
	if err != nil {
		t.Fatal(err)
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: "p", Attempt: 3},
		Annotations: map[string]string{"a/b": "c\n\u00fc"},
		PortMappings: []*runtimeapi.PortMapping{
			{Protocol: runtimeapi.Protocol_UDP, HostPort: 53},
		},
	}
	r := record{Name: "one"}
	r.Config.M = config
	for range 2 {
		if err := d.Put(id("a"), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Put(id("b"), record{Name: "two"}); err != nil {
		t.Fatal(err)
	}
	got, bare, bad, err := d.Load()
	if err != nil || len(bad)+len(bare) > 0 || len(got) != 2 {
		t.Fatalf("Load: %v, bare %v, bad %v, %v", got, bare, bad, err)
	}
	if a := got[id("a")]; a.Name != "one" || !proto.Equal(a.Config.M, config) {
		t.Errorf("got %+v", a)
	}
	if b := got[id("b")]; b.Config.M != nil {
		t.Errorf("got %+v", b)
	}
	for range 2 {
		if err := d.Delete(id("a")); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, _, _ := d.Load(); len(got) != 1 {
		t.Errorf("after Delete: %v", got)
	}
	if d.Delete("../x") == nil {
		t.Error("Delete took a path")
	}
}

func TestBadRecordIsSetAside(t *testing.T) {
	for name, content := range map[string]string{
		"empty":           "",
		"torn":            `{"version":1,"kind":"sandbox","rec`,
		"zeros":           "\x00\x00\x00\x00",
		"other kind":      `{"version":1,"kind":"container","record":{}}`,
		"future":          `{"version":99,"kind":"sandbox","record":{}}`,
		"wrong type":      `{"version":1,"kind":"sandbox","record":{"Name":7}}`,
		"no record":       `{"version":1,"kind":"sandbox"}`,
		"bad protobuf":    `{"version":1,"kind":"sandbox","record":{"Config":{"metadata":5}}}`,
		"not even object": `[]`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d, err := Open[record](dir, "sandbox")
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Put(id("a"), record{Name: "good"}); err != nil {
				t.Fatal(err)
			}
			if err := d.Put(id("b"), record{}); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(d.Path(id("b")), recordFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, _, bad, err := d.Load()
			if err != nil || len(got) != 1 || len(bad) != 1 || bad[0].ID != id("b") {
				t.Fatalf("Load: %v, bad %v, %v", got, bad, err)
			}
			if _, err := os.Stat(bad[0].File); err != nil {
				t.Error(err)
			}
			_, bare, bad, err := d.Load()
			if err != nil || len(bad) != 0 || !slices.Equal(bare, []string{id("b")}) {
				t.Errorf("second Load: bare %v, bad %v, %v", bare, bad, err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"kind":"sandbox","record":{"Name":"a","Config":{"metadata":{"name":"x"}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		decode[record](b, "sandbox")
	})
}
