package imagegc

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const gib = 1 << 30

// fake is a runtime with images on a disk of 100 GiB, of which other takes some.
type fake struct {
	images     []*runtimeapi.Image
	containers []*runtimeapi.Container
	other      uint64
	stuck      string // an image that cannot be removed
	removed    []string
}

func (f *fake) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: slices.Clone(f.images)}, nil
}

func (f *fake) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	for _, i := range f.images {
		if i.Id == r.Image.Image || slices.Contains(i.RepoTags, r.Image.Image) {
			return &runtimeapi.ImageStatusResponse{Image: i}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (f *fake) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if r.Image.Image == f.stuck {
		return nil, errors.New("stuck")
	}
	f.images = slices.DeleteFunc(f.images, func(i *runtimeapi.Image) bool { return i.Id == r.Image.Image })
	f.removed = append(f.removed, r.Image.Image)
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (f *fake) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/images"}}}}, nil
}

func (f *fake) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: f.containers}, nil
}

func (f *fake) disk(path string) (size, free uint64, err error) {
	used := f.other
	for _, i := range f.images {
		used += i.Size
	}
	return 100 * gib, 100*gib - used, nil
}

func (f *fake) use(id string) {
	f.containers = append(f.containers, &runtimeapi.Container{ImageId: id, State: runtimeapi.ContainerState_CONTAINER_EXITED})
}

func image(id string, size uint64) *runtimeapi.Image {
	return &runtimeapi.Image{Id: id, Size: size * gib, RepoTags: []string{id + ":latest"}, RepoDigests: []string{id + "@sha256:0"}}
}

type lab struct {
	*testing.T
	*fake
	*Collector
	now time.Time
}

func newLab(t *testing.T, images ...*runtimeapi.Image) *lab {
	l := &lab{T: t, fake: &fake{images: images}, now: time.Unix(1e9, 0)}
	l.Collector = &Collector{
		Runtime: l.fake, Policy: DefaultPolicy(), Named: func() []string { return nil },
		Log: slog.New(slog.DiscardHandler), Disk: l.fake.disk, Now: func() time.Time { return l.now },
	}
	return l
}

// collect lets time pass, collects, and demands what was removed meanwhile.
func (l *lab) collect(pass time.Duration, want ...string) {
	l.Helper()
	l.now = l.now.Add(pass)
	l.removed = nil
	if err := l.Collect(context.Background()); err != nil {
		l.Error(err)
	}
	if !slices.Equal(l.removed, want) {
		l.Errorf("removed are %q, want %q", l.removed, want)
	}
}

func TestUnusedImagesGoWhenTheDiskIsFull(t *testing.T) {
	l := newLab(t, image("a", 1), image("b", 1), image("c", 1), image("d", 1))
	l.use("b")
	l.collect(0)
	l.collect(time.Hour)
	l.other = 85 * gib // 89 %
	l.containers = nil
	l.use("c")
	// Not b, which was in use an hour ago: a and d were never.
	l.collect(time.Minute, "a", "d", "b")
	if p := l.Problem(); !strings.Contains(p.Message, "the disk of images is 89% full, the threshold is 85%: 9.0 GiB were to be freed, and 3.0 GiB were; images that stay: 1 in use (1.0 GiB)") {
		t.Error(p.Message)
	}
	since := l.Problem().Since
	l.collect(time.Hour)
	if p := l.Problem(); p.Message == "" || !p.Since.Equal(since) {
		t.Errorf("an hour later: %+v, before since %s", p, since)
	}
	l.other = 10 * gib
	l.collect(time.Hour)
	if p := l.Problem(); p.Message != "" {
		t.Error(p.Message)
	}
}

func TestNoMoreThanNeedBe(t *testing.T) {
	l := newLab(t, image("a", 4), image("b", 4), image("c", 4))
	l.collect(0)
	l.other = 74 * gib // 86 %
	l.collect(time.Hour, "a", "b")
	if p := l.Problem(); p.Message != "" {
		t.Error(p.Message)
	}
}

func TestImagesThatStay(t *testing.T) {
	pinned, loaded := image("pinned", 1), image("loaded", 1)
	pinned.Pinned, loaded.RepoDigests = true, nil
	l := newLab(t, pinned, loaded, image("named", 1), image("stuck", 1))
	l.Named = func() []string { return []string{"named:latest", "absent:latest"} }
	l.stuck = "stuck"
	l.collect(0)
	l.fake.images = append(l.fake.images, image("young", 1))
	l.other = 90 * gib
	l.collect(time.Hour)
	for _, want := range []string{"1 could not be removed (1.0 GiB)", "1 in use", "1 loaded from an archive", "1 pinned", "1 younger than 2m0s"} {
		if p := l.Problem(); !strings.Contains(p.Message, want) {
			t.Errorf("%s lacks %s", p.Message, want)
		}
	}
	l.collect(time.Hour, "young")
}

func TestOldImagesGo(t *testing.T) {
	l := newLab(t, image("a", 1), image("b", 1))
	l.Policy.MaxAge = 24 * time.Hour
	l.use("b")
	l.collect(0)
	l.collect(24 * time.Hour)
	l.containers = nil
	l.collect(time.Minute, "a")
	l.collect(24*time.Hour, "b")
}
