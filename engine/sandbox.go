package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/config"
	"podstead/engine/internal/figure"
	"podstead/engine/internal/pod"
	"podstead/engine/internal/selinux"
	"podstead/engine/internal/spec"
	"podstead/engine/internal/store"
	"podstead/network"
	"podstead/sys"
)

type sandboxPhase string

// See the diagram in the package's documentation.
const (
	sandboxCreating sandboxPhase = "creating"
	sandboxReady    sandboxPhase = "ready"
	sandboxStopping sandboxPhase = "stopping" // or failed half-way: something may be left
	sandboxStopped  sandboxPhase = "stopped"  // nothing is left but record and files
)

// sandboxRecord is what is kept of a pod sandbox.
type sandboxRecord struct {
	ID          string
	Config      store.Message[runtimeapi.PodSandboxConfig, *runtimeapi.PodSandboxConfig]
	Fingerprint string
	Handler     string
	Runtime     config.Handler // what Handler meant when the sandbox was made
	Phase       sandboxPhase
	CreatedAt   time.Time
	BootID      string
	Hostname    string
	IPs         []netip.Addr
	// CgroupParent holds the pod's containers; OwnCgroup says that the engine
	// made it, since nobody else had, and removes it with the sandbox.
	CgroupParent string
	OwnCgroup    bool
	// Pause is set if a pause process holds a shared pid namespace.
	Pause    bool
	PausePid int
	// When it got ready, and when it stopped being it, by whatever cause.
	ReadyAt, StoppedAt time.Time
	// Labels are SELinux's, zero where they have no effect.
	Labels selinux.Labels
	// Why a sandbox is not ready that nobody stopped.
	Message string
}

func (r *sandboxRecord) config() *runtimeapi.PodSandboxConfig { return r.Config.M }

func (r *sandboxRecord) namespaces() *runtimeapi.NamespaceOption {
	return r.config().GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (r *sandboxRecord) hostNetwork() bool {
	return r.namespaces().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func (r *sandboxRecord) hostIPC() bool {
	return r.namespaces().GetIpc() == runtimeapi.NamespaceMode_NODE
}

// userNamespace tells whether the pod has one of its own.
func (r *sandboxRecord) userNamespace() bool { return spec.HasUserNamespace(r.namespaces()) }

// mappedRoot are the host's ids of the pod's root: 0 without a user namespace.
func (r *sandboxRecord) mappedRoot() (uid, gid int) {
	if !r.userNamespace() {
		return 0, 0
	}
	u := r.namespaces().GetUsernsOptions()
	return int(u.Uids[0].HostId), int(u.Gids[0].HostId) // one mapping from 0 each: cri.Validate
}

// name is what RunPodSandbox must not be asked for twice.
func (r *sandboxRecord) name() string { return sandboxName(r.config().GetMetadata()) }

func sandboxName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("pod sandbox %s/%s (uid %s, attempt %d)", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// sandbox is a pod sandbox.
type sandbox struct {
	id       string
	turn     turn
	stopping shared
	cpu      figure.CPUClock
	removing shared

	// leftCgroup, guarded by Engine.podCgroups, says that it needs the pod's
	// cgroup no more.
	leftCgroup bool

	saving sync.Mutex // orders writes of the record
	gone   bool       // guarded by saving: the record is deleted, and is not to come back
	mu     sync.Mutex
	rec    sandboxRecord
}

func (s *sandbox) record() sandboxRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec
}

// change edits the record and saves it, unless it was deleted meanwhile: what
// comes late, as the end of a process does, does not bring its directory back.
func (e *Engine) changeSandbox(s *sandbox, edit func(*sandboxRecord)) error {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	edit(&s.rec)
	rec := s.rec
	s.mu.Unlock()
	if s.gone {
		return nil
	}
	return e.sandboxRecords.Put(s.id, rec)
}

// runDir is where a sandbox's namespaces and shared memory are mounted.
func (e *Engine) sandboxRunDir(id string) string { return filepath.Join(e.cfg.RunDir, "sandboxes", id) }

// namespacePath is the file that a namespace of the sandbox is bound to.
func (e *Engine) namespacePath(id, kind string) string {
	return filepath.Join(e.sandboxRunDir(id), kind)
}

// netnsPath is the sandbox's network namespace, "" for the host's.
func (e *Engine) netnsPath(r *sandboxRecord) string {
	if r.hostNetwork() {
		return ""
	}
	return e.namespacePath(r.ID, sys.NetNamespace)
}

// networkPod describes the sandbox to package network.
func (e *Engine) networkPod(r *sandboxRecord, netns string) network.Pod {
	return pod.Network(r.ID, netns, r.CgroupParent, r.config())
}

// releaseSandbox takes apart all that a sandbox has in the kernel, however far
// its creation came. It can be repeated; the network goes first, since only the
// record knows of it.
func (e *Engine) releaseSandbox(ctx context.Context, r *sandboxRecord) error {
	var errs []error
	step := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	step("handler", e.removePodOfHandler(ctx, r))
	if r.Pause || r.userNamespace() {
		step("end pause process", e.endPause(ctx, r))
	}
	if !r.hostNetwork() {
		netns := e.netnsPath(r)
		if !isNamespace(netns) {
			netns = "" // gone with a reboot, or never made
		}
		step("tear down network", e.cfg.Network.Teardown(ctx, e.networkPod(r, netns)))
	}
	for _, kind := range namespaceKinds {
		step("release namespace", sys.ReleaseNamespace(e.namespacePath(r.ID, kind)))
	}
	shm := filepath.Join(e.sandboxRunDir(r.ID), "shm")
	step("unmount shared memory", unmount(shm))
	if len(errs) == 0 {
		step("remove run directory", os.RemoveAll(e.sandboxRunDir(r.ID)))
	}
	step("remove cgroup", e.releasePodCgroup(ctx, r))
	return errors.Join(errs...)
}

// endPause kills the pause process, and with it whatever is left in the pid
// namespace.
func (e *Engine) endPause(ctx context.Context, r *sandboxRecord) error {
	if err := e.removeCgroup(ctx, pauseCgroup(r)); err != nil {
		return err
	}
	return e.forgetProcess(ctx, r.ID)
}

func pauseCgroup(r *sandboxRecord) string { return memberCgroup(r.CgroupParent, r.ID) }

// removeCgroup kills what is in a group and removes it.
func (e *Engine) removeCgroup(ctx context.Context, path string) error {
	g := e.cfg.Cgroups.Group(path)
	if err := g.Kill(ctx); err != nil {
		return err
	}
	return g.Remove(ctx)
}

// namespaceKinds are all that can be bound below a sandbox's run directory.
var namespaceKinds = []string{sys.NetNamespace, sys.IPCNamespace, sys.UTSNamespace, userNamespace}

// userNamespace is named as in /proc/PID/ns.
const userNamespace = "user"

// isNamespace tells whether path has a namespace bound to it.
func isNamespace(path string) bool {
	const nsfsMagic = 0x6e736673
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == nsfsMagic
}

// unmount detaches a mount; one that is not there is no error.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

func encodeFingerprint(f fingerprint) string { return hex.EncodeToString(f[:]) }

func decodeFingerprint(s string) (f fingerprint) {
	if b, err := hex.DecodeString(s); err == nil && len(b) == sha256.Size {
		copy(f[:], b)
	}
	return f
}

// pidNamespace is the path of a process's pid namespace.
func pidNamespace(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/pid" }
