package docker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/disk"
	"podstead/engine/internal/figure"
)

// diskAge is for how long what Docker counted on the disk is not counted again.
const diskAge = 30 * time.Second

// diskUsage remembers what takes Docker long to count. The zero value is ready.
type diskUsage struct {
	mu     sync.Mutex
	layers map[string]measured // writable layers, by container
	images measured
}

type measured struct {
	at    time.Time
	bytes uint64
}

// activityOver stands for a container that will never run again.
const activityOver = uint64(1<<64 - 1)

// surveyWait is how long a request waits for a writable layer to be counted.
const surveyWait = 100 * time.Millisecond

// writableLayer is how much a container that was inspected wrote. Where Docker's
// storage driver has a directory for that it is counted here, and else by
// Docker, which tells no number of files.
func (r *Runtime) writableLayer(ctx context.Context, c *ctr, activity uint64) *runtimeapi.FilesystemUsage {
	fs := &runtimeapi.FilesystemUsage{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: r.info().DockerRootDir}}
	upper := r.upperDir(c)
	if upper == "" {
		m, ok := r.countedByDocker(ctx, c.id)
		if !ok {
			return nil
		}
		fs.Timestamp, fs.UsedBytes = m.at.UnixNano(), figure.Value(m.bytes)
		return fs
	}
	layer := &r.gauges.of(c.id).layer
	if done := r.surveyor.Survey(layer, disk.Tree{Dir: upper}, activity); done != nil {
		t := time.NewTimer(surveyWait)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C: // left to the next request
		case <-ctx.Done():
		}
	}
	u, ok := layer.Usage()
	if !ok {
		return nil
	}
	fs.Timestamp, fs.UsedBytes, fs.InodesUsed = u.At.UnixNano(), figure.Value(u.Bytes), figure.Value(u.Inodes)
	return fs
}

// upperDir is the directory of a container's writable layer, as the storage driver
// says or, with containerd's image store, the mount of a container that runs or
// did when it was asked for before.
func (r *Runtime) upperDir(c *ctr) string {
	if d := c.seen.GraphDriver; d != nil && d.Data["UpperDir"] != "" {
		return d.Data["UpperDir"]
	}
	return r.gauges.upperDir(c.id, func() string {
		if c.state.Pid == 0 {
			return ""
		}
		mounts, err := mountinfo.PidMountInfo(c.state.Pid)
		if err != nil {
			return "" // it has just ended
		}
		for _, m := range mounts {
			if m.Mountpoint != "/" || m.FSType != "overlay" {
				continue
			}
			for option := range strings.SplitSeq(m.VFSOptions, ",") {
				if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
					return dir
				}
			}
		}
		return ""
	})
}

// countedByDocker is the size of a writable layer, for which Docker walks it.
func (r *Runtime) countedByDocker(ctx context.Context, id string) (measured, bool) {
	d := &r.disk
	d.mu.Lock()
	m := d.layers[id]
	d.mu.Unlock()
	if time.Since(m.at) <= diskAge {
		return m, true
	}
	res, err := r.api().ContainerInspect(ctx, id, client.ContainerInspectOptions{Size: true})
	if err != nil || res.Container.SizeRw == nil {
		return m, false
	}
	m = measured{time.Now(), uint64(max(*res.Container.SizeRw, 0))}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.layers == nil {
		d.layers = map[string]measured{}
	}
	for old, o := range d.layers { // of containers that nobody asks for any more
		if time.Since(o.at) > 10*diskAge {
			delete(d.layers, old)
		}
	}
	d.layers[id] = m
	return m, true
}

// ImageFsInfo tells where images and writable layers are, and how much images
// take by Docker's own account. Docker does not count files: their number is
// that of the whole file system.
func (r *Runtime) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	_, err := r.join(ctx, "image file system", createTimeout, func(ctx context.Context) (string, error) {
		return "", r.measureImages(ctx)
	})
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(r.info().DockerRootDir, &st); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", r.info().DockerRootDir, err)
	}
	r.disk.mu.Lock()
	m := r.disk.images
	r.disk.mu.Unlock()
	fs := func() []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{
			Timestamp: m.at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: r.info().DockerRootDir},
			UsedBytes: figure.Value(m.bytes), InodesUsed: figure.Value(st.Files - st.Ffree),
		}}
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: fs(), ContainerFilesystems: fs()}, nil
}

func (r *Runtime) measureImages(ctx context.Context) error {
	r.disk.mu.Lock()
	m := r.disk.images
	r.disk.mu.Unlock()
	if time.Since(m.at) < diskAge {
		return nil
	}
	usage, err := r.api().DiskUsage(ctx, client.DiskUsageOptions{Images: true})
	if err != nil {
		return failed(err, "disk usage of images")
	}
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	r.disk.images = measured{time.Now(), uint64(max(usage.Images.TotalSize, 0))}
	return nil
}
