package systemd

import (
	"bufio"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/cgroup"
)

// infinity is how properties say that there is no limit.
const infinity = math.MaxUint64

// limits are the properties that stand for limits; what systemd has none for is
// on the file system alone. Of cgroup v1, systemd knows fewer.
func limits(r *specs.LinuxResources, v2 bool) (list []Property, err error) {
	add := func(name string, value any) { list = append(list, Property{name, dbus.MakeVariant(value)}) }
	if c := r.CPU; c != nil {
		cpuLimits(c, v2, add)
		if v2 {
			for _, f := range []struct{ name, value string }{{"AllowedCPUs", c.Cpus}, {"AllowedMemoryNodes", c.Mems}} {
				if f.value == "" {
					continue
				}
				mask, err := bitmask(f.value)
				if err != nil {
					return nil, err
				}
				add(f.name, mask)
			}
		}
	}
	if m := r.Memory; m != nil {
		memoryLimits(m, v2, add)
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		add("TasksMax", limit(max(*r.Pids.Limit, -1)))
	}
	if b := r.BlockIO; b != nil && b.Weight != nil && *b.Weight > 0 {
		if v2 {
			add("IOWeight", 1+(uint64(*b.Weight)-10)*9999/990)
		} else {
			add("BlockIOWeight", uint64(*b.Weight))
		}
	}
	if v2 {
		if err := unifiedLimits(r.Unified, add); err != nil {
			return nil, err
		}
	}
	if len(r.Devices) > 0 {
		devices, err := deviceLimits(r.Devices)
		if err != nil {
			return nil, err
		}
		list = append(list, devices...)
	}
	return list, nil
}

// limit is a number of bytes or processes; below 0 is none.
func limit(n int64) uint64 {
	if n < 0 {
		return infinity
	}
	return uint64(n)
}

func cpuLimits(c *specs.LinuxCPU, v2 bool, add func(string, any)) {
	if c.Shares != nil && *c.Shares != 0 {
		if v2 {
			add("CPUWeight", cgroup.WeightFromShares(*c.Shares))
		} else {
			add("CPUShares", *c.Shares)
		}
	}
	period := uint64(100000)
	if c.Period != nil && *c.Period != 0 {
		period = *c.Period
		add("CPUQuotaPeriodUSec", period)
	}
	if c.Quota != nil && *c.Quota != 0 {
		add("CPUQuotaPerSecUSec", quotaPerSecond(*c.Quota, period))
	}
}

// quotaPerSecond is a quota in a period as time in a second, in µs. systemd
// counts in steps of 10 ms and rounds down, which would be less than allowed.
func quotaPerSecond(quota int64, period uint64) uint64 {
	if quota < 0 {
		return infinity
	}
	n := uint64(quota) * 1000000 / period
	if rest := n % 10000; rest != 0 {
		n += 10000 - rest
	}
	return n
}

func memoryLimits(m *specs.LinuxMemory, v2 bool, add func(string, any)) {
	has := func(n *int64) bool { return n != nil && *n != 0 }
	if !v2 {
		if has(m.Limit) {
			add("MemoryLimit", limit(*m.Limit))
		}
		return
	}
	if has(m.Limit) {
		add("MemoryMax", limit(*m.Limit))
	}
	if has(m.Reservation) {
		add("MemoryLow", limit(*m.Reservation))
	}
	switch {
	case has(m.Swap) && *m.Swap < 0:
		add("MemorySwapMax", uint64(infinity))
	case has(m.Swap) && has(m.Limit) && *m.Swap >= *m.Limit && *m.Limit > 0:
		add("MemorySwapMax", uint64(*m.Swap-*m.Limit))
	}
}

// unifiedLimits are those files of cgroup v2 that are also properties.
func unifiedLimits(files map[string]string, add func(string, any)) error {
	names := map[string]string{
		"cpu.weight": "CPUWeight", "memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin",
		"memory.max": "MemoryMax", "memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax",
		"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes", "cpu.max": "",
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		name, known := names[file]
		if !known {
			continue
		}
		value := strings.TrimSpace(files[file])
		switch {
		case file == "cpu.max":
			quota, period, _ := strings.Cut(value, " ")
			p, err := strconv.ParseUint(period, 10, 64)
			if err != nil {
				p = 100000
			}
			q := int64(-1)
			if quota != "max" {
				if q, err = strconv.ParseInt(quota, 10, 64); err != nil {
					return fmt.Errorf("unified.cpu.max: %w", err)
				}
			}
			add("CPUQuotaPeriodUSec", p)
			add("CPUQuotaPerSecUSec", quotaPerSecond(q, p))
		case strings.HasPrefix(file, "cpuset."):
			mask, err := bitmask(value)
			if err != nil {
				return fmt.Errorf("unified.%s: %w", file, err)
			}
			add(name, mask)
		case value == "max":
			add(name, uint64(infinity))
		default:
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return fmt.Errorf("unified.%s: %w", file, err)
			}
			add(name, n)
		}
	}
	return nil
}

// bitmask is a list of processors, "0-2,5", as bits from the first byte's lowest
// on.
func bitmask(list string) ([]byte, error) {
	var mask []byte
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 12)
		last, err2 := strconv.ParseUint(to, 10, 12)
		if err1 != nil || err2 != nil || last < first {
			return nil, fmt.Errorf("%q is no list of numbers", list)
		}
		for n := first; n <= last; n++ {
			for uint64(len(mask)) <= n/8 {
				mask = append(mask, 0)
			}
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return mask, nil
}

// deviceAllow is an element of DeviceAllow.
type deviceAllow struct{ Path, Access string }

// deviceLimits is the device policy as systemd has it, so that it does not take
// back what the group's filter gives. systemd cannot say "all but": it then
// allows all, and the filter alone is what forbids.
func deviceLimits(rules []specs.LinuxDeviceCgroup) ([]Property, error) {
	allow, exceptions, err := cgroup.DeviceRules(rules)
	if err != nil {
		return nil, err
	}
	clear := Property{"DeviceAllow", dbus.MakeVariant([]deviceAllow{})}
	if allow {
		return []Property{{"DevicePolicy", dbus.MakeVariant("auto")}, clear}, nil
	}
	list := []deviceAllow{}
	for _, e := range exceptions {
		if name := deviceName(e); name != "" {
			list = append(list, deviceAllow{name, e.Access})
		}
	}
	return []Property{
		{"DevicePolicy", dbus.MakeVariant("strict")}, clear,
		{"DeviceAllow", dbus.MakeVariant(list)},
	}, nil
}

// deviceName is what systemd calls a device, or all of a driver; "" for what it
// has no name for.
func deviceName(r cgroup.DeviceRule) string {
	kind := "char"
	if r.Kind == 'b' {
		kind = "block"
	}
	switch {
	case r.Major < 0 && r.Minor < 0:
		return kind + "-*"
	case r.Major >= 0 && r.Minor >= 0:
		return fmt.Sprintf("/dev/%s/%d:%d", kind, r.Major, r.Minor)
	case r.Major >= 0:
		if driver := driverName(kind, r.Major); driver != "" {
			return kind + "-" + driver
		}
	}
	return ""
}

// driverName looks a major number up in /proc/devices.
func driverName(kind string, major int64) string {
	f, err := os.Open("/proc/devices")
	if err != nil {
		return ""
	}
	defer f.Close()
	section := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "Character"):
			section = "char"
		case strings.HasPrefix(line, "Block"):
			section = "block"
		case section == kind:
			number, name, _ := strings.Cut(strings.TrimSpace(line), " ")
			if n, err := strconv.ParseInt(number, 10, 64); err == nil && n == major {
				return name
			}
		}
	}
	return ""
}

const annotationPrefix = "org.systemd.property."

func isPropertyName(s string) bool {
	noLetter := func(r rune) bool { return !('A' <= r && r <= 'Z' || 'a' <= r && r <= 'z') }
	return len(s) >= 3 && !strings.ContainsFunc(s, noLetter)
}

// Annotated are the properties that a specification's annotations ask for, as
// runc and crun understand them: org.systemd.property.NAME with a value as
// gvariant-text has it, "uint64 5" or "'text'". Times in seconds, whose names
// end in Sec, become those in µs that D-Bus knows.
func Annotated(annotations map[string]string) (list []Property, err error) {
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ok := strings.CutPrefix(key, annotationPrefix)
		if !ok {
			continue
		}
		if !isPropertyName(name) {
			return nil, fmt.Errorf("annotations[%q]: no name of a property", key)
		}
		value, err := dbus.ParseVariant(annotations[key], dbus.Signature{})
		if err != nil {
			return nil, fmt.Errorf("annotations[%q]: %q: %w", key, annotations[key], err)
		}
		if base, isTime := strings.CutSuffix(name, "Sec"); isTime && base[len(base)-1] >= 'a' {
			if value, err = microseconds(value); err != nil {
				return nil, fmt.Errorf("annotations[%q]: %w", key, err)
			}
			name = base + "USec"
		}
		list = append(list, Property{name, value})
	}
	return list, nil
}

func microseconds(seconds dbus.Variant) (dbus.Variant, error) {
	var s float64
	switch n := seconds.Value().(type) {
	case int16:
		s = float64(n)
	case uint16:
		s = float64(n)
	case int32:
		s = float64(n)
	case uint32:
		s = float64(n)
	case int64:
		s = float64(n)
	case uint64:
		s = float64(n)
	case float64:
		s = n
	default:
		return dbus.Variant{}, fmt.Errorf("%v is no number of seconds", seconds)
	}
	if s < 0 {
		return dbus.Variant{}, fmt.Errorf("%v is below 0", seconds)
	}
	return dbus.MakeVariant(uint64(s * 1e6)), nil
}
