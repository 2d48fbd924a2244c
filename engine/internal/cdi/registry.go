package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"google.golang.org/grpc/codes"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"podstead/cri"
)

// Registry knows the devices that the files of some directories describe. It
// may be shared.
type Registry struct {
	mu    sync.Mutex
	dirs  []string          // the later ones win
	seen  map[string]string // path of each file and directory → what tells a change
	cache *cdi.Cache        // nil until the directories have been read
	bad   []string          // directories that cannot be read, and why
}

// New returns a registry of the devices described in dirs. They need not exist.
func New(dirs []string) *Registry { return &Registry{dirs: dirs} }

// SetDirs changes where the files are.
func (r *Registry) SetDirs(dirs []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.dirs, dirs) {
		r.dirs, r.seen, r.cache, r.bad = dirs, nil, nil, nil
	}
}

// State is what a person may want to know of a registry.
type State struct {
	Dirs    []string `json:"dirs"`
	Devices []string `json:"devices"`
	// Problems name files that cannot be used, and devices that files of the
	// same directory both describe and that therefore nobody gets.
	Problems []string `json:"problems,omitempty"`
}

// State tells what the registry has.
func (r *Registry) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
	s := State{Dirs: r.dirs, Devices: []string{}, Problems: r.problems()}
	if r.cache != nil {
		s.Devices = append(s.Devices, r.cache.ListDevices()...)
	}
	return s
}

// find looks devices up.
func (r *Registry) find(names []string) ([]*cdi.Device, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
	var devices []*cdi.Device
	var missing []string
	for _, name := range names {
		var d *cdi.Device
		if r.cache != nil {
			d = r.cache.GetDevice(name)
		}
		if d == nil {
			missing = append(missing, name)
			continue
		}
		devices = append(devices, d)
	}
	if len(missing) == 0 {
		return devices, nil
	}
	text := fmt.Sprintf("CDI device %s: no file in %s describes it", strings.Join(missing, ", "), strings.Join(r.dirs, ", "))
	if len(r.dirs) == 0 {
		text = fmt.Sprintf("CDI device %s: no CDI directory is configured", strings.Join(missing, ", "))
	}
	if p := r.problems(); len(p) > 0 {
		text += " (not usable: " + strings.Join(p, "; ") + ")"
	}
	return nil, cri.Errorf(codes.FailedPrecondition, "%s", text)
}

// problems are sorted, each once. The caller holds mu.
func (r *Registry) problems() []string {
	all := slices.Clone(r.bad)
	if r.cache != nil {
		byPath := r.cache.GetErrors()
		for _, path := range slices.Sorted(maps.Keys(byPath)) {
			for _, err := range byPath[path] {
				text := err.Error()
				if !strings.Contains(text, path) {
					text = path + ": " + text
				}
				all = append(all, text)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// refresh reads the directories if anything in them has changed. The library's
// own way of following changes hears of them late, so that a container that is
// asked for right after its device was described may not get it. The caller
// holds mu.
func (r *Registry) refresh() {
	seen, readable, bad := look(r.dirs)
	if r.seen != nil && maps.Equal(seen, r.seen) && slices.Equal(bad, r.bad) {
		return
	}
	r.seen, r.bad, r.cache = seen, bad, nil
	if len(readable) > 0 {
		// The error is always nil.
		r.cache, _ = cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(readable...))
	}
}

// look finds out what tells one state of the directories from another. One that
// cannot be read must not keep the library from reading the others.
func look(dirs []string) (seen map[string]string, readable, bad []string) {
	seen = map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			bad = append(bad, err.Error())
			continue
		}
		readable = append(readable, dir)
		seen[dir] = ""
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if ext := filepath.Ext(path); ext != ".json" && ext != ".yaml" {
				continue
			}
			seen[path] = stamp(path)
		}
	}
	return seen, readable, bad
}

// stamp changes when a file is written or replaced.
func stamp(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.ModTime().String()
	}
	return fmt.Sprintf("%d %d %d %d.%d %d.%d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
}
