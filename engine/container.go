package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/engine/internal/disk"
	"podstead/engine/internal/figure"
	"podstead/engine/internal/selinux"
	"podstead/engine/internal/spec"
	"podstead/engine/internal/store"
	"podstead/supervisor"
)

type containerPhase string

// See the diagram in the package's documentation.
const (
	containerCreating containerPhase = "creating"
	containerCreated  containerPhase = "created"
	containerRunning  containerPhase = "running"
	containerExited   containerPhase = "exited"
)

// Reasons of an exit, as ContainerStatus gives them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "Unknown"
)

// Exit codes of processes whose own is not known.
const (
	exitStartError = 128
	exitKilled     = 137 // as a shell counts SIGKILL
	exitUnknown    = 255
)

// containerRecord is what is kept of a container.
type containerRecord struct {
	ID, SandboxID string
	Config        store.Message[runtimeapi.ContainerConfig, *runtimeapi.ContainerConfig]
	Fingerprint   string
	Runtime       config.Handler // as the sandbox's
	Phase         containerPhase
	BootID        string

	ImageID, ImageRef, ImageName string
	User                         spec.User
	Cgroup                       string
	LogPath                      string
	StopSignal                   int
	StopSignalName               runtimeapi.Signal
	// Resources are those in force; Config has those of the creation.
	Resources store.Message[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources]
	// DefaultSeccomp says that the specification's filter is the runtime's
	// default, which is not saved with it.
	DefaultSeccomp bool
	// Stdio are the names of what the process got as descriptors 0, 1 and 2, see
	// criu.Stdio.
	Stdio []string
	// FromCheckpoint tells that the process is restored instead of executed.
	FromCheckpoint bool
	// Labels are SELinux's, zero where they have no effect.
	Labels selinux.Labels
	// LateHooks says that the specification has hooks of the start or the end
	// which the handler leaves to the engine; StartHooks that those of the start
	// run, or were running when the engine ended; PoststopDue that those of the
	// end have not run.
	LateHooks, StartHooks, PoststopDue bool
	// Project is that of the files in upper and work, 0 if they have none.
	Project uint32
	// ImageMounts are mount points of images below the container's directory.
	ImageMounts []string

	// PreparedAt is the end of the creation that began at CreatedAt.
	CreatedAt, PreparedAt, StartedAt, FinishedAt time.Time
	Pid                                          int
	StartTicks                                   uint64
	// OOMKills is the cgroup's counter at the start: later ones are this run's.
	OOMKills uint64
	ExitCode int32
	Reason   string
	Message  string
}

func (r *containerRecord) config() *runtimeapi.ContainerConfig { return r.Config.M }

func (r *containerRecord) name() string {
	return containerName(r.SandboxID, r.config().GetMetadata())
}

func containerName(sandboxID string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("container %s (attempt %d) of pod sandbox %s", m.GetName(), m.GetAttempt(), sandboxID)
}

// container is a container.
type container struct {
	id, sandboxID string
	turn          turn
	starting      shared
	removing      shared
	stops         stops
	exited        chan struct{} // closed when the exit is recorded
	told          chan struct{} // closed when plugins know of the exit
	cpu           figure.CPUClock
	layer         disk.Layer // what the writable layer takes
	execs         handler.Execs

	saving sync.Mutex // orders writes of the record
	gone   bool       // guarded by saving: the record is deleted, and is not to come back
	mu     sync.Mutex
	rec    containerRecord
	spec   *specs.Spec
	// While a start is under way its outcome decides what an exit means: the
	// exit waits in early.
	startUnderWay bool
	early         *supervisor.Process
	// restoring is what the start of a container from a checkpoint needs. It does
	// not survive the engine.
	restoring *handler.Restoring
	// startTold says that a caller knows of the start. Until then asking again
	// is a retry and no mistake.
	startTold bool
	// endStart ends the start's hooks, if they are what it waits for.
	endStart context.CancelFunc
	evicted  string // why, if an NRI plugin wants it to end
}

func newContainer(rec containerRecord) *container {
	c := &container{
		id: rec.ID, sandboxID: rec.SandboxID, turn: newTurn(),
		exited: make(chan struct{}), told: make(chan struct{}), rec: rec,
		startTold: rec.Phase == containerExited,
	}
	if rec.Phase == containerExited {
		close(c.exited)
		close(c.told)
	}
	return c
}

func (c *container) record() containerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// changeContainer edits the record and saves it.
func (e *Engine) changeContainer(c *container, edit func(*containerRecord)) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	edit(&c.rec)
	rec := c.rec
	c.mu.Unlock()
	if c.gone {
		return nil
	}
	return e.containerRecords.Put(c.id, rec)
}

// containerFile is a file of the container's own directory.
func (e *Engine) containerFile(id, name string) string {
	return filepath.Join(e.containerRecords.Path(id), name)
}

const specFile = "config.json"

// saveSpec keeps the specification for later execs. The default filter, by far
// its largest part, is made anew instead.
func (e *Engine) saveSpec(c *container, s *specs.Spec, defaultSeccomp bool) error {
	saved := *s
	if defaultSeccomp {
		l := *s.Linux
		l.Seccomp = nil
		saved.Linux = &l
	}
	b, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	return os.WriteFile(e.containerFile(c.id, specFile), b, 0o600)
}

// specification returns the container's OCI specification, from disk after a
// restart of the engine.
func (e *Engine) specification(c *container) (*specs.Spec, error) {
	c.mu.Lock()
	s, defaultSeccomp := c.spec, c.rec.DefaultSeccomp
	c.mu.Unlock()
	if s != nil {
		return s, nil
	}
	b, err := os.ReadFile(e.containerFile(c.id, specFile))
	if err != nil {
		return nil, err
	}
	s = &specs.Spec{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", e.containerFile(c.id, specFile), err)
	}
	if defaultSeccomp {
		if err := e.defaultSeccomp(s); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	c.spec = s
	c.mu.Unlock()
	return s, nil
}

// releaseContainer takes apart all that a container has outside its directory,
// however far its creation came. It can be repeated.
func (e *Engine) releaseContainer(ctx context.Context, r *containerRecord) error {
	var errs []error
	step := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	// First, since it may be under way to put a process into the cgroup.
	h, err := e.handlerOf(r.Runtime)
	if err == nil {
		err = h.Delete(ctx, e.handled(r))
	}
	step("handler", err)
	if r.Cgroup != "" {
		step("remove cgroup", e.removeCgroup(ctx, r.Cgroup))
	}
	step("forget process", e.forgetProcess(ctx, r.ID))
	for _, m := range r.ImageMounts {
		step("unmount image", unmount(e.containerFile(r.ID, m)))
	}
	for _, holder := range append([]string{r.ID}, imageHolders(r)...) {
		step("release image", e.cfg.Images.Release(ctx, holder))
	}
	return errors.Join(errs...)
}

// imageHolders name the holds of mounted images.
func imageHolders(r *containerRecord) []string {
	var holders []string
	for _, m := range r.ImageMounts {
		holders = append(holders, r.ID+"/"+m)
	}
	return holders
}

// forgetContainer removes what is left of a released container: record,
// writable layer and name. The log stays.
func (e *Engine) forgetContainer(c *container) error {
	c.dropRestoring()
	c.saving.Lock()
	err := e.containerRecords.Delete(c.id)
	c.gone = err == nil
	c.saving.Unlock()
	if err != nil {
		return err
	}
	e.mu.Lock()
	delete(e.containers, c.id)
	e.mu.Unlock()
	rec := c.record()
	e.containerRuns.forget(rec.name(), c.id)
	e.giveProject(&rec)
	return nil
}
