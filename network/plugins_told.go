package network

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"podstead/network/internal/cni"
)

// Annotations by which a pod asks plugins for a hardware address and for IP
// addresses (separated by commas, with or without a prefix length).
const (
	macAnnotation = "podstead.io/pod-mac"
	ipsAnnotation = "podstead.io/pod-ips"
)

// annotationsCapability is how other runtimes hand a pod's annotations to
// plugins that declare it.
const annotationsCapability = "io.kubernetes.cri.pod-annotations"

// onRequest are the capabilities that a pod itself asks for; all others are
// offered to plugins that know what to do with them.
var onRequest = [...]string{"portMappings", "bandwidth", "mac", "ips"}

// ofFirst are the capabilities that concern the first network of a pod only.
var ofFirst = [...]string{"portMappings", "mac", "ips", "ipRanges"}

// cniArgs is CNI_ARGS, as plugins know it from other runtimes.
func cniArgs(pod Pod) [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", pod.Namespace},
		{"K8S_POD_NAME", pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
		{"K8S_POD_UID", pod.UID},
	}
}

// capabilities is what plugins can be told beside the arguments.
func (p *plugins) capabilities(pod Pod, ports []PortMapping) (map[string]any, error) {
	all := map[string]any{}
	if len(ports) > 0 {
		var mappings []cni.PortMapping
		for _, m := range ports {
			mapping := cni.PortMapping{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: strings.ToLower(m.Protocol)}
			if m.HostIP.IsValid() {
				mapping.HostIP = m.HostIP.String()
			}
			mappings = append(mappings, mapping)
		}
		all["portMappings"] = mappings
	}
	bandwidth, err := podBandwidth(pod.Annotations)
	if err != nil {
		return nil, err
	}
	if bandwidth != (cni.Bandwidth{}) {
		all["bandwidth"] = bandwidth
	}
	if d := pod.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		all["dns"] = cni.DNS(d)
	}
	if pod.CgroupParent != "" {
		all["cgroupPath"] = pod.CgroupParent
	}
	p.mu.Lock()
	subnets := p.subnets
	p.mu.Unlock()
	if len(subnets) > 0 {
		all["ipRanges"] = cni.IPRanges(subnets)
	}
	if pod.Name != "" {
		all["aliases"] = []string{pod.Name}
	}
	if len(pod.Annotations) > 0 {
		all[annotationsCapability] = pod.Annotations
	}
	if err := addresses(all, pod.Annotations); err != nil {
		return nil, err
	}
	return cni.Normalize(all)
}

// addresses adds the addresses that the annotations ask for.
func addresses(all map[string]any, annotations map[string]string) error {
	if text, ok := annotations[macAnnotation]; ok {
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("annotation %s: %q is not a hardware address", macAnnotation, text)
		}
		all["mac"] = mac.String()
	}
	if text, ok := annotations[ipsAnnotation]; ok {
		var ips []string
		for _, ip := range strings.Split(text, ",") {
			ip = strings.TrimSpace(ip)
			_, errPrefix := netip.ParsePrefix(ip)
			if _, err := netip.ParseAddr(ip); err != nil && errPrefix != nil {
				return fmt.Errorf("annotation %s: %q is not an address", ipsAnnotation, ip)
			}
			ips = append(ips, ip)
		}
		all["ips"] = ips
	}
	return nil
}

// podBandwidth reads the annotations. Bursts are not limited, as with other
// runtimes.
func podBandwidth(annotations map[string]string) (b cni.Bandwidth, err error) {
	if b.IngressRate, err = rate(annotations, ingressBandwidth); err != nil {
		return b, err
	}
	if b.EgressRate, err = rate(annotations, egressBandwidth); err != nil {
		return b, err
	}
	if b.IngressRate > 0 {
		b.IngressBurst = math.MaxUint32
	}
	if b.EgressRate > 0 {
		b.EgressBurst = math.MaxUint32
	}
	return b, nil
}

func rate(annotations map[string]string, key string) (uint64, error) {
	text, ok := annotations[key]
	if !ok {
		return 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s: %q: %w", key, text, err)
	}
	// The kubelet's own bounds.
	if v := q.Value(); v < 1_000 || v > 1_000_000_000_000_000 {
		return 0, fmt.Errorf("annotation %s: %s is not between 1k and 1P bits per second", key, text)
	}
	return uint64(q.Value()), nil
}
