package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/oci/internal/lazyjson"
	"podstead/oci/resctrl"
	"podstead/sys"
)

// recordVersion is raised when the record's form changes.
const recordVersion = 1

// record is what is known of a container, in state.json.
type record struct {
	Version     int               `json:"version"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Owner       string            `json:"owner"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Pid and StartTime are the container's process; 0 until it is prepared.
	Pid       int    `json:"pid"`
	StartTime uint64 `json:"startTime"`
	// Cgroup is the path of the container's own control group.
	Cgroup string `json:"cgroup"`
	// Systemd tells that the group is a unit of systemd's.
	Systemd bool `json:"systemd,omitempty"`
	// Plain tells that start and delete need not read the specification, which
	// takes longer than the rest of what they do.
	Plain bool `json:"plain,omitempty"`
	// RootMount is what was mounted at root.path before, for a container without a
	// mount namespace of its own.
	RootMount uint64 `json:"rootMount,omitempty"`
	// PrivatePids tells that the container has a pid namespace of its own, so
	// that the kernel kills all its processes with the first.
	PrivatePids bool `json:"privatePids"`
	// OwnNetwork tells that its network interfaces are not the host's.
	OwnNetwork bool `json:"ownNetwork"`
	// Stdio are the names of what the process got as descriptors 0, 1 and 2, for
	// CRIU.
	Stdio []string `json:"stdio,omitempty"`
	// RDT is the container's resctrl group, if it has one.
	RDT *resctrl.Group `json:"rdt,omitempty"`
}

func readRecord(path string) (record, error) {
	var r record
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := lazyjson.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("%s: version %d, not %d", path, r.Version, recordVersion)
	}
	return r, nil
}

func (c *container) save() error {
	b, err := json.Marshal(c.record)
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(c.file(recordFile), b, 0o600, false)
}

// Statuses beyond those of the specification.
const statusPaused specs.ContainerState = "paused"

// status asks the kernel.
func (c *container) status() (specs.ContainerState, error) {
	if c.Pid == 0 {
		return c.statusBeforePid()
	}
	if !c.alive() {
		return specs.StateStopped, nil
	}
	if _, err := os.Lstat(c.file(startSocket)); err == nil {
		return specs.StateCreated, nil
	}
	if !c.hasGroup() {
		return specs.StateRunning, nil
	}
	frozen, err := c.group().Frozen()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("container %s: %w", c.ID, err)
	}
	if frozen {
		return statusPaused, nil
	}
	return specs.StateRunning, nil
}

// statusBeforePid tells whether somebody is creating the container, or was and
// died, which leaves something to delete.
func (c *container) statusBeforePid() (specs.ContainerState, error) {
	if c.lock != nil {
		return specs.StateStopped, nil
	}
	l, err := lockDir(c.dir(), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return specs.StateCreating, nil
	}
	if err != nil {
		return "", err
	}
	l.Close()
	return specs.StateStopped, nil
}

// alive tells whether the process is there and no zombie.
func (c *container) alive() bool { return sys.Running(c.Pid, c.StartTime) }

// need returns an error unless the container has one of the statuses.
func (c *container) need(verb string, want ...specs.ContainerState) (specs.ContainerState, error) {
	now, err := c.status()
	if err != nil {
		return "", err
	}
	for _, w := range want {
		if now == w {
			return now, nil
		}
	}
	if now == specs.StateStopped && len(want) > 1 {
		return now, fmt.Errorf("cannot %s container %s: container not running (%w: %s)", verb, c.ID, ErrStatus, now)
	}
	return now, fmt.Errorf("cannot %s container %s: %w: %s, not %v", verb, c.ID, ErrStatus, now, want[0])
}

// isPlain tells whether a specification has nothing for later than create.
func isPlain(s *specs.Spec) bool {
	return s.Hooks == nil && (s.Linux.Seccomp == nil || s.Linux.Seccomp.ListenerPath == "") && hasPrivate(s, specs.MountNamespace)
}

// laterSpec is the specification for start and delete, empty if it has nothing for
// them.
func (c *container) laterSpec() (*specs.Spec, error) {
	if c.Plain {
		return &specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}}}, nil
	}
	return c.spec()
}

// spec reads the specification as it was at create.
func (c *container) spec() (*specs.Spec, error) {
	return readSpec(c.file(specFile))
}

// state is the specification's form of the record.
func (c *container) state(status specs.ContainerState) specs.State {
	s := specs.State{
		Version: Version, ID: c.ID, Status: status, Pid: c.Pid, Bundle: c.Bundle, Annotations: c.Annotations,
	}
	if status == specs.StateStopped {
		s.Pid = 0
	}
	return s
}

func readSpec(path string) (*specs.Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	if err := lazyjson.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &s, nil
}
