package image_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podstead/image"
	"podstead/image/imagetest"
	"podstead/test/peer"
)

// syntheticImage has layers of synthetic files.
func syntheticImage(b *testing.B, layers, mib int, c imagetest.Compression) (imagetest.Image, int64) {
	var total int64
	var ls []imagetest.Layer
	for i := range layers {
		var files []imagetest.File
		for _, f := range peer.Synthetic(i, mib<<20/layers) {
			files = append(files, imagetest.File{Name: f.Name, Data: f.Data})
		}
		t := imagetest.Tar(b, files...)
		total += int64(len(t))
		ls = append(ls, imagetest.Layer{Tar: t, Compression: c})
	}
	return imagetest.New(b, imagetest.Config{}, ls...), total
}

// BenchmarkPull pulls 100 MiB in 4 layers from loopback and unpacks it. MB/s
// are those of unpacked bytes. What it removes it leaves to the end: ext4 is
// slow to extract where much was deleted a moment ago.
func BenchmarkPull(b *testing.B) {
	needRoot(b)
	for _, c := range []imagetest.Compression{imagetest.Gzip, imagetest.Zstd, imagetest.Plain} {
		name := string(c)
		if c == imagetest.Plain {
			name = "plain"
		}
		b.Run(name, func(b *testing.B) {
			img, total := syntheticImage(b, 4, 100, c)
			addr := imagetest.Registry(b, map[string]imagetest.Image{"app:1": img})
			dir := b.TempDir()
			b.SetBytes(total)
			began := cpuTime(b)
			for i := 0; b.Loop(); i++ {
				s, err := image.Open(image.Config{Dir: filepath.Join(dir, fmt.Sprint(i)), Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Pull(testContext(b), addr+"/app:1", image.Auth{}); err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
			// What counts on a machine that has other work, too.
			used := cpuTime(b) - began
			b.ReportMetric(float64(total)*float64(b.N)/1e6/used.Seconds(), "MB/cpu-s")
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHold is what a container's start pays for its layers.
func BenchmarkHold(b *testing.B) {
	s := openStore(b, image.Config{Dir: filepath.Join(b.TempDir(), "images"), Log: slog.New(slog.DiscardHandler)})
	layers := make([]imagetest.Layer, 10)
	for i := range layers {
		layers[i] = imagetest.Layer{Tar: imagetest.Tar(b, imagetest.File{Name: fmt.Sprint(i)})}
	}
	img := imagetest.New(b, imagetest.Config{}, layers...)
	load(b, s, imagetest.ArchiveBytes(b, img, "app"))
	ctx := testContext(b)
	for b.Loop() {
		if _, err := s.Hold(ctx, img.ID(), "container"); err != nil {
			b.Fatal(err)
		}
		if err := s.Release(ctx, "container"); err != nil {
			b.Fatal(err)
		}
	}
}
