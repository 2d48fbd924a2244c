package cgroup

import (
	"fmt"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// WeightFromShares converts cpu.shares (2…262144) to cpu.weight (1…10000) by
// the quadratic of the logarithm that meets both ends and makes the default of
// one, 1024, the default of the other, 100.
func WeightFromShares(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// ioWeight converts a blkio weight (10…1000) to io.weight (1…10000), linearly.
func ioWeight(weight uint16) uint64 {
	return 1 + (uint64(weight)-10)*9999/990
}

func (c *compiler) blockIO(r *specs.LinuxResources) error {
	b := r.BlockIO
	if b == nil {
		return nil
	}
	version := c.version("blkio")
	controller := "blkio"
	if version == 0 {
		version, controller = c.version("io"), "io"
	}
	throttles := []throttle{
		{"blockIO.throttleReadBpsDevice", "read_bps", "rbps", b.ThrottleReadBpsDevice},
		{"blockIO.throttleWriteBpsDevice", "write_bps", "wbps", b.ThrottleWriteBpsDevice},
		{"blockIO.throttleReadIOPSDevice", "read_iops", "riops", b.ThrottleReadIOPSDevice},
		{"blockIO.throttleWriteIOPSDevice", "write_iops", "wiops", b.ThrottleWriteIOPSDevice},
	}
	for _, t := range throttles {
		for i, d := range t.devices {
			field := fmt.Sprintf("%s[%d]", t.field, i)
			switch version {
			case 1:
				c.addKeyed(field, controller, "blkio.throttle."+t.v1+"_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
			case 2:
				c.addKeyed(field, controller, "io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.v2, rateV2(d.Rate)))
			default:
				return refuse(field, "the host has no blkio or io controller")
			}
		}
	}
	return c.ioWeights(b, controller, version)
}

type throttle struct {
	field, v1, v2 string
	devices       []specs.LinuxThrottleDevice
}

// rateV2 prints a rate; 0 takes the limit away on v1, "max" on v2.
func rateV2(rate uint64) string {
	if rate == 0 {
		return "max"
	}
	return fmt.Sprint(rate)
}

func (c *compiler) ioWeights(b *specs.LinuxBlockIO, controller string, version int) error {
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		return refuse("blockIO.leafWeight", "kernels have had no such weight since 5.0")
	}
	if b.Weight != nil && *b.Weight != 0 {
		if err := c.ioWeightFile("blockIO.weight", controller, version, "", *b.Weight); err != nil {
			return err
		}
	}
	for i, d := range b.WeightDevice {
		field := fmt.Sprintf("blockIO.weightDevice[%d]", i)
		if d.LeafWeight != nil && *d.LeafWeight != 0 {
			return refuse(field+".leafWeight", "kernels have had no such weight since 5.0")
		}
		if d.Weight == nil || *d.Weight == 0 {
			continue
		}
		device := fmt.Sprintf("%d:%d", d.Major, d.Minor)
		if err := c.ioWeightFile(field+".weight", controller, version, device, *d.Weight); err != nil {
			return err
		}
	}
	return nil
}

// ioWeightFile adds the weight of a group, or of one device for it. Which files
// there are depends on the schedulers in use: the BFQ scheduler's own, with the
// specification's range, or the generic ones.
func (c *compiler) ioWeightFile(field, controller string, version int, device string, weight uint16) error {
	if version == 0 {
		return refuse(field, "the host has no blkio or io controller")
	}
	if weight < 10 || weight > 1000 {
		return refuse(field, "%d is not in 10…1000", weight)
	}
	bfq, generic, value := "blkio.bfq.weight", "blkio.weight", fmt.Sprint(weight)
	key := "" // of the group's own weight
	if version == 2 {
		bfq, generic, key = "io.bfq.weight", "io.weight", "default "
	}
	if device != "" {
		key = device + " "
		if version == 1 {
			bfq, generic = bfq+"_device", generic+"_device"
		}
	}
	if _, err := c.current(controller, bfq); err == nil {
		c.addKeyed(field, controller, bfq, key+value)
		return nil
	}
	if version == 2 {
		value = fmt.Sprint(ioWeight(weight))
	}
	c.addKeyed(field, controller, generic, key+value)
	return nil
}
