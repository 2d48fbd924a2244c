package quota

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Projects that pools make up are from first on, size of them: above those that
// the kubelet, Docker and people number from the bottom. They are drawn by lot,
// so that pools need not know of each other, and that nobody who can change the
// project of files can guess whom to charge.
const (
	first = 1 << 30
	size  = 1 << 30
)

// Pool gives out projects of one file system that nobody else uses. It may be
// shared.
type Pool struct {
	*FileSystem
	etc string // where projects and projid are

	mu    sync.Mutex
	taken map[uint32]bool
	// free were given back. They are used again, because XFS never frees the
	// block of its quota file that each project costs.
	free []uint32
}

// Open makes a pool of projects for directories below dir. The error is an
// errors.ErrUnsupported if the file system there has no project quotas, or this
// process must not use them. It is found out by giving a project a file.
func Open(dir string) (*Pool, error) { return open(dir, "/etc") }

func open(dir, etc string) (*Pool, error) {
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	p := &Pool{FileSystem: &FileSystem{f}, etc: etc, taken: map[uint32]bool{}}
	if err := p.try(dir); err != nil {
		f.Close()
		if unsupported(err) {
			err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		return nil, err
	}
	return p, nil
}

// Close forgets the file system. Projects stay as they are.
func (p *Pool) Close() error { return p.dir.Close() }

// try sees that a project has what is given to it.
func (p *Pool) try(dir string) error {
	project, err := p.Take()
	if err != nil {
		return err
	}
	defer p.Give(project)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "make a file without a name in", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	if err := setProject(f, project, 0); err != nil {
		return err
	}
	u, err := p.Usage(project)
	if err == nil && u.Inodes != 1 {
		err = fmt.Errorf("%s: %w: one file of a project counts as %d", dir, errors.ErrUnsupported, u.Inodes)
	}
	return err
}

// Keep says that a project is in use, taken from a pool of a former process.
func (p *Pool) Keep(project uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken[project] = true
}

// Give gives a project back, when its files are gone. A file that is deleted and
// still open keeps it from being taken again.
func (p *Pool) Give(project uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[project] {
		delete(p.taken, project)
		p.free = append(p.free, project)
	}
}

// Add gives an empty directory a project of its own, of which the directory is the
// only record: Measure reads it there, and it is free when the directory and what
// is in it are gone. That is for directories whose project nobody else can change.
func (p *Pool) Add(dir string) error {
	project, err := p.Take()
	if err != nil {
		return err
	}
	defer p.Give(project) // what has a file is not taken again
	return Assign(dir, project)
}

// Measure tells what is in a directory that was added; ok is false for others, and
// if the kernel does not tell.
func (p *Pool) Measure(dir string) (u Usage, ok bool) {
	project, err := projectOf(dir)
	if err != nil || project < first || project-first >= size {
		return u, false
	}
	u, err = p.Usage(project)
	return u, err == nil && u.Inodes > 0
}

// Take returns a project that has no files and no limits, that no file of /etc
// names, and that nobody else gets until it is given back.
func (p *Pool) Take() (uint32, error) {
	named, err := p.named()
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	usable := func(project uint32) (bool, error) {
		if p.taken[project] || named[project] {
			return false, nil
		}
		return p.idle(project)
	}
	for i, project := range p.free {
		ok, err := usable(project)
		if err != nil {
			return 0, err
		}
		if ok {
			p.free = append(p.free[:i:i], p.free[i+1:]...)
			p.taken[project] = true
			return project, nil
		}
	}
	for range 100 {
		project := first + rand.Uint32N(size)
		ok, err := usable(project)
		if err != nil {
			return 0, err
		}
		if ok {
			p.taken[project] = true
			return project, nil
		}
	}
	return 0, errors.New("no quota project is free")
}

// named are the projects that the host's administrator, or a program in their
// name, has given a name or a directory.
func (p *Pool) named() (map[uint32]bool, error) {
	out := map[uint32]bool{}
	for file, field := range map[string]int{"projects": 0, "projid": 1} {
		f, err := os.Open(filepath.Join(p.etc, file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(f, 16<<20))
		f.Close()
		if err != nil {
			return nil, err
		}
		listed(string(b), field, out)
	}
	return out, nil
}

// listed adds the projects in a field of the lines of a file like
//
//	/etc/projects   10:/srv/data
//	/etc/projid     data:10
//
// What it does not understand it passes over, as others do.
func listed(text string, field int, out map[uint32]bool) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		if f := strings.Split(line, ":"); len(f) > field {
			if n, err := strconv.ParseUint(strings.TrimSpace(f[field]), 0, 32); err == nil {
				out[uint32(n)] = true
			}
		}
	}
}
