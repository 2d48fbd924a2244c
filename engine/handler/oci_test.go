package handler

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestOlderVersion(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"1.0.2-dev", "1.3.0", true}, {"1.3.0", "1.3.0", false}, {"1.10.0", "1.9.9", false}, {"2", "1.3.0", false}, {"", "0.0.1", true},
	} {
		if got := olderVersion(c.a, c.b); got != c.want {
			t.Errorf("%s is older than %s: %v", c.a, c.b, got)
		}
	}
}

// TestAdapt checks what a runtime gets to read, and that the engine's own copy
// stays as it is.
func TestAdapt(t *testing.T) {
	limit := int64(1)
	in := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "other", Readonly: true},
		Process: &specs.Process{}, Annotations: map[string]string{"a": "1"},
		Linux: &specs.Linux{CgroupsPath: "/x", Resources: &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Cpus: "0"}, Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
		}},
	}
	h := &OCI{}
	out := h.adapt(in, map[string]string{"b": "2"}, "/root")
	if out.Version != "1.0.2" || out.Root.Path != "/root" || !out.Root.Readonly || out.Linux.CgroupsPath != "/x" {
		t.Errorf("%+v", out)
	}
	if r := out.Linux.Resources; r.CPU != nil || *r.Memory.Limit != limit || len(out.Linux.Resources.Devices) != 1 {
		t.Errorf("resources %+v", out.Linux.Resources)
	}
	if len(out.Annotations) != 2 || len(in.Annotations) != 1 || in.Root.Path != "other" || in.Linux.Resources.Memory == nil {
		t.Errorf("in %+v, out %+v", in, out)
	}
}

func TestExplain(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	cause := errors.New("exit status 1")
	h := &OCI{}
	if err := h.explain(cause, log); err != cause {
		t.Error(err)
	}
	text := `{"level":"warning","msg":"w"}` + "\n" + `{"level":"error","msg":"first"}` + "\nnoise\n" + `{"level":"error","msg":"last"}` + "\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.explain(cause, log); !errors.Is(err, cause) || !strings.HasSuffix(err.Error(), ": last") {
		t.Error(err)
	}
}
