package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"podstead/agent/internal/fsusage"
)

// Stats has a driver tell how full a volume is that it has published at dir
// (Volume.Dir); errors.ErrUnsupported if it tells nothing of volumes.
func (d *Drivers) Stats(ctx context.Context, dir string) (u fsusage.Usage, err error) {
	rec, err := readRecord(dir)
	if err == nil && (rec == nil || !rec.Published) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return u, err
	}
	drv, err := d.find(rec.Driver)
	if err != nil {
		return u, err
	}
	if !drv.measures {
		return u, errors.ErrUnsupported
	}
	resp, err := drv.node.NodeGetVolumeStats(ctx, &spec.NodeGetVolumeStatsRequest{
		VolumeId: rec.Handle, VolumePath: filepath.Join(dir, mountDir), StagingTargetPath: rec.Staged})
	if err != nil {
		return u, fmt.Errorf("driver %s: NodeGetVolumeStats: %w", rec.Driver, err)
	}
	for _, one := range resp.Usage {
		total, free, used := count(one.Total), count(one.Available), count(one.Used)
		switch one.Unit {
		case spec.VolumeUsage_BYTES:
			u.Capacity, u.Available, u.Used = total, free, used
		case spec.VolumeUsage_INODES:
			u.Inodes, u.InodesFree, u.InodesUsed = total, free, used
		}
	}
	return u, nil
}

// count is a number that a driver tells, which may be anything.
func count(n int64) uint64 { return uint64(max(n, 0)) }
