package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const full = `
# comment
---
handlers:
- name: runc
  path: /usr/sbin/runc
  args: [--systemd-cgroup=false]
  root: /run/somewhere
  podAnnotations: [a.b/*, c]
- {name: kata, type: shim, configPath: /etc/kata.toml}
- {name: own, type: builtin, containerAnnotations: ["*"]}
defaultHandler: own
network: {cniConfDir: /cni, cniBinDirs: [/a, /b], cniNetworks: [two], podCIDR: 10.1.0.0/16, readySlots: 3}
images: {certsDir: "", pinned: ["x/y:*"], parallelLayers: 9, stallTimeout: 5s}
streams: {address: "[::1]:0", idleTimeout: 1h, creationTimeout: 2m}
logs: {maxBytes: 1Mi, maxFiles: 3}
cdi: {dirs: [/cdi]}
nri: {disabled: true, socket: /s, pluginDir: /p, configDir: /c, requiredPlugins: [a], requiredUnless: b/c, registrationTimeout: 9s, requestTimeout: 3s}
selinux: {disabled: true}
hooks: {dirs: [/h]}
`

func TestParse(t *testing.T) {
	got, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Handlers: []Handler{
			{Name: "runc", Path: "/usr/sbin/runc", Args: []string{"--systemd-cgroup=false"}, Root: "/run/somewhere", PodAnnotations: []string{"a.b/*", "c"}},
			{Name: "kata", Type: Shim, ConfigPath: "/etc/kata.toml"},
			{Name: "own", Type: Builtin, ContainerAnnotations: []string{"*"}},
		},
		DefaultHandler: "own",
		Network:        Network{CNIConfDir: "/cni", CNIBinDirs: []string{"/a", "/b"}, CNINetworks: []string{"two"}, PodCIDR: "10.1.0.0/16", ReadySlots: 3},
		Images:         Images{Pinned: []string{"x/y:*"}, ParallelLayers: 9, StallTimeout: Duration{Duration: 5 * time.Second}},
		Streams:        Streams{Address: "[::1]:0", IdleTimeout: Duration{Duration: time.Hour}, CreationTimeout: Duration{Duration: 2 * time.Minute}},
		Logs:           Logs{MaxBytes: Bytes{N: 1 << 20}, MaxFiles: 3},
		CDI:            CDI{Dirs: []string{"/cdi"}},
		NRI: NRI{Disabled: true, Socket: "/s", PluginDir: "/p", ConfigDir: "/c", RequiredPlugins: []string{"a"}, RequiredUnless: "b/c",
			RegistrationTimeout: Duration{Duration: 9 * time.Second}, RequestTimeout: Duration{Duration: 3 * time.Second}},
		SELinux: SELinux{Disabled: true}, Hooks: Hooks{Dirs: []string{"/h"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestNothingNeedsToBeConfigured(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "{}", "---\n", "logs:\n"} {
		if got, err := Parse([]byte(text)); err != nil || !reflect.DeepEqual(got, Default()) {
			t.Errorf("%q: %v, %+v", text, err, got)
		}
	}
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

func TestRefusedByName(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"log: {}", `unknown field "log"`},
		{"logs: {maxbytes: 1}", `unknown field "logs.maxbytes"`},
		{"handlers: [{name: a}, {name: b, bin: x}]", `unknown field "handlers[1].bin"`},
		{"logs: {}\nlogs: {}", `"logs" already set`},
		{"logs: {maxFiles: many}", "logs.maxFiles"},
		{"handlers: {name: a}", "handlers"},
		{"handlers: [{name: A}]", "handlers[0].name: "},
		{"handlers: [{path: /x}]", "handlers[0].name: "},
		{"handlers: [{name: a}, {name: a}]", `handlers[1].name: "a" is defined twice`},
		{"handlers: [{name: a, type: vm}]", `handlers[0].type: "vm" is none of oci, shim, builtin`},
		{"handlers: [{name: a, path: ./a}]", "handlers[0].path: "},
		{"handlers: [{name: a, root: a}]", "handlers[0].root: "},
		{"handlers: [{name: a, configPath: /a}]", "handlers[0].configPath: means nothing for type oci"},
		{"handlers: [{name: a, type: shim, args: [b]}]", "handlers[0].args: means nothing for type shim"},
		{"handlers: [{name: a, type: builtin, path: /b}]", "handlers[0].path: means nothing for type builtin"},
		{"handlers: [{name: a, podAnnotations: ['*a']}]", "handlers[0].podAnnotations[0]: "},
		{"defaultHandler: runc", `defaultHandler: no handler has the name "runc"`},
		{"network: {cniBinDirs: [bin]}", "network.cniBinDirs[0]: "},
		{"network: {podCIDR: 10.0.0.1/8}", "network.podCIDR: 10.0.0.1/8 has bits beyond its prefix: want 10.0.0.0/8"},
		{"network: {readySlots: -1}", "network.readySlots: -1 is not within 0 and 256"},
		{"network: {podCIDR: x}", "network.podCIDR: "},
		{"network: {podCIDR: \"10.0.0.0/24,10.1.0.0/24\"}", "network.podCIDR: 10.0.0.0/24,10.1.0.0/24: want one subnet of an address family"},
		{"images: {parallelLayers: 0}", "images.parallelLayers: "},
		{"images: {stallTimeout: 5}", "images.stallTimeout: 5 is no duration"},
		{"images: {stallTimeout: soon}", `images.stallTimeout: "soon" is no duration`},
		{"streams: {idleTimeout: 0s}", "streams.idleTimeout: "},
		{"streams: {address: '0.0.0.0:0'}", "streams.address: "},
		{"streams: {address: localhost}", "streams.address: "},
		{"logs: {maxBytes: 10Mo}", `logs.maxBytes: "10Mo" is no number of bytes`},
		{"logs: {maxBytes: 10}", "logs.maxBytes: "},
		{"logs: {maxBytes: 1Mi, maxFiles: 1}", "logs.maxFiles: "},
		{"logs: {}\n---\nlogs: {}", "2 YAML documents"},
		{"\t", "found character that cannot start any token"},
		{"- a", "cannot unmarshal array"},
	} {
		if _, err := Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.text, err, c.want)
		}
	}
}

func TestReadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.yaml")
	if _, err := Read(path); !os.IsNotExist(err) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("x: y"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.HasPrefix(err.Error(), path+": ") {
		t.Error(err)
	}
}

func TestDiff(t *testing.T) {
	a, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := Parse([]byte(full))
	if d := a.Diff(b); d != nil {
		t.Errorf("equal configurations differ in %v", d)
	}
	b.Handlers[1].Path = "/x"
	b.DefaultHandler = ""
	b.Network.CNIBinDirs = nil
	b.Images.Pinned = append(b.Images.Pinned, "z")
	b.Streams.Address = "127.0.0.1:1"
	b.Logs.MaxBytes = Bytes{}
	want := []Change{
		{"handlers", true}, {"defaultHandler", true}, {"network.cniBinDirs", true},
		{"images.pinned", true}, {"streams.address", false}, {"logs.maxBytes", true},
	}
	if d := a.Diff(b); !reflect.DeepEqual(d, want) {
		t.Errorf("got %v, want %v", d, want)
	}
}

func TestSelect(t *testing.T) {
	in := map[string]string{"a/1": "x", "a/2": "y", "b": "z", "bc": "q"}
	if got := Select(in, []string{"a/*", "b"}); !reflect.DeepEqual(got, map[string]string{"a/1": "x", "a/2": "y", "b": "z"}) {
		t.Error(got)
	}
	if got := Select(in, nil); got != nil {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("logs: {maxBytes: 1e3}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err == nil && c.Validate() != nil {
			t.Error("valid and not")
		}
	})
}
