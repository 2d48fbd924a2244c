package conformance

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
	"podstead/engine/docker"
	"podstead/network"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/peer"
)

const pluginDir = "/usr/lib/cni"

// TestDockerNetworks connects pods in all ways that there are on Docker, each
// with both address families.
func TestDockerNetworks(t *testing.T) {
	host.Require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	d := startDocker(t, map[string]any{"ipv6": true, "fixed-cidr-v6": "fd00:90::/64", "ip6tables": true, "experimental": true})
	t.Run("docker", func(t *testing.T) {
		look(t, newDocker(t, d, docker.Config{Connect: docker.ConnectDocker}), "10.90.0.0/16", "fd00:90::/64")
	})
	t.Run("podstead", func(t *testing.T) {
		look(t, newDocker(t, d, docker.Config{Connect: docker.ConnectPodstead, Network: openNetwork(t, "")}), "10.88.0.0/16", "fd00:88::/64")
	})
	t.Run("cni", func(t *testing.T) {
		conf := t.TempDir()
		r := newDocker(t, d, docker.Config{Connect: docker.ConnectCNI, Network: openNetwork(t, conf)})
		wantNetwork(t, r, "there is no CNI configuration")
		if _, err := r.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: web()}); err == nil {
			t.Error("a pod is run without a CNI configuration")
		}
		configurePlugins(t, conf)
		wantNetwork(t, r, "")
		look(t, r, "10.91.0.0/16", "fd00:91::/64")
	})
}

func openNetwork(t *testing.T, conf string) *network.Network {
	t.Helper()
	n, err := network.New(network.Config{
		Name: "ptest1", StateDir: t.TempDir(), RunDir: t.TempDir(), CNIConfDir: conf, CNIBinDirs: []string{pluginDir},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00:88::/64")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Destroy(context.Background()); err != nil {
			t.Errorf("destroy network: %v", err)
		}
		n.Close()
	})
	return n
}

func configurePlugins(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(pluginDir + "/bridge"); err != nil {
		t.Skip("needs CNI plugins: ", err)
	}
	const bridge = "ptestcni0"
	err := os.WriteFile(filepath.Join(dir, "10-net.conflist"), fmt.Appendf(nil, `{"cniVersion": "0.4.0", "name": "net", "plugins": [
  {"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": %q,
    "ranges": [[{"subnet": "10.91.0.0/16"}], [{"subnet": "fd00:91::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`, bridge, t.TempDir()), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := peer.RemoveLink(bridge); err != nil {
			t.Error(err)
		}
	})
}

// wantNetwork looks at the condition NetworkReady.
func wantNetwork(t *testing.T, r cri.Runtime, message string) {
	t.Helper()
	s, err := r.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if c := s.Status.Conditions[1]; c.Type != runtimeapi.NetworkReady || c.Status != (message == "") || c.Message != message {
		t.Errorf("the network's condition is %v, want the message %q", c, message)
	}
}

// web is a pod with a host port.
func web() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "networks", Uid: "uid"},
		PortMappings: []*runtimeapi.PortMapping{{HostPort: 18080, ContainerPort: 80}},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: host.Cgroup() + "/web"},
	}
}

// look runs a pod, and one beside it on the host's network, and looks at both
// from where they are to be seen.
func look(t *testing.T, r cri.Runtime, subnets ...string) {
	t.Helper()
	config := web()
	pod := runPod(t, r, config)
	serve := runContainer(t, r, pod, config, "httpd -f -p 80 -h /etc")
	st, err := r.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	ips := []string{st.Status.Network.Ip}
	for _, ip := range st.Status.Network.AdditionalIps {
		ips = append(ips, ip.Ip)
	}
	if len(ips) != len(subnets) {
		t.Fatalf("the pod's addresses are %v, want one of each of %v", ips, subnets)
	}
	for i, subnet := range subnets {
		if ip, err := netip.ParseAddr(ips[i]); err != nil || !netip.MustParsePrefix(subnet).Contains(ip) {
			t.Errorf("the pod's address %q is not of %s", ips[i], subnet)
		}
		wantPage(t, net.JoinHostPort(ips[i], "80"))
	}
	wantPage(t, "127.0.0.1:18080")
	wantExec(t, r, serve, "cat", "/proc/sys/net/ipv6/conf/lo/disable_ipv6")

	config = web()
	config.Metadata.Name, config.PortMappings = "host", nil
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}
	runContainer(t, r, runPod(t, r, config), config, "httpd -f -p 18081 -h /etc")
	wantPage(t, "127.0.0.1:18081")
}

func runPod(t *testing.T, r cri.Runtime, config *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	pod, err := r.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := r.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
			t.Error(err)
		}
	})
	return pod.PodSandboxId
}

func runContainer(t *testing.T, r cri.Runtime, pod string, sandbox *runtimeapi.PodSandboxConfig, script string) string {
	t.Helper()
	c, err := r.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod, SandboxConfig: sandbox, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, Image: &runtimeapi.ImageSpec{Image: busyboxRef},
			Command: []string{"sh", "-c", script},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				Pid: runtimeapi.NamespaceMode_CONTAINER, Network: sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork(),
			}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return c.ContainerId
}

// wantPage waits for a web server to answer.
func wantPage(t *testing.T, address string) {
	t.Helper()
	// A connection that was begun before an address was ready never comes about, and
	// one that nobody waits for any more is not given up.
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext}}
	deadline := time.Now().Add(5 * time.Minute)
	for {
		resp, err := client.Get("http://" + address + "/passwd")
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || len(body) == 0 {
				t.Errorf("%s answers %s", address, resp.Status)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s does not answer: %v", address, err)
			return
		}
		time.Sleep(20 * time.Millisecond) // between two attempts
	}
}

// wantExec runs a command that must print 0.
func wantExec(t *testing.T, r cri.Runtime, id string, cmd ...string) {
	t.Helper()
	out, err := r.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 300})
	if err != nil || string(out.Stdout) != "0\n" {
		t.Errorf("%v prints %q (%s), %v", cmd, out.GetStdout(), out.GetStderr(), err)
	}
}
