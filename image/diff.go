package image

import (
	"context"
	"io"
	"os"

	"podstead/image/internal/layer"
)

// UnpackDiff unpacks what a container has changed, a tar stream like a layer's
// that an attacker may have written, into an empty directory that will be the
// upper one of an overlay over lower, top first. What the stream leaves out of
// its directories comes from those below. bytes bounds the sum of its files.
func UnpackDiff(ctx context.Context, r io.Reader, dir string, lower []string, bytes int64) error {
	res, err := layer.NewUnpacker(layer.Limits{Bytes: bytes}).Unpack(ctx, r, dir, func(int64) {})
	if err != nil {
		return err
	}
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var below []*os.File
	defer func() {
		for _, f := range below {
			f.Close()
		}
	}()
	for _, l := range lower {
		f, err := os.Open(l)
		if err != nil {
			return err
		}
		below = append(below, f)
	}
	return layer.FixImplicit(root, below, res.Implicit)
}
