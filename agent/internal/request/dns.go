package request

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DNS is the content of a resolv.conf.
type DNS struct {
	Servers, Searches, Options []string
}

// The limits of resolvers, as the kubelet has them.
const (
	maxServers   = 3
	maxSearches  = 32
	maxSearchLen = 2048
)

// ParseResolvConf reads a resolv.conf; what it does not know it skips.
func ParseResolvConf(data []byte) DNS {
	var d DNS
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		line, _, _ = strings.Cut(line, ";")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			d.Servers = append(d.Servers, f[1])
		case "search", "domain":
			d.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				d.Searches = append(d.Searches, s)
			}
		case "options":
			d.Options = f[1:]
		}
	}
	return d
}

// Loopback tells whether all servers are on the host's own loopback, where a
// pod cannot reach them.
func (d DNS) Loopback() bool {
	for _, s := range d.Servers {
		if a, err := netip.ParseAddr(s); err != nil || !a.IsLoopback() {
			return false
		}
	}
	return len(d.Servers) > 0
}

// dns is the pod's resolver configuration. Without a cluster DNS the policies
// ClusterFirst mean what the kubelet makes of them then: the host's
// configuration.
func (n Node) dns(pod *corev1.Pod) *runtimeapi.DNSConfig {
	d := n.HostDNS
	switch policy := pod.Spec.DNSPolicy; {
	case policy == corev1.DNSNone:
		d = DNS{}
	case len(n.ClusterDNS) > 0 && (policy == corev1.DNSClusterFirstWithHostNet || policy == corev1.DNSClusterFirst && !pod.Spec.HostNetwork):
		d = n.clusterDNS(pod.Namespace)
	}
	out := &runtimeapi.DNSConfig{Servers: slices.Clone(d.Servers), Searches: slices.Clone(d.Searches), Options: slices.Clone(d.Options)}
	if c := pod.Spec.DNSConfig; c != nil {
		out.Servers = union(out.Servers, c.Nameservers)
		out.Searches = union(out.Searches, c.Searches)
		for _, o := range c.Options {
			out.Options = slices.DeleteFunc(out.Options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			text := o.Name
			if o.Value != nil {
				text += ":" + *o.Value
			}
			out.Options = append(out.Options, text)
		}
	}
	out.Servers = out.Servers[:min(len(out.Servers), maxServers)]
	out.Searches = out.Searches[:min(len(out.Searches), maxSearches)]
	for len(strings.Join(out.Searches, " ")) > maxSearchLen {
		out.Searches = out.Searches[:len(out.Searches)-1]
	}
	return out
}

// clusterDNS leads to the cluster's servers, which know the names of services
// with and without their domains.
func (n Node) clusterDNS(namespace string) DNS {
	d := DNS{Servers: n.ClusterDNS, Searches: slices.Clone(n.HostDNS.Searches), Options: []string{"ndots:5"}}
	if n.ClusterDomain != "" {
		d.Searches = union([]string{namespace + ".svc." + n.ClusterDomain, "svc." + n.ClusterDomain, n.ClusterDomain}, d.Searches)
	}
	return d
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// Hosts is the content of a pod's /etc/hosts. hostFile is the host's own, for a
// pod in its network.
func (n Node) Hosts(pod *corev1.Pod, ips []string, hostFile []byte) []byte {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(hostFile)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\n" +
			"fe00::1\tip6-allnodes\n" +
			"fe00::2\tip6-allrouters\n")
		name, domain := n.Hostname(pod)
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, name, domain, name)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, name)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.Bytes()
}
