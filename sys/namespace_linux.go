package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace kinds, named as in /proc/PID/ns.
const (
	NetNamespace = "net"
	IPCNamespace = "ipc"
	UTSNamespace = "uts"
)

var namespaceFlag = map[string]int{
	NetNamespace: unix.CLONE_NEWNET,
	IPCNamespace: unix.CLONE_NEWIPC,
	UTSNamespace: unix.CLONE_NEWUTS,
}

// NewNamespaces makes one namespace of each kind and binds it to dir/KIND, so
// that it lives until ReleaseNamespace. setup, if not nil, runs on a thread
// inside all of them before they are bound, for what can only be done from
// inside (hostname, sysctls); it must not start goroutines that rely on it.
// On an error nothing stays behind.
func NewNamespaces(dir string, kinds []string, setup func() error) error {
	flags := 0
	for _, k := range kinds {
		f, ok := namespaceFlag[k]
		if !ok {
			return fmt.Errorf("namespace kind %q is not one of net, ipc, uts", k)
		}
		flags |= f
	}
	return OnDisposableThread(func() error {
		return newNamespaces(dir, kinds, flags, setup)
	})
}

// OnDisposableThread runs f on a thread that ends with it, so that f may leave
// the thread in other namespaces. It is never the process's first thread: that
// one cannot end, and would keep a namespace alive and show it in /proc/self.
func OnDisposableThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Hold the first thread while another goroutine, which therefore
			// gets another thread, does the work.
			done <- OnDisposableThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f() // never unlocked: the runtime ends the thread
	}()
	return <-done
}

func newNamespaces(dir string, kinds []string, flags int, setup func() error) (err error) {
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare %v: %w", kinds, err)
	}
	if setup != nil {
		if err := setup(); err != nil {
			return err
		}
	}
	var bound []string
	defer func() {
		if err == nil {
			return
		}
		for _, path := range bound {
			err = errors.Join(err, ReleaseNamespace(path))
		}
	}()
	for _, k := range kinds {
		path := filepath.Join(dir, k)
		if err := bindNamespace("/proc/thread-self/ns/"+k, path); err != nil {
			return err
		}
		bound = append(bound, path)
	}
	return nil
}

// bindNamespace binds a namespace to a path where no file is yet.
func bindNamespace(ns, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind namespace %s to %s: %w", ns, path, err), os.Remove(path))
	}
	return nil
}

// NewNetFile makes a network namespace that lives as long as the file, and so
// no longer than the process, and whatever is in it.
func NewNetFile() (ns *os.File, err error) {
	err = OnDisposableThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare %s: %w", NetNamespace, err)
		}
		ns, err = os.Open("/proc/thread-self/ns/" + NetNamespace)
		return err
	})
	return ns, err
}

// FilePath is a path by which this process can reach an open file.
func FilePath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// BindNamespace binds an open namespace to a path where no file is yet, so that
// it lives until ReleaseNamespace.
func BindNamespace(ns *os.File, path string) error { return bindNamespace(FilePath(ns), path) }

// ReleaseNamespace undoes the binding of a namespace file. A file that is
// missing or not a mount is no error.
func ReleaseNamespace(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// InNetNamespace runs f on a thread that has joined the network namespace at
// path, and ends that thread afterwards.
func InNetNamespace(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return OnDisposableThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join network namespace %s: %w", path, err)
		}
		return f()
	})
}
