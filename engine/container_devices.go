package engine

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// lookUpDevices finds the nodes that a container gets, and the permissions for
// each: all of the host's if it is privileged, and those it names. A directory
// stands for all nodes in it.
func lookUpDevices(asked []*runtimeapi.Device, privileged bool) (devices []specs.LinuxDevice, access []string, err error) {
	add := func(d specs.LinuxDevice, permissions string) {
		devices = append(devices, d)
		access = append(access, permissions)
	}
	if privileged {
		if err := walkDevices("/dev", "/dev", func(d specs.LinuxDevice) { add(d, "rwm") }); err != nil {
			return nil, nil, err
		}
	}
	for i, a := range asked {
		permissions := a.Permissions
		if permissions == "" {
			permissions = "rwm"
		}
		source, err := filepath.EvalSymlinks(a.HostPath)
		if err != nil {
			return nil, nil, cri.Errorf(codes.InvalidArgument, "devices[%d].host_path: %v", i, err)
		}
		before := len(devices)
		if err := walkDevices(source, a.ContainerPath, func(d specs.LinuxDevice) { add(d, permissions) }); err != nil {
			return nil, nil, fmt.Errorf("devices[%d]: %w", i, err)
		}
		if len(devices) == before {
			return nil, nil, cri.Errorf(codes.InvalidArgument, "devices[%d].host_path: %s is not a device", i, a.HostPath)
		}
	}
	return devices, access, nil
}

// notCopied are parts of /dev that a container has its own of.
var notCopied = map[string]bool{
	"pts": true, "shm": true, "fd": true, "mqueue": true, ".lxc": true, ".lxd-mounts": true, ".udev": true,
	"console": true, "ptmx": true,
}

func walkDevices(source, target string, found func(specs.LinuxDevice)) error {
	return filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if path != source && os.IsNotExist(err) {
				return nil // a device was unplugged
			}
			return err
		}
		if filepath.Dir(path) == "/dev" && notCopied[d.Name()] && path != source {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type()&fs.ModeDevice == 0 {
			return nil
		}
		dev, err := deviceAt(path)
		if os.IsNotExist(err) && path != source {
			return nil
		}
		if err != nil {
			return err
		}
		dev.Path = target + strings.TrimPrefix(path, source)
		found(dev)
		return nil
	})
}

func deviceAt(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	d := specs.LinuxDevice{
		Type: "c", Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: new(os.FileMode(st.Mode & 0o777)), UID: &st.Uid, GID: &st.Gid,
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		d.Type = "b"
	}
	return d, nil
}

// checkBoundDevices refuses device nodes that would be something else in a user
// namespace: there none can be made, so the host's of the same path is bound.
func checkBoundDevices(s *specs.Spec) error {
	if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace }) {
		return nil
	}
	for i, d := range s.Linux.Devices {
		if d.Type == "p" {
			continue
		}
		var host specs.LinuxDevice
		path, err := filepath.EvalSymlinks(d.Path)
		if err == nil {
			host, err = deviceAt(path)
		}
		if err != nil || host.Major != d.Major || host.Minor != d.Minor || (host.Type == "b") != (d.Type == "b") {
			return cri.Errorf(codes.InvalidArgument,
				"linux.devices[%d]: the pod has a user namespace, so %s would be the host's, and that is not %s %d:%d", i, d.Path, d.Type, d.Major, d.Minor)
		}
	}
	return nil
}
