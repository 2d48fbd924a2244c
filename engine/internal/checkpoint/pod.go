package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A pod's checkpoint is a directory:
//
//	container-0.tar  an archive for each container
//	pod.dump         which pod
//	pod.options      version, and the containers' names in the archives' order
const (
	podDumpFile    = "pod.dump"
	podOptionsFile = "pod.options"
	podVersion     = 1
)

// Pod tells what a pod's checkpoint is of.
type Pod struct {
	Name, Namespace, UID, Hostname string
	Containers                     []string // names, in the order of the archives
}

// The forms on disk are checkpointctl's.
type (
	podDump struct {
		Metadata podMetadata `json:"metadata"`
		Hostname string      `json:"hostname"`
	}
	podMetadata struct {
		Name      string `json:"name"`
		UID       string `json:"uid"`
		Namespace string `json:"namespace"`
	}
	podOptions struct {
		Version    int      `json:"version"`
		Containers []string `json:"containers,omitempty"`
	}
)

// maxContainers bounds a pod.
const maxContainers = 1000

// ContainerFile is the archive of the nth container. Names of containers are not
// used as names of files.
func ContainerFile(n int) string { return fmt.Sprintf("container-%d.tar", n) }

// WritePod writes what tells that the checkpoint in a directory is whole, last.
func WritePod(dir string, p Pod) error {
	d := Dir(dir)
	if err := d.write(podDumpFile, podDump{podMetadata{p.Name, p.UID, p.Namespace}, p.Hostname}); err != nil {
		return err
	}
	b, err := json.Marshal(podOptions{podVersion, p.Containers})
	if err != nil {
		return err
	}
	f, commit, err := createLater(d.path(podOptionsFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return commit()
}

// RemovePod removes what WritePod has written.
func RemovePod(dir string) error {
	var errs []error
	for _, name := range []string{podDumpFile, podOptionsFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ReadPod reads the list of containers.
func ReadPod(dir string) (Pod, error) {
	var o podOptions
	if err := Dir(dir).read(podOptionsFile, &o); err != nil {
		return Pod{}, err
	}
	if o.Version != podVersion {
		return Pod{}, fmt.Errorf("%s: version %d, not %d: %w", podOptionsFile, o.Version, podVersion, ErrFormat)
	}
	seen := map[string]bool{}
	for _, name := range o.Containers {
		if name == "" || seen[name] || len(seen) == maxContainers {
			return Pod{}, fmt.Errorf("%s: containers: %.200q is empty, there twice or too many: %w", podOptionsFile, name, ErrFormat)
		}
		seen[name] = true
	}
	var d podDump
	if err := Dir(dir).read(podDumpFile, &d); err != nil {
		return Pod{}, err
	}
	return Pod{d.Metadata.Name, d.Metadata.Namespace, d.Metadata.UID, d.Hostname, o.Containers}, nil
}
