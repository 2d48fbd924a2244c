package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"podstead/sys"
)

// File is a manifest file and what it defines.
type File struct {
	Path     string
	Objects  []Object
	Warnings []string
	// Err says why the file cannot be used as it is now; Objects are then those
	// of its last good version, if there was one.
	Err   error
	Since time.Time // of Err
}

// Files watches a directory of manifests.
type Files struct {
	Dir string // or a single file
	// KeepDir is where the last good version of each file is kept, so that a
	// broken edit ends nothing, not even across a restart.
	KeepDir string
	Decoder *Decoder
	Log     *slog.Logger

	last map[string]version
	told map[string]bool // names that are not read
}

// version is what was last seen of a file.
type version struct {
	sum  [sha256.Size]byte
	file File
}

const (
	// settle is how long the directory must be quiet before it is read, so that
	// a file is not read while it is being written; maxSettle bounds the wait.
	settle    = 5 * time.Millisecond
	maxSettle = 100 * time.Millisecond
	// rescan is the pace of looking without being told: network file systems
	// tell nothing.
	rescan = time.Minute
	// recheck is how soon a file that cannot be used is looked at again.
	recheck = 250 * time.Millisecond
)

// Run sends the state of all files whenever it changes, first at once, until
// ctx ends. The directory need not exist, and may come and go.
func (f *Files) Run(ctx context.Context, out chan<- []File) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.Dir, err)
	}
	defer w.Close()
	watched := map[string]bool{}
	first := true
	for {
		f.follow(w, watched)
		files, changed := f.Scan()
		if changed || first {
			first = false
			select {
			case out <- files:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		pause := rescan
		if changed && slices.ContainsFunc(files, func(x File) bool { return x.Err != nil }) {
			pause = recheck
		}
		if err := f.wait(ctx, w, pause); err != nil {
			return err
		}
	}
}

// wait returns when something happened and the directory has become quiet.
func (f *Files) wait(ctx context.Context, w *fsnotify.Watcher, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	var deadline time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("watch " + f.Dir + ": closed")
			}
			f.Log.Warn("watch manifests", "dir", f.Dir, "error", err)
			return nil // events may have been lost: look
		case _, ok := <-w.Events:
			if !ok {
				return errors.New("watch " + f.Dir + ": closed")
			}
			now := time.Now()
			if deadline.IsZero() {
				deadline = now.Add(maxSettle)
			}
			timer.Reset(max(0, min(settle, deadline.Sub(now))))
		}
	}
}

// follow watches every directory in which a change could change what the
// manifests say: the directory, what its path's symbolic links pass through,
// the parents that exist while it does not, and where linked files live.
func (f *Files) follow(w *fsnotify.Watcher, watched map[string]bool) {
	want := map[string]bool{}
	chain(f.Dir, want)
	entries, _ := os.ReadDir(f.Dir)
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink != 0 && isManifest(e.Name()) {
			chain(filepath.Join(f.Dir, e.Name()), want)
		}
	}
	for dir := range watched {
		if !want[dir] {
			w.Remove(dir) // a directory that is gone was dropped already
			delete(watched, dir)
		}
	}
	for dir := range want {
		// Add anew each time: the name may lead to another directory by now.
		if err := w.Add(dir); err == nil {
			watched[dir] = true
		}
	}
}

// chain adds to want the directory at path, or that of the file, the
// directories of all links on the way, and the nearest parent that exists.
func chain(path string, want map[string]bool) {
	for range 16 { // links to links
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			want[path] = true
		}
		parent := filepath.Dir(path)
		for parent != filepath.Dir(parent) {
			if st, err := os.Stat(parent); err == nil && st.IsDir() {
				break
			}
			parent = filepath.Dir(parent)
		}
		want[parent] = true
		target, err := os.Readlink(path)
		if err != nil {
			return
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
}

func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// Scan reads the directory and tells whether anything differs from last time.
func (f *Files) Scan() (files []File, changed bool) {
	names, err := f.list()
	if err != nil {
		// Unreadable is not empty: what was there stays.
		f.Log.Error("read manifests", "dir", f.Dir, "error", err)
		for _, v := range f.last {
			files = append(files, v.file)
		}
		sortFiles(files)
		return files, f.last == nil
	}
	next := map[string]version{}
	for _, name := range names {
		v, ok := f.read(filepath.Join(f.Dir, name))
		if !ok {
			continue
		}
		next[v.file.Path] = v
		files = append(files, v.file)
		old, had := f.last[v.file.Path]
		changed = changed || !had || old.sum != v.sum || (old.file.Err == nil) != (v.file.Err == nil)
	}
	for path := range f.last {
		if _, still := next[path]; !still {
			changed = true
		}
	}
	if f.last == nil {
		f.dropOthers(next)
		changed = true
	} else {
		for path := range f.last {
			if _, still := next[path]; !still {
				os.Remove(f.kept(path))
			}
		}
	}
	f.last = next
	sortFiles(files)
	return files, changed
}

func sortFiles(files []File) {
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
}

func (f *Files) list() (names []string, err error) {
	entries, err := os.ReadDir(f.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if st, statErr := os.Stat(f.Dir); err != nil && statErr == nil && st.Mode().IsRegular() {
		return []string{""}, nil
	}
	for _, e := range entries {
		if isManifest(e.Name()) {
			names = append(names, e.Name())
		} else {
			f.passOver(e)
		}
	}
	return names, err
}

// passOver says, once, of a file that it is not read: a kubelet would. Hidden files
// and what editors leave behind are nobody's.
func (f *Files) passOver(e fs.DirEntry) {
	name := e.Name()
	if e.IsDir() || strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") || f.told[name] {
		return
	}
	if f.told == nil {
		f.told = map[string]bool{}
	}
	f.told[name] = true
	f.Log.Warn("a file is not read: its name does not end with .yaml, .yml or .json", "file", filepath.Join(f.Dir, name))
}

// read reads and decodes one file; ok is false if it is not there.
func (f *Files) read(path string) (v version, ok bool) {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, false // gone meanwhile, or a link to nothing
	}
	old, had := f.last[path]
	if err == nil {
		v.sum = sha256.Sum256(data)
		if had && old.sum == v.sum {
			return old, true
		}
		v.file = File{Path: path}
		if len(data) == 0 && f.defined(path) {
			// So it is for a moment when it is written anew.
			err = errors.New("is empty; remove the file to remove what it defines")
		} else {
			v.file.Objects, v.file.Warnings, err = f.Decoder.Decode(data)
		}
	}
	if err == nil {
		f.keep(path, data)
		return v, true
	}
	v.file = File{Path: path, Err: err, Since: time.Now()}
	if had {
		v.file.Objects = old.file.Objects
	} else if data, err := os.ReadFile(f.kept(path)); err == nil {
		v.file.Objects, v.file.Warnings, _ = f.Decoder.Decode(data)
	}
	return v, true
}

// defined tells whether a file that is now empty had something in it.
func (f *Files) defined(path string) bool {
	if old, had := f.last[path]; had {
		return len(old.file.Objects) > 0
	}
	st, err := os.Stat(f.kept(path))
	return err == nil && st.Size() > 0
}

// readFile reads a regular file of a bearable size; it does not block on a pipe.
func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if st.Size() > maxManifest {
		return nil, fmt.Errorf("%d bytes, more than %d", st.Size(), maxManifest)
	}
	return os.ReadFile(path)
}

// kept is where the last good version of a file is.
func (f *Files) kept(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(f.KeepDir, hex.EncodeToString(sum[:12]))
}

func (f *Files) keep(path string, data []byte) {
	if f.KeepDir == "" {
		return
	}
	err := os.MkdirAll(f.KeepDir, 0o700)
	if err == nil {
		err = sys.WriteFileAtomic(f.kept(path), data, 0o600, false)
	}
	if err != nil {
		f.Log.Warn("keep the good version of a manifest", "file", path, "error", err)
	}
}

// dropOthers removes kept versions of files that are not there any more.
func (f *Files) dropOthers(now map[string]version) {
	if f.KeepDir == "" {
		return
	}
	want := map[string]bool{}
	for path := range now {
		want[f.kept(path)] = true
	}
	entries, _ := os.ReadDir(f.KeepDir)
	for _, e := range entries {
		if p := filepath.Join(f.KeepDir, e.Name()); !want[p] {
			os.Remove(p)
		}
	}
}
