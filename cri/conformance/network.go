package conformance

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// echoServer sends back what it gets.
const echoServer = "exec nc -ll -p 7000 -e /bin/cat"

var networkTests = []test{
	{"containers share localhost", "NamespaceOption.network", func(t *testing.T, s *suite) {
		p := s.pod(t)
		p.sh(t, echoServer)
		client := p.sh(t, "sleep 1000")
		eventually(t, "the echo server answers", func() bool { return client.echoes(t, "127.0.0.1") })
	}},
	{"pods reach each other", "PodSandboxNetworkStatus.ip", func(t *testing.T, s *suite) {
		server, client := s.pod(t), s.pod(t)
		server.sh(t, echoServer)
		c := client.sh(t, "sleep 1000")
		ip := server.status(t).GetNetwork().GetIp()
		if other := client.status(t).GetNetwork().GetIp(); ip == other {
			t.Fatalf("both pods have the address %s", ip)
		}
		eventually(t, "the echo server answers", func() bool { return c.echoes(t, ip) })
	}},
	{"the host reaches a pod", "PodSandboxNetworkStatus.ip", func(t *testing.T, s *suite) {
		p := s.pod(t)
		p.sh(t, echoServer)
		wantEcho(t, net.JoinHostPort(p.status(t).GetNetwork().GetIp(), "7000"))
	}},
	{"host port", "PodSandboxConfig.port_mappings PortMapping.{container_port,host_port}", func(t *testing.T, s *suite) {
		const port = 27001
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 7000, HostPort: port}}
		})
		p.sh(t, echoServer)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		wantEcho(t, address)
		p.stop(t)
		if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			conn.Close()
			t.Error("the host port is open although the pod has stopped")
		}
	}},
	{"host port of one address", "PortMapping.host_ip", func(t *testing.T, s *suite) {
		const port = 27002
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.PortMappings = []*runtimeapi.PortMapping{
				{ContainerPort: 7000, HostPort: port, HostIp: "127.0.0.1"},
				{ContainerPort: 7002}, // no host port is asked for
			}
		})
		p.sh(t, echoServer)
		wantEcho(t, fmt.Sprintf("127.0.0.1:%d", port))
		if conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.2:%d", port), time.Second); err == nil {
			conn.Close()
			t.Error("the port is open at another address of the host")
		}
	}},
	{"all addresses of a pod", "PodSandboxNetworkStatus.{ip,additional_ips} PodIP.ip", func(t *testing.T, s *suite) {
		server, client := s.pod(t), s.pod(t)
		server.sh(t, echoServer)
		c := client.sh(t, "sleep 1000")
		st := server.status(t).GetNetwork()
		ips := []string{st.GetIp()}
		for _, more := range st.GetAdditionalIps() {
			ips = append(ips, more.GetIp())
		}
		families := map[bool]string{}
		for _, ip := range ips {
			is4 := netip.MustParseAddr(ip).Is4()
			if other := families[is4]; other != "" {
				t.Errorf("%s and %s are of one address family", other, ip)
			}
			families[is4] = ip
			eventually(t, "the echo server answers at "+ip, func() bool { return c.echoes(t, ip) })
			wantEcho(t, net.JoinHostPort(ip, "7000"))
		}
	}},
	{"host port from a pod", "PortMapping.{container_port,host_port}", func(t *testing.T, s *suite) {
		const port = 27002
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 7000, HostPort: port}}
		})
		p.sh(t, echoServer)
		wantEcho(t, fmt.Sprintf("127.0.0.1:%d", port))
		ask := fmt.Sprintf(`echo hello | nc -w 60 $(ip route | sed -n "s/default via \([^ ]*\) .*/\1/p") %d`, port)
		for from, in := range map[string]*pod{"the pod itself": p, "another pod": s.pod(t)} {
			if got := in.sh(t, ask).output(t); got != "hello\n" {
				t.Errorf("%s got %q", from, got)
			}
		}
	}},
	{"bandwidth is limited each way", "PodSandboxConfig.annotations", func(t *testing.T, s *suite) {
		if !s.Proves {
			t.Skip("elsewhere that is up to a plugin")
		}
		// A limit of 1/2 MB a second, and a burst of a twentieth of a second: to send
		// 1 MiB cannot take less than this, on whatever machine.
		const size, least = 1 << 20, 1500 * time.Millisecond
		directions := []string{"ingress", "egress"}
		each(len(directions), func(i int) {
			p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
				config.Annotations = map[string]string{"kubernetes.io/" + directions[i] + "-bandwidth": "4M"}
			})
			p.sh(t, echoServer)
			address := net.JoinHostPort(p.status(t).GetNetwork().GetIp(), "7000")
			wantEcho(t, address)
			conn, err := net.DialTimeout("tcp", address, patience)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			began := time.Now()
			go io.Copy(conn, io.LimitReader(noise(), size))
			if n, err := io.CopyN(io.Discard, conn, size); err != nil {
				t.Errorf("%s: %d bytes came back, %v", directions[i], n, err)
			}
			if took := time.Since(began); took < least {
				t.Errorf("%s: %d bytes took %v", directions[i], size, took)
			}
		})
	}},
	{"host network", "NamespaceOption.network", func(t *testing.T, s *suite) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(conn, "from the host\n")
				conn.Close()
			}
		}()
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) {
			config.Hostname = ""
			config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		})
		if ip := p.status(t).GetNetwork().GetIp(); ip != "" {
			t.Errorf("its IP is %s; whose network is the host's has none of its own", ip)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if got := p.sh(t, "nc 127.0.0.1 "+port+" < /dev/null").output(t); got != "from the host\n" {
			t.Errorf("output is %q", got)
		}
	}},
	{"resolv.conf", "PodSandboxConfig.dns_config DNSConfig.*", func(t *testing.T, s *suite) {
		got := s.pod(t).sh(t, "cat /etc/resolv.conf").output(t)
		for _, want := range []string{"nameserver 192.0.2.53\n", "search test.local\n", "options ndots:5\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("resolv.conf has no line %q:\n%s", want, got)
			}
		}
	}},
	{"resolv.conf of the host", "RunPodSandbox", func(t *testing.T, s *suite) {
		own, err := os.ReadFile("/etc/resolv.conf")
		if err != nil {
			t.Skip(err)
		}
		servers := func(text string) (list []string) {
			for line := range strings.Lines(text) {
				if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
					list = append(list, f[1])
				}
			}
			return list
		}
		p := s.pod(t, func(config *runtimeapi.PodSandboxConfig) { config.DnsConfig = nil })
		if got, want := servers(p.sh(t, "cat /etc/resolv.conf").output(t)), servers(string(own)); !slices.Equal(got, want) {
			t.Errorf("a pod that says nothing of DNS has the servers %q, the host %q", got, want)
		}
	}},
	{"address is free again", "StopPodSandbox", func(t *testing.T, s *suite) {
		ips := map[string]bool{}
		for range 3 {
			p := s.pod(t)
			ips[p.status(t).GetNetwork().GetIp()] = true
			p.stop(t)
			p.stop(t)
			s.removePod(t, p.id)
		}
		if ips[""] {
			t.Error("a pod had no address")
		}
	}},
}

// echoes tells whether the echo server at ip answers the container.
func (c *container) echoes(t *testing.T, ip string) bool {
	t.Helper()
	r, err := c.execSync(t, "echo hello | nc -w 5 "+ip+" 7000", 10)
	return err == nil && string(r.GetStdout()) == "hello\n"
}

// wantEcho waits for the echo server at an address that this process reaches.
func wantEcho(t *testing.T, address string) {
	t.Helper()
	eventually(t, "the echo server at "+address+" answers", func() bool {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		got := make([]byte, 6)
		_, err = io.WriteString(conn, "hello\n")
		if err == nil {
			_, err = io.ReadFull(conn, got)
		}
		return err == nil && string(got) == "hello\n"
	})
}
