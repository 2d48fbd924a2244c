package critest

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"podstead/image/imagetest"
)

// mirrored are the registries whose names critest's images have.
var mirrored = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"}

// mirror leads a runtime from the registries that critest knows to another one,
// by files in its certs.d.
func mirror(t *testing.T, certsDir, address string) {
	t.Helper()
	for _, host := range mirrored {
		dir := filepath.Join(certsDir, host)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		config := fmt.Sprintf("server = \"https://%s\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", host, address)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Applets that critest uses, and that not every busybox has: what they print is
// what critest looks at.
const (
	pgrep = "#!/bin/sh\nexec pidof \"$@\"\n"
	ipcs  = "#!/bin/sh\nexec cat /proc/sysvipc/shm\n" // ipcs -m
)

// images are all that critest pulls, by repository and tag.
func images(t *testing.T, standin string) map[string]imagetest.Image {
	t.Helper()
	program, err := os.ReadFile(standin)
	if err != nil {
		t.Fatal(err)
	}
	busybox := append(imagetest.BusyboxFiles(t),
		imagetest.File{Name: "usr/bin/"}, imagetest.File{Name: "usr/sbin/"}, imagetest.File{Name: "var/run", Link: "/run"})
	for i, f := range busybox {
		if f.Link == "busybox" { // hard links, so that one applet can be masked without the others
			busybox[i].Type, busybox[i].Link, busybox[i].Mode = tar.TypeLink, "bin/busybox", 0o755
		}
		if f.Name == "bin/sh" {
			busybox[i] = imagetest.File{Name: f.Name, Mode: 0o755, Data: program}
		}
	}
	for name, script := range map[string]string{"bin/pgrep": pgrep, "bin/ipcs": ipcs} {
		if !slices.ContainsFunc(busybox, func(f imagetest.File) bool { return f.Name == name }) {
			busybox = append(busybox, imagetest.File{Name: name, Mode: 0o755, Data: []byte(script)})
		}
	}
	base := layer(t, busybox...)
	base.Compression = imagetest.Plain // it is in most images, and would be compressed for each
	image := func(cfg imagetest.Config, above ...imagetest.File) imagetest.Image {
		cfg.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		if cfg.Entrypoint == nil {
			cfg.Cmd = []string{"sh"}
		}
		if len(above) == 0 {
			return imagetest.New(t, cfg, base)
		}
		return imagetest.New(t, cfg, base, layer(t, above...))
	}
	running := func(path string, mode int64, args ...string) imagetest.Image {
		return image(imagetest.Config{Entrypoint: append([]string{"/" + path}, args...)},
			imagetest.File{Name: path, Mode: mode, Data: program})
	}
	marked := func(name string) imagetest.Image { return image(imagetest.Config{}, imagetest.File{Name: name}) }
	tags := marked("same-image")

	const e2e, cri = "e2e-test-images/", "k8s-staging-cri-tools/"
	return map[string]imagetest.Image{
		"pause:3.9": imagetest.New(t, imagetest.Config{Entrypoint: []string{"/pause"}},
			layer(t, imagetest.File{Name: "pause", Mode: 0o755, Data: program})),
		e2e + "busybox:1.29-2":                        image(imagetest.Config{}),
		e2e + "nginx:1.14-2":                          running("usr/sbin/nginx", 0o755, "80"),
		e2e + "httpd:2.4.39-4":                        running("usr/sbin/httpd", 0o755, "80"),
		e2e + "nonewprivs:1.3":                        running("usr/bin/nonewprivs", 0o4755),
		cri + "test-image-1:latest":                   marked("test-image-1"),
		cri + "test-image-2:latest":                   marked("test-image-2"),
		cri + "test-image-3:latest":                   marked("test-image-3"),
		cri + "test-image-latest:latest":              marked("test-image-latest"),
		cri + "test-image-tag:test":                   marked("test"),
		cri + "test-image-tag:all":                    marked("all"),
		cri + "test-image-tags:1":                     tags,
		cri + "test-image-tags:2":                     tags,
		cri + "test-image-tags:3":                     tags,
		cri + "test-image-digest:latest":              digested(t),
		cri + "test-image-user-uid:latest":            image(imagetest.Config{User: "1002"}),
		cri + "test-image-user-username:latest":       image(imagetest.Config{User: "www-data"}),
		cri + "test-image-user-uid-group:latest":      image(imagetest.Config{User: "1003:1004"}),
		cri + "test-image-user-username-group:latest": image(imagetest.Config{User: "www-data:1004"}),
		cri + "test-image-predefined-group:latest": image(imagetest.Config{User: "1000"},
			imagetest.File{Name: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n")},
			imagetest.File{Name: "etc/group", Data: []byte("root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")}),
		cri + "hostnet-nginx-" + runtime.GOARCH + ":latest": running("usr/sbin/nginx", 0o755, "12003"),
	}
}

// digested is the image that critest pulls by digest. Its own content, so that
// the digest does not depend on the machine's busybox.
func digested(t *testing.T) imagetest.Image {
	t.Helper()
	return imagetest.New(t, imagetest.Config{Cmd: []string{"sh"}}, layer(t, imagetest.File{Name: "test-image-digest"}))
}

func layer(t *testing.T, files ...imagetest.File) imagetest.Layer {
	t.Helper()
	return imagetest.Layer{Tar: imagetest.Tar(t, files...), Compression: imagetest.Gzip}
}
