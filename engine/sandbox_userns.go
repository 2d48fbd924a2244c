package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/engine/internal/spec"
	"podstead/sys"
)

// usernsPath is the sandbox's user namespace, "" for the host's.
func (e *Engine) usernsPath(r *sandboxRecord) string {
	if !r.userNamespace() {
		return ""
	}
	return e.namespacePath(r.ID, userNamespace)
}

// makeUserNamespace makes the pod's namespaces inside a user namespace, to which
// they then belong. No process of Go's can enter one, so a pause process is
// born in them, and they are bound from there. It stays only if the pod shares
// its pid namespace.
func (e *Engine) makeUserNamespace(ctx context.Context, s *sandbox) error {
	rec := s.record()
	if err := os.MkdirAll(e.sandboxRunDir(s.id), 0o700); err != nil {
		return err
	}
	u := rec.namespaces().GetUsernsOptions()
	sp := &specs.Spec{Linux: &specs.Linux{
		UIDMappings: spec.IDMappings(u.Uids), GIDMappings: spec.IDMappings(u.Gids),
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
		},
	}}
	kinds := []string{userNamespace, sys.IPCNamespace}
	if !rec.hostNetwork() {
		sp.Hostname = rec.Hostname
		sp.Linux.Namespaces = append(sp.Linux.Namespaces,
			specs.LinuxNamespace{Type: specs.NetworkNamespace}, specs.LinuxNamespace{Type: specs.UTSNamespace})
		kinds = append(kinds, sys.NetNamespace, sys.UTSNamespace)
	}
	pid, err := e.pause(ctx, s, sp)
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		if err := bindNamespace(pid, kind, e.namespacePath(s.id, kind)); err != nil {
			return err
		}
	}
	if rec.Pause {
		return nil
	}
	if err := e.endPause(ctx, &rec); err != nil {
		return err
	}
	s.mu.Lock()
	s.rec.PausePid = 0
	s.mu.Unlock()
	return nil
}

// bindNamespace keeps a namespace of a process alive at path.
func bindNamespace(pid int, kind, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(filepath.Join("/proc", strconv.Itoa(pid), "ns", kind), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s namespace to %s: %w", kind, path, err)
	}
	return nil
}

// becomeRootOf makes the calling thread, which must be disposable, the root of
// the pod's user namespace towards files that belong to it: in /proc/sys, those
// of its IPC namespace ask for the owner and not for privileges, and those of
// its network namespace for privileges.
func becomeRootOf(r *sandboxRecord) error {
	if !r.userNamespace() {
		return nil
	}
	uid, gid := r.mappedRoot()
	// The raw calls concern this thread alone.
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
		return os.NewSyscallError("setresgid", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
		return os.NewSyscallError("setresuid", e)
	}
	return nil
}
