package kubeletconfig

import (
	"crypto/tls"
	"errors"
	"fmt"

	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/agent"
)

// Server is how a configuration wants the kubelet's HTTP API served; nil: not at
// all. Notes tell what of it cannot be without an API server. Errors name the
// field.
func Server(c *kubelet.KubeletConfiguration) (s *agent.KubeletAPI, notes []string, err error) {
	s = &agent.KubeletAPI{
		Address: or(c.Address, "0.0.0.0"), Port: port(c.Port, 10250), ReadOnlyPort: port(c.ReadOnlyPort, 0),
		HealthzAddress: or(c.HealthzBindAddress, "127.0.0.1"), HealthzPort: 10248,
		ClientCAFile: c.Authentication.X509.ClientCAFile, Anonymous: is(c.Authentication.Anonymous.Enabled, false),
		CertFile: c.TLSCertFile, KeyFile: c.TLSPrivateKeyFile,
		Debugging: is(c.EnableDebuggingHandlers, true), Profiling: is(c.EnableProfilingHandler, true), SystemLogs: is(c.EnableSystemLogHandler, true),
		SystemLogQuery: is(c.EnableSystemLogQuery, false), DebugFlags: is(c.EnableDebugFlagsHandler, true),
		Contention: c.EnableContentionProfiling, Configuration: c,
	}
	if c.HealthzPort != nil {
		s.HealthzPort = int(*c.HealthzPort)
	}
	if err := errors.Join(checkPorts(s), authorization(s, c), transport(s, c)); err != nil {
		return nil, nil, err
	}
	if is(c.Authentication.Webhook.Enabled, false) {
		notes = append(notes, "authentication.webhook.enabled has no effect: there is no API server to review tokens")
	}
	if c.Authorization.Mode == kubelet.KubeletAuthorizationModeWebhook {
		notes = append(notes, "authorization.mode: Webhook lets in the group system:masters alone: there is no API server to ask about others")
	}
	if !is(c.EnableServer, true) {
		s.Port = 0
	}
	if s.Port != 0 && s.ClientCAFile == "" && !s.Anonymous {
		if c.Port != 0 || c.Address != "" {
			notes = append(notes, "port has no effect: nobody could authenticate; set authentication.x509.clientCAFile")
		}
		s.Port = 0
	}
	if s.Port == 0 && s.ReadOnlyPort == 0 && s.HealthzPort == 0 {
		return nil, notes, nil
	}
	return s, notes, nil
}

func checkPorts(s *agent.KubeletAPI) error {
	for _, p := range []struct {
		field string
		n     int
	}{{"port", s.Port}, {"readOnlyPort", s.ReadOnlyPort}, {"healthzPort", s.HealthzPort}} {
		if p.n < 0 || p.n > 65535 {
			return fmt.Errorf("%s: %d is not between 0 and 65535", p.field, p.n)
		}
	}
	return nil
}

func authorization(s *agent.KubeletAPI, c *kubelet.KubeletConfiguration) error {
	switch c.Authorization.Mode {
	case kubelet.KubeletAuthorizationModeAlwaysAllow:
		s.AlwaysAllow = true
	case "", kubelet.KubeletAuthorizationModeWebhook:
	default:
		return fmt.Errorf("authorization.mode: %q is unknown", c.Authorization.Mode)
	}
	return nil
}

func transport(s *agent.KubeletAPI, c *kubelet.KubeletConfiguration) error {
	if (c.TLSCertFile == "") != (c.TLSPrivateKeyFile == "") {
		return errors.New("tlsCertFile and tlsPrivateKeyFile: one without the other")
	}
	versions := map[string]uint16{"": tls.VersionTLS12, "VersionTLS10": tls.VersionTLS10, "VersionTLS11": tls.VersionTLS11,
		"VersionTLS12": tls.VersionTLS12, "VersionTLS13": tls.VersionTLS13}
	var ok bool
	if s.MinVersion, ok = versions[c.TLSMinVersion]; !ok {
		return fmt.Errorf("tlsMinVersion: %q is unknown", c.TLSMinVersion)
	}
	known := map[string]uint16{}
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		known[suite.Name] = suite.ID
	}
	for i, name := range c.TLSCipherSuites {
		id, ok := known[name]
		if !ok {
			return fmt.Errorf("tlsCipherSuites[%d]: %q is unknown", i, name)
		}
		s.CipherSuites = append(s.CipherSuites, id)
	}
	for i, n := range c.TLSCurvePreferences {
		if n <= 0 || n > 65535 {
			return fmt.Errorf("tlsCurvePreferences[%d]: %d is no curve", i, n)
		}
		s.Curves = append(s.Curves, tls.CurveID(n))
	}
	return nil
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// port: 0 is not set.
func port(n, ifUnset int32) int {
	if n == 0 {
		return int(ifUnset)
	}
	return int(n)
}

func is(b *bool, ifUnset bool) bool {
	if b == nil {
		return ifUnset
	}
	return *b
}
