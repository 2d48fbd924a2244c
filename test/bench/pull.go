package main

import (
	"context"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/test/peer"
)

// The steps of pulls, each from a registry on loopback until the image is there
// and unpacked.
const (
	pullGzip step = "pull, gzip"
	pullZstd step = "pull, zstd"
)

const pullLayers = 8

// pulls has each side pull a large image, removing it each time.
func (o options) pulls(ctx context.Context, sides []*side) error {
	images := map[string]v1.Image{}
	for name, zstd := range map[string]bool{"gzip": false, "zstd": true} {
		image, err := peer.Large(o.pull<<20, pullLayers, zstd)
		if err != nil {
			return err
		}
		images[name] = image
	}
	registry, stop, err := peer.ServeImages(images)
	if err != nil {
		return err
	}
	defer stop()
	for round := range o.pullRounds {
		for i := range sides {
			s := sides[(i+round)%len(sides)]
			took := map[step]time.Duration{}
			for what, name := range map[step]string{pullGzip: "gzip", pullZstd: "zstd"} {
				image := &runtimeapi.ImageSpec{Image: registry + "/" + name + ":1"}
				err := timed(took, what, func() error {
					_, err := s.runtime.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image})
					return err
				})
				if err == nil {
					_, err = s.runtime.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: image})
				}
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
			s.add(took)
		}
	}
	return nil
}
