package peer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is a regular file of an image layer, or a symbolic link if Link is set.
type File struct {
	Name string // "bin/sh"
	Mode int64
	Data []byte
	Link string
}

// Image makes an image of one layer.
func Image(config v1.Config, files ...File) (v1.Image, error) {
	layer, err := layerOf(files)
	if err != nil {
		return nil, err
	}
	return imageOf(config, layer)
}

// layerOf packs files; options are of the compression, which is else gzip.
func layerOf(files []File, options ...tarball.LayerOption) (v1.Layer, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg}
		if f.Link != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
		} else if f.Data == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", f.Name, err)
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layer.Bytes())), nil
	}, options...)
}

func imageOf(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", config
	return mutate.ConfigFile(image, file)
}

// Archive writes images, by reference, as a docker archive.
func Archive(path string, images map[string]v1.Image) error {
	refs := map[name.Reference]v1.Image{}
	for ref, image := range images {
		r, err := name.ParseReference(ref)
		if err != nil {
			return err
		}
		refs[r] = image
	}
	return tarball.MultiRefWriteToFile(path, refs)
}

// busyboxPath is where Debian's busybox-static is.
const busyboxPath = "/bin/busybox"

// applets are the commands that tests use.
var applets = []string{
	"cat", "chmod", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "httpd", "id", "kill", "ls", "mkdir",
	"mount", "nc", "printf", "ps", "pwd", "readlink", "rm", "seq", "sh", "sleep", "stat", "stty", "sync", "test", "touch", "tr", "true", "tty", "wc", "yes",
}

// Busybox makes an image of the machine's static busybox; it runs a shell.
func Busybox() (v1.Image, error) {
	binary, err := os.ReadFile(busyboxPath)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("busybox-static: %w", ErrNotInstalled)
	}
	if err != nil {
		return nil, err
	}
	files := []File{
		{Name: "bin/", Mode: 0o755}, {Name: "etc/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777}, {Name: "root/", Mode: 0o700},
		{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")},
		{Name: "bin/busybox", Mode: 0o755, Data: binary},
	}
	for _, applet := range applets {
		files = append(files, File{Name: "bin/" + applet, Mode: 0o777, Link: "busybox"})
	}
	return Image(v1.Config{
		Cmd: []string{"sh"},
		Env: []string{"PATH=/bin", "FROM_IMAGE=yes"},
	}, files...)
}

// Pause makes the smallest image that can be a pod's first process: a binary of
// one page that sleeps. It is kinder to its peer than any real pause image.
func Pause() (v1.Image, error) {
	return Image(v1.Config{Entrypoint: []string{"/pause"}}, File{Name: "pause", Mode: 0o755, Data: pauseBinary()})
}

// pauseBinary is an ELF executable for amd64 that calls pause(2) for ever.
func pauseBinary() []byte {
	code := []byte{
		0xb8, 34, 0, 0, 0, // mov eax, SYS_pause
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // jmp to the start
	}
	const base, headers = 0x400000, 64 + 56
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v)
		}
	}
	// ELF header: executable, amd64, entry, one program header, no sections.
	put(uint16(2), uint16(62), uint32(1), uint64(base+headers), uint64(64), uint64(0), uint32(0),
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0))
	// Program header: load all of the file, readable and executable.
	size := uint64(headers + len(code))
	put(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000))
	b.Write(code)
	return b.Bytes()
}
