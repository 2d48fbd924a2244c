package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/sys"
)

// Open opens the descriptors that the program's slots name (namespaces, cgroup
// files, bind sources, the root mount), in slot order. On an error none stays
// open. Mounts are detached: closing their descriptors is all it takes to undo
// them. given are the descriptors that only the caller has, of a program that
// wants some; it keeps its own.
func (p *Program) Open(given ...*os.File) ([]*os.File, error) {
	files := make([]*os.File, 0, len(p.slots))
	for i := range p.slots {
		var f *os.File
		var err error
		switch {
		case p.slots[i].kind != slotGiven:
			f, err = p.slots[i].open()
		case len(given) == 0:
			err = errors.New("was not given")
		default:
			f, err = sys.Dup(given[0])
			given = given[1:]
		}
		if err != nil {
			sys.CloseAll(files)
			return nil, fmt.Errorf("%s: %w", p.slots[i].label, err)
		}
		files = append(files, f)
	}
	return files, nil
}

func (s *slot) open() (*os.File, error) {
	switch s.kind {
	case slotFile:
		fd, err := unix.Open(s.path, int(s.flags)|unix.O_CLOEXEC, 0)
		if s.target && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)) {
			return nil, fmt.Errorf("open %s: %w (%w)", s.path, err, os.ErrProcessDone)
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", s.path, err)
		}
		return os.NewFile(uintptr(fd), s.path), nil
	case slotPidfd:
		pid, err := strconv.Atoi(s.path)
		if err != nil {
			return nil, err
		}
		return sys.OpenPidfd(pid, 0)
	case slotMemfd:
		return s.openMemfd()
	case slotTree:
		return s.openTree()
	case slotOverlay:
		return s.openOverlay()
	case slotUserns:
		return s.idmap.open()
	}
	return nil, fmt.Errorf("unknown slot kind %d", s.kind)
}

// openMemfd makes an executable file that nobody can change any more.
func (s *slot) openMemfd() (*os.File, error) {
	fd, err := unix.MemfdCreate(s.path, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate(s.path, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), s.path)
	if _, err = f.Write(s.content); err == nil {
		const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openTree copies the mounts at path, with attributes and propagation set
// before anybody can see the copy.
func (s *slot) openTree() (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if s.flags&treeRecursive != 0 {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, s.path, flags)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	f := os.NewFile(uintptr(fd), s.path)
	if err := idmapMount(fd, s.idmap, s.flags&treeIdmapRecurses != 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: idmap: %w", s.path, err)
	}
	steps := []struct {
		what      string
		recursive bool
		attr      unix.MountAttr
	}{
		{"set mount attributes", true, unix.MountAttr{Attr_set: s.rset, Attr_clr: s.rclear}},
		{"set mount attributes", false, unix.MountAttr{Attr_set: s.set, Attr_clr: s.clear}},
		// A copy of a shared mount is its peer: without this, what the
		// container mounts below would appear on the host.
		{"set propagation", s.flags&treePropagateRecurses != 0, unix.MountAttr{Propagation: s.propagation}},
	}
	for _, step := range steps {
		if err := setMountAttr(fd, step.recursive, step.attr); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: %s: %w", s.path, step.what, err)
		}
	}
	return f, nil
}

func setMountAttr(fd int, recursive bool, attr unix.MountAttr) error {
	if attr == (unix.MountAttr{}) {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &attr)
}

// Mount mounts an overlay, detached, for who hands it to another runtime. The
// specification has the mappings of one that is IDMapped.
func (o *Overlay) Mount(spec *specs.Spec) (*os.File, error) {
	s := slot{kind: slotOverlay, lower: o.Lower, upper: o.Upper, work: o.Work, mountOptions: o.Options}
	if o.IDMapped {
		c := compiler{spec: spec}
		if s.idmap = c.userMaps(); s.idmap == nil {
			return nil, errors.New("linux.uidMappings: an idmapped root needs uid and gid mappings")
		}
	}
	return s.openOverlay()
}

// openOverlay mounts an overlay, detached.
func (s *slot) openOverlay() (*os.File, error) {
	if s.idmap != nil {
		return s.openIDMapped()
	}
	var lower []layer
	for _, dir := range s.lower {
		lower = append(lower, layer{dir, -1})
	}
	return s.mountOverlay(lower, layer{s.upper, -1}, layer{s.work, -1})
}

func (s *slot) mountOverlay(lower []layer, upper, work layer) (*os.File, error) {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(ctx)
	if err := s.overlayLayers(ctx, lower, upper, work); err != nil {
		return nil, err
	}
	for _, o := range s.mountOptions {
		key, value, isString := strings.Cut(o, "=")
		if isString {
			err = unix.FsconfigSetString(ctx, key, value)
		} else {
			err = unix.FsconfigSetFlag(ctx, key)
		}
		if err != nil {
			return nil, fmt.Errorf("overlay option %s: %w", o, kernelSays(ctx, err))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", kernelSays(ctx, err))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, int(s.set))
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", kernelSays(ctx, err))
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// overlayLayers gives the layers one by one ("lowerdir+", Linux 6.7), which
// has no limit of a page as the classic option has.
func (s *slot) overlayLayers(ctx int, lower []layer, upper, work layer) error {
	for i, l := range lower {
		err := l.set(ctx, "lowerdir+")
		if errors.Is(err, unix.EINVAL) && i == 0 {
			err = fmt.Errorf("%w (needs Linux 6.7)", err)
		}
		if err != nil {
			return fmt.Errorf("overlay layer %s: %w", l.path, kernelSays(ctx, err))
		}
	}
	if s.upper == "" {
		return nil
	}
	if err := upper.set(ctx, "upperdir"); err != nil {
		return fmt.Errorf("overlay upper directory %s: %w", s.upper, kernelSays(ctx, err))
	}
	if err := work.set(ctx, "workdir"); err != nil {
		return fmt.Errorf("overlay work directory %s: %w", s.work, kernelSays(ctx, err))
	}
	return nil
}

// kernelSays adds what a file system context logged about an error, such as
// which layer it could not find.
func kernelSays(ctx int, err error) error {
	buf := make([]byte, 1024)
	var texts []string
	for {
		n, rerr := unix.Read(ctx, buf)
		if rerr != nil || n <= 0 {
			break
		}
		texts = append(texts, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
		buf = make([]byte, 1024)
	}
	if len(texts) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(texts, "; "))
}
