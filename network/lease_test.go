package network

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

const goodLease = `{"version": 1, "podID": "p1", "bootID": "b", "ips": ["10.0.0.2"], "link": "veth0011223344",
	"ports": [{"protocol": "udp", "hostPort": 53, "containerPort": 53}]}`

func TestParseLease(t *testing.T) {
	l, err := parseLease([]byte(goodLease))
	must(t, err)
	if l.Ports[0].Protocol != "UDP" {
		t.Errorf("ports: %v", l.Ports)
	}
	for name, text := range map[string]string{
		"empty":          ``,
		"null":           `null`,
		"future version": `{"version": 2, "podID": "p1", "bootID": "b", "ips": ["10.0.0.2"], "link": "veth0"}`,
		"path as ID":     `{"version": 1, "podID": "../x", "bootID": "b", "ips": ["10.0.0.2"], "link": "veth0"}`,
		"no address":     `{"version": 1, "podID": "p1", "bootID": "b", "link": "veth0"}`,
		"bad link":       `{"version": 1, "podID": "p1", "bootID": "b", "ips": ["10.0.0.2"], "link": "../../etc"}`,
		"bad port":       `{"version": 1, "podID": "p1", "bootID": "b", "ips": ["10.0.0.2"], "link": "veth0", "ports": [{"protocol": "x", "hostPort": 1}]}`,
		"bad plugins":    `{"version": 1, "podID": "p1", "bootID": "b", "cni": {"config": {"name": "x"}}}`,
	} {
		if l, err := parseLease([]byte(text)); err == nil {
			t.Errorf("%s: got %v", name, l)
		}
	}
}

func TestBadLeasesAreSetAside(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"p1.json": goodLease, "p2.json": goodLease, "p3.json": "{", ".tmp-p4.json-1": "x", "note.txt": "x"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	s, err := openLeases(dir, slog.New(slog.DiscardHandler))
	must(t, err)
	if len(s.all()) != 1 || s.get("p1") == nil {
		t.Errorf("read: %v", s.all())
	}
	for _, name := range []string{"p1.json", "p2.json.bad", "p3.json.bad", "note.txt"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-p4.json-1")); err == nil {
		t.Error("temporary file left")
	}
}

// Whatever is in a file, what is read from it can be used and written again.
func FuzzParseLease(f *testing.F) {
	f.Add([]byte(goodLease))
	f.Add([]byte(`{"version":1,"podID":"p","bootID":"b","cni":{"config":{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"x"}]},"containerID":"p"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := parseLease(data)
		if err != nil {
			return
		}
		if l.CNI == nil {
			natPorts(l.Ports, l.IPs)
			portOwners{}.take(l.Ports, l.PodID, l.Name)
		}
		out, err := json.Marshal(l)
		must(t, err)
		if _, err := parseLease(out); err != nil {
			t.Fatalf("read %q, wrote %q: %v", data, out, err)
		}
	})
}
