package kubeletconfig

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"k8s.io/apimachinery/pkg/api/resource"
	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/agent"
	"podstead/agent/internal/eviction"
	"podstead/agent/internal/request"
	"podstead/agent/internal/userns"
)

// Policy is what the agent does of a configuration. Errors name the field.
func Policy(c *kubelet.KubeletConfiguration) (agent.Policy, error) {
	p := agent.DefaultPolicy()
	p.ClusterDNS, p.ClusterDomain = c.ClusterDNS, c.ClusterDomain
	if c.ResolverConfig != nil {
		p.ResolvConf = *c.ResolverConfig
	}
	if c.PodPidsLimit != nil {
		p.PodPidsLimit = max(*c.PodPidsLimit, 0)
	}
	if c.SeccompDefault != nil {
		p.SeccompDefault = *c.SeccompDefault
	}
	p.FirewallChains = c.MakeIPTablesUtilChains == nil || *c.MakeIPTablesUtilChains
	p.OwnCgroup, p.SystemCgroup = c.KubeletCgroups, c.SystemCgroups
	p.VolumeStatsPeriod = c.VolumeStatsAggPeriod.Duration
	return p, errors.Join(sysctls(&p, c), runtime(&p, c), images(&p, c), pulls(&p, c), limits(&p, c), verify(&p, c), backoff(&p, c), evictions(&p, c), node(&p.Node, c), systemGroups(c), pinning(&p.Pinning, c), shutdown(&p, c))
}

// sysctls are those that pods may set, and those that they get anyway.
func sysctls(p *agent.Policy, c *kubelet.KubeletConfiguration) (err error) {
	p.UnsafeSysctls = c.AllowedUnsafeSysctls
	for _, name := range slices.Sorted(maps.Keys(c.DefaultPodSysctls)) {
		dotted := strings.ReplaceAll(name, "/", ".")
		if !request.NamespacedSysctl(dotted) {
			err = errors.Join(err, fmt.Errorf("defaultPodSysctls[%s]: it is not one of the pod, but of the host", name))
		}
		if p.PodSysctls == nil {
			p.PodSysctls = map[string]string{}
		}
		p.PodSysctls[dotted] = c.DefaultPodSysctls[name]
	}
	return err
}

// runtime is how the runtime is called, and what it is asked for.
func runtime(p *agent.Policy, c *kubelet.KubeletConfiguration) error {
	if p.RuntimeTimeout = c.RuntimeRequestTimeout.Duration; p.RuntimeTimeout < 0 {
		return fmt.Errorf("runtimeRequestTimeout: %s is negative", p.RuntimeTimeout)
	}
	p.PodCIDR = c.PodCIDR
	for cidr := range strings.SplitSeq(c.PodCIDR, ",") {
		if _, err := netip.ParsePrefix(cidr); err != nil && c.PodCIDR != "" {
			return fmt.Errorf("podCIDR: %q is no range of addresses", cidr)
		}
	}
	if c.UserNamespaces == nil || c.UserNamespaces.IDsPerPod == nil {
		return nil
	}
	n := *c.UserNamespaces.IDsPerPod
	if n <= 0 || n%userns.Length != 0 || n >= 1<<32 {
		return fmt.Errorf("userNamespaces.idsPerPod: %d is not a multiple of %d below 2^32", n, userns.Length)
	}
	p.IDsPerPod = uint32(n)
	return nil
}

func images(p *agent.Policy, c *kubelet.KubeletConfiguration) error {
	set(&p.Images.High, c.ImageGCHighThresholdPercent)
	set(&p.Images.Low, c.ImageGCLowThresholdPercent)
	if d := c.ImageMinimumGCAge.Duration; d != 0 {
		p.Images.MinAge = d
	}
	p.Images.MaxAge = c.ImageMaximumGCAge.Duration
	i := p.Images
	switch {
	case i.High < 0 || i.High > 100:
		return fmt.Errorf("imageGCHighThresholdPercent: %d is not between 0 and 100", i.High)
	case i.Low < 0 || i.Low >= i.High:
		return fmt.Errorf("imageGCLowThresholdPercent: %d is not less than imageGCHighThresholdPercent, %d", i.Low, i.High)
	case i.MinAge < 0:
		return fmt.Errorf("imageMinimumGCAge: %s is negative", i.MinAge)
	case i.MaxAge != 0 && i.MaxAge < i.MinAge:
		return fmt.Errorf("imageMaximumGCAge: %s is less than imageMinimumGCAge, %s", i.MaxAge, i.MinAge)
	}
	return nil
}

func pulls(p *agent.Policy, c *kubelet.KubeletConfiguration) error {
	serial := c.SerializeImagePulls != nil && *c.SerializeImagePulls
	set(&p.ParallelPulls, c.MaxParallelImagePulls)
	set(&p.PullsPerSecond, c.RegistryPullQPS)
	p.PullBurst = int(c.RegistryBurst)
	switch {
	case p.PullsPerSecond < 0 || p.PullBurst < 0:
		return fmt.Errorf("registryPullQPS, registryBurst: %d, %d are negative", p.PullsPerSecond, p.PullBurst)
	case c.MaxParallelImagePulls != nil && p.ParallelPulls < 1:
		return fmt.Errorf("maxParallelImagePulls: %d is less than 1", p.ParallelPulls)
	case serial && p.ParallelPulls > 1:
		return fmt.Errorf("maxParallelImagePulls: %d, and serializeImagePulls is true", p.ParallelPulls)
	case serial:
		p.ParallelPulls = 1
	}
	return nil
}

// limits is how limits of cpu and memory are put into force.
func limits(p *agent.Policy, c *kubelet.KubeletConfiguration) error {
	p.CPU.NoQuota = c.CPUCFSQuota != nil && !*c.CPUCFSQuota
	if d := c.CPUCFSQuotaPeriod; d != nil {
		if d.Duration < time.Millisecond || d.Duration > time.Second {
			return fmt.Errorf("cpuCFSQuotaPeriod: %s is not between 1ms and 1s", d.Duration)
		}
		p.CPU.Period = d.Duration
	}
	if f := c.MemoryThrottlingFactor; f != nil {
		if p.Memory.Throttle = *f; !(*f > 0 && *f <= 1) {
			return fmt.Errorf("memoryThrottlingFactor: %v is not above 0 and at most 1", *f)
		}
	}
	switch c.MemoryReservationPolicy {
	case "", kubelet.NoneMemoryReservationPolicy:
	case kubelet.TieredReservationMemoryReservationPolicy:
		p.Memory.Reserve = true
	default:
		return fmt.Errorf("memoryReservationPolicy: %q is neither None nor TieredReservation", c.MemoryReservationPolicy)
	}
	for name, text := range c.QOSReserved {
		percent, ok := strings.CutSuffix(text, "%")
		n, err := strconv.Atoi(percent)
		if name != "memory" || !ok || err != nil || n < 0 || n > 100 {
			return fmt.Errorf("qosReserved[%s]: %q is no percentage of memory", name, text)
		}
		p.KeepMemory = n
	}
	p.Memory.OneByOne = c.SingleProcessOOMKill != nil && *c.SingleProcessOOMKill
	switch p.Memory.Swap = c.MemorySwap.SwapBehavior; p.Memory.Swap {
	case "", "NoSwap", "LimitedSwap":
		return nil
	}
	return fmt.Errorf("memorySwap.swapBehavior: %q is neither NoSwap nor LimitedSwap", p.Memory.Swap)
}

func verify(p *agent.Policy, c *kubelet.KubeletConfiguration) error {
	if c.ImagePullCredentialsVerificationPolicy != "" {
		p.VerifyImages.Policy = c.ImagePullCredentialsVerificationPolicy
	}
	p.VerifyImages.Allowed = c.PreloadedImagesVerificationAllowlist
	switch p.VerifyImages.Policy {
	case kubelet.NeverVerify, kubelet.NeverVerifyPreloadedImages, kubelet.AlwaysVerify:
		if len(c.PreloadedImagesVerificationAllowlist) > 0 {
			return fmt.Errorf("preloadedImagesVerificationAllowlist: it is only for imagePullCredentialsVerificationPolicy: %s", kubelet.NeverVerifyAllowlistedImages)
		}
	case kubelet.NeverVerifyAllowlistedImages:
		for i, name := range c.PreloadedImagesVerificationAllowlist {
			if _, err := reference.ParseNormalizedNamed(strings.TrimSuffix(name, "/*")); err != nil {
				return fmt.Errorf("preloadedImagesVerificationAllowlist[%d]: %q: %w", i, name, err)
			}
		}
	default:
		return fmt.Errorf("imagePullCredentialsVerificationPolicy: %q is unknown", p.VerifyImages.Policy)
	}
	return nil
}

// fasterBackoff is the one feature gate that is heeded.
const fasterBackoff = "ReduceDefaultCrashLoopBackOffDecay"

func backoff(p *agent.Policy, c *kubelet.KubeletConfiguration) error {
	longest := p.MaxRestartPeriod
	if c.FeatureGates[fasterBackoff] { // KEP-4603
		p.MinRestartPeriod, p.MaxRestartPeriod = time.Second, time.Minute
	}
	d := c.CrashLoopBackOff.MaxContainerRestartPeriod
	if d == nil {
		return nil
	}
	if d.Duration < time.Second || d.Duration > longest {
		return fmt.Errorf("crashLoopBackOff.maxContainerRestartPeriod: %s is not between 1s and %s", d.Duration, longest)
	}
	p.MaxRestartPeriod = d.Duration
	return nil
}

func evictions(p *agent.Policy, c *kubelet.KubeletConfiguration) (err error) {
	p.Eviction, err = eviction.Settings{
		Hard: c.EvictionHard, Soft: c.EvictionSoft, SoftGracePeriod: c.EvictionSoftGracePeriod,
		MinimumReclaim:     c.EvictionMinimumReclaim,
		MergeDefaults:      c.MergeDefaultEvictionSettings != nil && *c.MergeDefaultEvictionSettings,
		TransitionPeriod:   c.EvictionPressureTransitionPeriod.Duration,
		MaxPodGraceSeconds: c.EvictionMaxPodGracePeriod,
	}.Policy()
	if c.LocalStorageCapacityIsolation != nil {
		p.Eviction.LocalStorage = *c.LocalStorageCapacityIsolation
	}
	return err
}

func set(to *int, from *int32) {
	if from != nil {
		*to = int(*from)
	}
}

// ManifestURL is where pods are asked for.
func ManifestURL(c *kubelet.KubeletConfiguration) (agent.ManifestURL, error) {
	u := agent.ManifestURL{Address: c.StaticPodURL, Header: c.StaticPodURLHeader, Period: 20 * time.Second}
	if d := c.HTTPCheckFrequency.Duration; d < 0 {
		return u, fmt.Errorf("httpCheckFrequency: %s is negative", d)
	} else if d > 0 {
		u.Period = d
	}
	if u.Address == "" {
		return u, nil
	}
	if at, err := url.Parse(u.Address); err != nil || at.Host == "" || at.Scheme != "http" && at.Scheme != "https" {
		return u, fmt.Errorf("staticPodURL: %q is no address of http or https", u.Address)
	}
	return u, nil
}

// LogLimits are the size and number of a container's log files; 0: not set.
func LogLimits(c *kubelet.KubeletConfiguration) (maxBytes int64, maxFiles int, err error) {
	if c.ContainerLogMaxSize != "" {
		q, err := resource.ParseQuantity(c.ContainerLogMaxSize)
		if err != nil || q.Value() <= 0 {
			return 0, 0, fmt.Errorf("containerLogMaxSize: %q is no positive quantity", c.ContainerLogMaxSize)
		}
		maxBytes = q.Value()
	}
	set(&maxFiles, c.ContainerLogMaxFiles)
	if c.ContainerLogMaxFiles != nil && maxFiles < 2 {
		return 0, 0, fmt.Errorf("containerLogMaxFiles: %d is less than 2", maxFiles)
	}
	return maxBytes, maxFiles, nil
}

// CheckHost tells what of the host a configuration forbids. What it does not
// mention is allowed: cgroup v1 and swap are supported here.
func CheckHost(c *kubelet.KubeletConfiguration, cgroupV2 bool, swaps, sysctls string) error {
	if c.ProtectKernelDefaults {
		if err := kernelDefaults(sysctls); err != nil {
			return err
		}
	}
	if (c.MemoryThrottlingFactor != nil || c.MemoryReservationPolicy == kubelet.TieredReservationMemoryReservationPolicy) && !cgroupV2 {
		return errors.New("memoryThrottlingFactor, memoryReservationPolicy: the host has cgroup v1, which cannot do that")
	}
	if c.FailCgroupV1 != nil && *c.FailCgroupV1 && !cgroupV2 {
		return errors.New("failCgroupV1: the host has cgroup v1")
	}
	if c.FailSwapOn == nil || !*c.FailSwapOn {
		return nil
	}
	f, err := os.Open(swaps)
	if err != nil {
		return fmt.Errorf("failSwapOn: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Scan() // the headings
	if lines.Scan() {
		return fmt.Errorf("failSwapOn: swap is on: %s", lines.Text())
	}
	return lines.Err()
}

// kernelDefaults tells which sysctls of the host are other than the kubelet wants
// them. Here nobody changes them.
func kernelDefaults(dir string) (err error) {
	for _, want := range []struct{ name, value string }{
		{"vm.overcommit_memory", "1"}, {"vm.panic_on_oom", "0"}, {"kernel.panic", "10"}, {"kernel.panic_on_oops", "1"},
		{"kernel.keys.root_maxkeys", "1000000"}, {"kernel.keys.root_maxbytes", "25000000"},
	} {
		data, readErr := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(want.name, ".", "/")))
		if got := strings.TrimSpace(string(data)); readErr != nil || got != want.value {
			err = errors.Join(err, readErr, fmt.Errorf("protectKernelDefaults: %s is %q, want %s", want.name, got, want.value))
		}
	}
	return err
}
