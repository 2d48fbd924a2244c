package peer

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Serve is ServeImages of Busybox and Pause, as "busybox" and "pause".
func Serve() (address string, stop func(), err error) {
	images := map[string]v1.Image{}
	for repository, image := range map[string]func() (v1.Image, error){"busybox": Busybox, "pause": Pause} {
		if images[repository], err = image(); err != nil {
			return "", nil, err
		}
	}
	return ServeImages(images)
}

// ServeImages serves images, by repository, with the tag "1", from a registry on
// loopback over plain http until stop is called.
func ServeImages(images map[string]v1.Image) (address string, stop func(), err error) {
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	for repository, image := range images {
		if err := push(h, repository, image); err != nil {
			return "", nil, fmt.Errorf("serve image %s: %w", repository, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	return l.Addr().String(), func() { s.Close() }, nil
}

// push uploads an image to a registry in this process.
func push(h http.Handler, repository string, image v1.Image) error {
	put := func(method, path, mediaType string, data []byte) error {
		r := httptest.NewRequest(method, "/v2/"+repository+path, bytes.NewReader(data))
		r.Header.Set("Content-Type", mediaType)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusCreated {
			return fmt.Errorf("%s %s: %s", method, path, w.Body)
		}
		return nil
	}
	blob := func(digest v1.Hash, data []byte) error {
		return put(http.MethodPost, "/blobs/uploads/?digest="+digest.String(), "application/octet-stream", data)
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			return err
		}
		r, err := layer.Compressed()
		if err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return err
		}
		if err := blob(digest, data); err != nil {
			return err
		}
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := image.ConfigName()
	if err != nil {
		return err
	}
	if err := blob(digest, config); err != nil {
		return err
	}
	manifest, err := image.RawManifest()
	if err != nil {
		return err
	}
	mediaType, err := image.MediaType()
	if err != nil {
		return err
	}
	return put(http.MethodPut, "/manifests/1", string(mediaType), manifest)
}
