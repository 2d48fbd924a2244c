package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var cdiTests = []test{
	{"field and annotation", "CDIDevice.name ContainerConfig.{CDI_devices,annotations}", func(t *testing.T, s *suite) {
		shared := t.TempDir()
		if err := os.WriteFile(filepath.Join(shared, "driver"), []byte("library"), 0o644); err != nil {
			t.Fatal(err)
		}
		s.describe(t, "both.yaml", `
cdiVersion: 0.6.0
kind: test.podstead/both
containerEdits:
  env: [COMMON=once]
devices:
- name: field
  containerEdits:
    env: [FIELD=1]
    deviceNodes: [{path: /dev/podstead/empty, hostPath: /dev/null, permissions: rw}]
- name: note
  containerEdits:
    env: [NOTE=1]
    mounts: [{hostPath: `+shared+`, containerPath: /opt/driver, options: [ro, rbind, rprivate]}]
`)
		c := s.pod(t).sh(t, `echo $COMMON $FIELD $NOTE; cat /opt/driver/driver; echo; touch /opt/driver/x 2>/dev/null && echo written;
			echo x > /dev/podstead/empty && cat /dev/podstead/empty && test -c /dev/podstead/empty && echo device`,
			func(c *runtimeapi.ContainerConfig) {
				c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "test.podstead/both=field"}}
				c.Annotations = map[string]string{"cdi.k8s.io/x": "test.podstead/both=note,test.podstead/both=field"}
			})
		if got, want := c.output(t), "once 1 1\nlibrary\ndevice\n"; got != want {
			t.Errorf("output is %q, want %q", got, want)
		}
	}},
	{"devices of an exec", "CDIDevice.name ContainerConfig.CDI_devices", func(t *testing.T, s *suite) {
		s.describe(t, "exec.json", `{"cdiVersion": "0.6.0", "kind": "test.podstead/exec", "devices": [{"name": "d", "containerEdits": {"env": ["DEVICE=here"]}}]}`)
		c := s.pod(t).sh(t, "sleep 1000", device("test.podstead/exec=d"))
		if got := c.exec(t, "sh", "-c", "echo $DEVICE"); got != "here" {
			t.Errorf("an exec sees %q", got)
		}
	}},
	{"groups", "ContainerConfig.CDI_devices", func(t *testing.T, s *suite) {
		s.describe(t, "groups.yaml", "cdiVersion: 0.7.0\nkind: test.podstead/groups\ndevices: [{name: g, containerEdits: {additionalGids: [4711]}}]\n")
		c := s.pod(t).sh(t, "id -G", device("test.podstead/groups=g"))
		if got := " " + strings.TrimSpace(c.output(t)) + " "; !strings.Contains(got, " 4711 ") {
			t.Errorf("groups are %q", got)
		}
	}},
	{"unknown device", "CDIDevice.name ContainerConfig.CDI_devices", func(t *testing.T, s *suite) {
		s.needsCDI(t)
		p := s.pod(t)
		config := p.script("c", "true")
		device("test.podstead/none=gpu7")(config)
		_, err := p.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if err == nil || !strings.Contains(err.Error(), "test.podstead/none=gpu7") {
			t.Fatalf("error is %v, want one that names the device", err)
		}
		// A file that is written then is found by the next try.
		s.describe(t, "late.yaml", "cdiVersion: 0.6.0\nkind: test.podstead/none\ndevices: [{name: gpu7, containerEdits: {env: [LATE=1]}}]\n")
		if got := p.start(t, withScript(config, "echo $LATE")).output(t); got != "1\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"invalid name", "", func(t *testing.T, s *suite) {
		s.needsCDI(t)
		p := s.pod(t)
		config := p.script("c", "true")
		config.Annotations = map[string]string{"cdi.k8s.io/x": "not-qualified"}
		_, err := p.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if err == nil || !strings.Contains(err.Error(), "not-qualified") {
			t.Errorf("error is %v, want one that names the device", err)
		}
	}},
}

func withScript(c *runtimeapi.ContainerConfig, script string) *runtimeapi.ContainerConfig {
	c.Command = []string{"sh", "-c", script}
	return c
}

// device asks for a CDI device.
func device(name string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
	}
}

func (s *suite) needsCDI(t *testing.T) {
	t.Helper()
	if s.CDIDir == "" {
		t.Skip("the target has no CDI directory of the suite's")
	}
}

// describe writes a file that describes CDI devices, until the test ends.
func (s *suite) describe(t *testing.T, name, text string) {
	t.Helper()
	s.needsCDI(t)
	path := filepath.Join(s.CDIDir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
}
