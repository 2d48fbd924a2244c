// Package imagegc removes images that nobody uses when their disk fills up, and
// says what it removed, what it kept and why. Thresholds and ages are the
// kubelet's (imageGCHighThresholdPercent and so on). It is kinder in two ways:
// an image that a pod of this node names stays, though no container of it may
// run just now, and so does one that was not pulled, because nobody could bring
// it back.
package imagegc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is what the collector needs of one.
type Runtime interface {
	ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error)
	ImageStatus(context.Context, *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error)
	RemoveImage(context.Context, *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error)
	ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
}

// Policy says when to collect what.
type Policy struct {
	High, Low int           // percent of the disk: above High, images go until Low is reached; High 100: never
	MinAge    time.Duration // since an image was first seen
	MaxAge    time.Duration // since an image was last used; 0: no bound
	Period    time.Duration
}

// DefaultPolicy is the kubelet's.
func DefaultPolicy() Policy {
	return Policy{High: 85, Low: 80, MinAge: 2 * time.Minute, Period: 5 * time.Minute}
}

// Collector collects images.
type Collector struct {
	Runtime Runtime
	Policy  Policy
	// Named lists the images that pods name, in any form.
	Named func() []string
	// Removed, if not nil, is told of each image that was removed, why: "age" or
	// "space", the kubelet's words.
	Removed func(reason string)
	Log     *slog.Logger

	// Disk tells the size of the file system at a path and what is free of it, in
	// bytes; nil asks the kernel.
	Disk func(path string) (size, free uint64, err error)
	Now  func() time.Time // nil: time.Now

	mu      sync.Mutex
	ages    map[string]age
	problem Problem
}

// age of an image, as far as it was seen.
type age struct{ found, used time.Time }

// Problem is why there is no room; Message is "" if there is.
type Problem struct {
	Message string
	Since   time.Time
}

// candidate is an image and why it stays, if it does.
type candidate struct {
	*runtimeapi.Image
	age
	stays string
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) {
	tick := time.NewTicker(c.Policy.Period)
	defer tick.Stop()
	for {
		if err := c.Collect(ctx); err != nil && ctx.Err() == nil {
			c.Log.Error("images not collected", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Problem tells whether the last collection left too little room.
func (c *Collector) Problem() Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problem
}

// Collect looks at images and disk, and removes what has to go.
func (c *Collector) Collect(ctx context.Context) error {
	now := time.Now()
	if c.Now != nil {
		now = c.Now()
	}
	images, err := c.look(ctx, now)
	if err != nil {
		return err
	}
	if c.Policy.MaxAge > 0 {
		// An image that was never used counts from when it was found.
		old := func(i candidate) bool { return now.Sub(latest(i.used, i.found)) > c.Policy.MaxAge }
		var kept []candidate
		for _, i := range images {
			if i.stays != "" || !old(i) || c.remove(ctx, i, "age", "unused for "+c.Policy.MaxAge.String()) != nil {
				kept = append(kept, i)
			}
		}
		images = kept
	}
	size, free, err := c.disk(ctx)
	if err != nil || size == 0 {
		return err
	}
	used := int(100 - 100*free/size)
	if used < c.Policy.High || c.Policy.High >= 100 {
		c.report(now, "")
		return nil
	}
	need := int64(size)*int64(100-c.Policy.Low)/100 - int64(free)
	freed := c.free(ctx, images, need)
	if freed >= need {
		c.report(now, "")
		return nil
	}
	c.report(now, fmt.Sprintf("the disk of images is %d%% full, the threshold is %d%%: %s were to be freed, and %s were; %s",
		used, c.Policy.High, bytes(need), bytes(freed), kept(images)))
	return nil
}

// Purge removes all images that nothing keeps, and tells how many bytes they had.
func (c *Collector) Purge(ctx context.Context) (freed int64, err error) {
	now := time.Now()
	if c.Now != nil {
		now = c.Now()
	}
	images, err := c.look(ctx, now)
	if err != nil {
		return 0, err
	}
	return c.free(ctx, images, math.MaxInt64), nil
}

// free removes images, those that were used longest ago first, until need bytes
// are freed.
func (c *Collector) free(ctx context.Context, images []candidate, need int64) (freed int64) {
	slices.SortFunc(images, func(a, b candidate) int {
		return cmp.Or(a.used.Compare(b.used), a.found.Compare(b.found), strings.Compare(a.Id, b.Id))
	})
	for n := range images {
		i := &images[n]
		if i.stays != "" || freed >= need {
			continue
		}
		if err := c.remove(ctx, *i, "space", "the disk is full"); err != nil {
			i.stays = "could not be removed"
			continue
		}
		i.stays = "removed"
		freed += int64(i.Size)
	}
	return freed
}

func (c *Collector) remove(ctx context.Context, i candidate, reason, why string) error {
	_, err := c.Runtime.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}})
	name := append(slices.Clone(i.RepoTags), i.RepoDigests...)
	if err != nil {
		c.Log.Warn("image not removed", "image", i.Id, "names", name, "error", err)
		return err
	}
	c.Log.Info("image removed", "image", i.Id, "names", name, "size", i.Size, "because", why)
	c.mu.Lock()
	delete(c.ages, i.Id)
	c.mu.Unlock()
	if c.Removed != nil {
		c.Removed(reason)
	}
	return nil
}

// look lists all images, notes which are used, and says which have to stay.
func (c *Collector) look(ctx context.Context, now time.Time) ([]candidate, error) {
	list, err := c.Runtime.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	inUse, err := c.inUse(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ages := map[string]age{}
	var out []candidate
	for _, img := range list.Images {
		a, known := c.ages[img.Id]
		if !known {
			a.found = now
		}
		i := candidate{Image: img}
		switch {
		case inUse[img.Id]:
			a.used = now
			i.stays = "in use"
		case img.Pinned:
			i.stays = "pinned"
		case len(img.RepoDigests) == 0:
			i.stays = "loaded from an archive"
		case now.Sub(a.found) < c.Policy.MinAge:
			i.stays = "younger than " + c.Policy.MinAge.String()
		}
		i.age = a
		ages[img.Id] = a
		out = append(out, i)
	}
	c.ages = ages
	return out, nil
}

// inUse are the IDs of the images of containers, running or not, and of those
// that pods name.
func (c *Collector) inUse(ctx context.Context) (map[string]bool, error) {
	containers, err := c.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	names := c.Named()
	for _, ctr := range containers.Containers {
		if ctr.ImageId != "" {
			used[ctr.ImageId] = true
		}
		names = append(names, ctr.ImageRef, ctr.GetImage().GetImage())
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if name == "" || used[name] {
			continue
		}
		st, err := c.Runtime.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil {
			return nil, fmt.Errorf("status of image %s: %w", name, err)
		}
		if id := st.GetImage().GetId(); id != "" {
			used[id] = true
		}
	}
	return used, nil
}

// disk is the file system that images are on.
func (c *Collector) disk(ctx context.Context) (size, free uint64, err error) {
	info, err := c.Runtime.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return 0, 0, fmt.Errorf("ask for the file system of images: %w", err)
	}
	if len(info.ImageFilesystems) == 0 {
		return 0, 0, errors.New("the runtime does not tell where images are")
	}
	path := info.ImageFilesystems[0].GetFsId().GetMountpoint()
	if c.Disk != nil {
		return c.Disk(path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("file system of images: %s: %w", path, err)
	}
	return st.Blocks * uint64(st.Bsize), st.Bavail * uint64(st.Bsize), nil
}

// report keeps a problem, and logs it when it is new.
func (c *Collector) report(now time.Time, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case message == "":
		c.problem = Problem{}
		return
	case c.problem.Message == "":
		c.problem.Since = now
		c.Log.Warn("image disk is full", "problem", message)
	}
	c.problem.Message = message
}

// kept says what the images that are left are kept for: "3 in use (2.1 GiB)".
func kept(images []candidate) string {
	type sum struct {
		n    int
		size int64
	}
	sums := map[string]sum{}
	var reasons []string
	for _, i := range images {
		if i.stays == "removed" || i.stays == "" {
			continue
		}
		s := sums[i.stays]
		if s.n == 0 {
			reasons = append(reasons, i.stays)
		}
		sums[i.stays] = sum{s.n + 1, s.size + int64(i.Size)}
	}
	if len(reasons) == 0 {
		return "no image is left"
	}
	slices.Sort(reasons)
	for n, r := range reasons {
		reasons[n] = fmt.Sprintf("%d %s (%s)", sums[r].n, r, bytes(sums[r].size))
	}
	return "images that stay: " + strings.Join(reasons, ", ")
}

func bytes(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", n)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
