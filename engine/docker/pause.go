package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"runtime"

	"github.com/containerd/errdefs"

	"podstead/oci/launch"
)

// pauseImage is the name under which our pause program is in Docker's store. It
// is not one of a registry: Docker gets the image from us.
const pauseImage = "podstead.local/pause:1"

// ensurePauseImage brings the image of sandboxes into Docker's store, unless it
// is there.
func (r *Runtime) ensurePauseImage(ctx context.Context) error {
	if _, err := r.api().ImageInspect(ctx, pauseImage); !errdefs.IsNotFound(err) {
		return failed(err, "inspect image %s", pauseImage)
	}
	_, err := r.join(ctx, "load "+pauseImage, createTimeout, func(ctx context.Context) (string, error) {
		return "", r.loadPauseImage(ctx)
	})
	return err
}

func (r *Runtime) loadPauseImage(ctx context.Context) error {
	program, err := launch.PauseProgram()
	if err != nil {
		return err
	}
	archive, err := pauseArchive(program)
	if err != nil {
		return err
	}
	res, err := r.api().ImageLoad(ctx, bytes.NewReader(archive))
	if err != nil {
		return failed(err, "load image %s", pauseImage)
	}
	defer res.Close()
	if _, err := io.Copy(io.Discard, res); err != nil {
		return failed(err, "load image %s", pauseImage)
	}
	_, err = r.api().ImageInspect(ctx, pauseImage) // what went wrong is in the answer's text only
	return failed(err, "load image %s", pauseImage)
}

// pauseArchive is an image of one file, as "docker load" reads it.
func pauseArchive(program []byte) ([]byte, error) {
	layer, err := tarOf(map[string][]byte{"pause": program}, 0o755)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{"Entrypoint": []string{"/pause"}, "User": "65535:65535"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hexSum(layer)}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": hexSum(config) + ".json", "RepoTags": []string{pauseImage}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return nil, err
	}
	return tarOf(map[string][]byte{hexSum(config) + ".json": config, "manifest.json": manifest, "layer.tar": layer}, 0o644)
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func tarOf(files map[string][]byte, mode int64) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
			return nil, fmt.Errorf("tar %s: %w", name, err)
		}
		if _, err := w.Write(data); err != nil {
			return nil, fmt.Errorf("tar %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
