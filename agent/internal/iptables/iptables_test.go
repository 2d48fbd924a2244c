package iptables

import (
	"bytes"
	"log/slog"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"podstead/test/host"
)

func TestMain(m *testing.M) { host.Main(m) }

// saved is what is there of a family, without counters and what iptables says of itself.
func saved(t *testing.T, program string) string {
	t.Helper()
	out, err := exec.Command(program + "-save").CombinedOutput()
	if err != nil {
		t.Fatalf("%s-save: %v: %s", program, err, out)
	}
	text := regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]$`).ReplaceAllString(string(out), "")
	return text
}

func sh(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

func need(t *testing.T) {
	host.Require(t)
	for _, program := range []string{"iptables", "ip6tables"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("Debian's iptables is not installed")
		}
	}
}

// TestChainsAreKept: they are made once, whatever stands there already stays, and
// what somebody flushed or deleted comes back.
func TestChainsAreKept(t *testing.T) {
	need(t)
	sh(t, "iptables -A INPUT -p tcp --dport 1 -j ACCEPT")
	ensure := func() (v4, v6 string) {
		t.Helper()
		for _, program := range []string{"iptables", "ip6tables"} {
			if err := Ensure(t.Context(), program); err != nil {
				t.Fatal(err)
			}
		}
		return saved(t, "iptables"), saved(t, "ip6tables")
	}
	v4, v6 := ensure()
	for _, line := range []string{
		":KUBE-IPTABLES-HINT -", ":KUBE-KUBELET-CANARY -", ":KUBE-FIREWALL -",
		"-A INPUT -j KUBE-FIREWALL\n-A INPUT -p tcp", "-A OUTPUT -j KUBE-FIREWALL",
		`-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections"`,
	} {
		if !strings.Contains(v4, line) {
			t.Errorf("no %q in\n%s", line, v4)
		}
	}
	if !strings.Contains(v6, "KUBE-IPTABLES-HINT") || strings.Contains(v6, "FIREWALL") {
		t.Errorf("of IPv6:\n%s", v6)
	}
	if n4, n6 := ensure(); n4 != v4 || n6 != v6 {
		t.Errorf("the second time changes\n%s\nto\n%s\nand\n%s\nto\n%s", v4, n4, v6, n6)
	}
	sh(t, "iptables -F KUBE-FIREWALL; iptables -D OUTPUT -j KUBE-FIREWALL; iptables -t mangle -X KUBE-IPTABLES-HINT; ip6tables -t mangle -X KUBE-IPTABLES-HINT")
	if n4, n6 := ensure(); n4 != v4 || n6 != v6 {
		t.Errorf("what was flushed did not come back:\n%s\n%s", n4, n6)
	}
}

// TestMissingProgramIsNamed: without the programs there is a warning for each, and
// no more.
func TestMissingProgramIsNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var out bytes.Buffer
	k := keeper{log: slog.New(slog.NewTextHandler(&out, nil)), warned: map[string]string{}}
	k.round(t.Context())
	k.round(t.Context())
	if n := strings.Count(out.String(), "makeIPTablesUtilChains"); n != 2 || !strings.Contains(out.String(), "program=ip6tables") {
		t.Errorf("it says %s", &out)
	}
}
