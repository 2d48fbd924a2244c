package host

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// initMain is pid 1 of a host: it furnishes the namespaces, runs the tests and
// reaps until they are done. Its end kills what is left.
func initMain() int {
	if err := furnish(); err != nil {
		return fail("furnish the private host", err)
	}
	cmd, err := again("tests", Name())
	if err != nil {
		return fail("", err)
	}
	// Reaping everything would race with exec.Cmd's own wait, so the child is
	// started without one.
	p, err := os.StartProcess(cmd.Path, cmd.Args, &os.ProcAttr{
		Env: cmd.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return fail("start the tests", err)
	}
	forward := make(chan os.Signal, 4)
	signal.Notify(forward, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	go func() {
		for s := range forward {
			unix.Kill(p.Pid, s.(unix.Signal))
		}
	}()
	code := reapUntil(p.Pid)
	if left := processes(); len(left) > 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "test host: the tests left processes running:\n\t%s\n", strings.Join(left, "\n\t"))
		return 1
	}
	return code
}

// reapUntil reaps children until pid has ended, and returns its exit code.
func reapUntil(pid int) int {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fail("wait for the tests", err)
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		case got == pid:
			return status.ExitStatus()
		}
	}
}

// processes lists the processes of this pid namespace other than init.
func processes() []string {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []string
	for _, dir := range dirs {
		pid := filepath.Base(dir)
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if pid == "1" || err != nil || len(cmdline) == 0 {
			continue // gone meanwhile, or a zombie
		}
		found = append(found, pid+" "+strings.TrimRight(strings.ReplaceAll(string(cmdline), "\x00", " "), " "))
	}
	sort.Strings(found)
	return found
}

// furnish makes the new namespaces fit to live in.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := remountSys(); err != nil {
		return err
	}
	for _, dir := range []string{"/run", "/var/lib/cni", "/etc/cni"} {
		if err := mountTmpfs(dir); err != nil {
			return err
		}
	}
	// "ip netns" binds this directory over itself at its first use, and would
	// cover namespaces that were bound there before.
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := mountTmpfs("/run/netns"); err != nil {
		return err
	}
	if err := unix.Mount("", "/run/netns", "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make /run/netns shared: %w", err)
	}
	return raiseLoopback()
}

// mountTmpfs covers a directory, if it is there, by an empty one.
func mountTmpfs(dir string) error {
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	return nil
}

// remountSys mounts a sysfs that shows the new network namespace, and puts the
// mounts that belong into it back: cgroups, SELinux, and AppArmor's profiles.
func remountSys() error {
	kept := map[string]int{}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/selinux", "/sys/kernel/security"} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("keep %s: %w", dir, err)
		}
		defer unix.Close(fd)
		kept[dir] = fd
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for dir, fd := range kept {
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("put %s back: %w", dir, err)
		}
	}
	return nil
}

// raiseLoopback sets lo up.
func raiseLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// removeCgroups removes the cgroup called name at the top of every hierarchy.
// Its processes ended with the pid namespace.
func removeCgroups(name string) error {
	tops, _ := filepath.Glob("/sys/fs/cgroup/" + name)
	below, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	var errs []error
	for _, top := range append(tops, below...) {
		var dirs []string
		filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- { // children come after their parent
			if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dirs[i], err))
			}
		}
	}
	return errors.Join(errs...)
}
