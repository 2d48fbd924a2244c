// Package resctrl puts containers into groups of the kernel's resctrl file
// system, which share cache and memory bandwidth out (linux.intelRdt of the OCI
// runtime specification). It is called by the OCI runtime. What it makes is the
// kernel's and outlives it; a Group remembers what there is to remove.
package resctrl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// FS is a mounted resctrl file system.
type FS struct {
	Root string
	// Mkdir and Rmdir make and remove a group with its files, as the kernel does
	// when they are nil.
	Mkdir, Rmdir func(dir string) error
}

// Find finds the file system in the mount table.
func Find() (*FS, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		mount, super, _ := strings.Cut(line, " - ")
		if f := strings.Fields(mount); strings.HasPrefix(super, "resctrl ") && len(f) > 4 {
			return &FS{Root: f[4]}, nil
		}
	}
	return nil, errors.New("no resctrl file system is mounted")
}

func (fs *FS) mkdir(dir string) error {
	if fs.Mkdir != nil {
		return fs.Mkdir(dir)
	}
	return os.Mkdir(dir, 0o755)
}

func (fs *FS) rmdir(dir string) error {
	remove := fs.Rmdir
	if remove == nil {
		remove = unix.Rmdir
	}
	if err := remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// Group is where a container is. It is kept in the container's record.
type Group struct {
	Dir string `json:"dir"`
	// Own tells that the group is the container's alone, and ends with it.
	Own bool `json:"own,omitempty"`
	// Monitor is the container's monitoring group, if it has one.
	Monitor string `json:"monitor,omitempty"`
}

// Check finds what cannot be meant; the error begins with the field's name below
// linux.intelRdt.
func Check(r *specs.LinuxIntelRdt) error {
	if r == nil {
		return nil
	}
	if id := r.ClosID; id != "" && id != "/" {
		if strings.ContainsAny(id, "/\n") || slices.Contains([]string{".", "..", "info", "mon_groups", "mon_data"}, id) {
			return fmt.Errorf("closID: %q is no name of a group", id)
		}
	}
	if strings.Contains(r.L3CacheSchema, "\n") {
		return fmt.Errorf("l3CacheSchema: %q has more than one line", r.L3CacheSchema)
	}
	if s := r.MemBwSchema; s != "" && !strings.HasPrefix(s, "MB:") || strings.Contains(s, "\n") {
		return fmt.Errorf("memBwSchema: %q is not one line that begins with MB:", s)
	}
	for i, s := range r.Schemata {
		if strings.Contains(s, "\n") || !strings.Contains(s, ":") {
			return fmt.Errorf("schemata[%d]: %q is not one line of a resource", i, s)
		}
	}
	return nil
}

// setting is a line for a schemata file.
type setting struct{ field, line string }

// settings are the lines in the order in which they are to be written.
func settings(r *specs.LinuxIntelRdt) (list []setting) {
	if r.L3CacheSchema != "" {
		list = append(list, setting{"l3CacheSchema", r.L3CacheSchema})
	}
	if r.MemBwSchema != "" {
		list = append(list, setting{"memBwSchema", r.MemBwSchema})
	}
	for i, s := range r.Schemata {
		list = append(list, setting{"schemata[" + strconv.Itoa(i) + "]", s})
	}
	return list
}

// Create makes what a container needs: a group of its own, or the one that closID
// names, which others may be in already and which then must be as it is asked
// for. A failed one leaves nothing. Errors begin with the field's name.
func (fs *FS) Create(id string, r *specs.LinuxIntelRdt) (g *Group, err error) {
	if err := Check(r); err != nil {
		return nil, err
	}
	g = &Group{Dir: filepath.Join(fs.Root, id), Own: r.ClosID == ""}
	if !g.Own {
		g.Dir = filepath.Join(fs.Root, r.ClosID)
	}
	want := settings(r)
	err = os.ErrExist
	if g.Own || len(want) > 0 && r.ClosID != "/" {
		err = fs.mkdir(g.Dir)
	}
	switch {
	case err == nil:
		defer func() {
			if err != nil {
				err = errors.Join(err, fs.rmdir(g.Dir))
			}
		}()
		if err := fs.write(g, want); err != nil {
			return nil, err
		}
	case g.Own || !errors.Is(err, os.ErrExist):
		return nil, fmt.Errorf("closID: %w", fs.explain(err))
	default: // a group that is there
		if err := compare(g.Dir, want); err != nil {
			return nil, err
		}
	}
	if !r.EnableMonitoring {
		return g, nil
	}
	g.Monitor = filepath.Join(g.Dir, "mon_groups", id)
	if err := fs.mkdir(g.Monitor); err != nil {
		return nil, fmt.Errorf("enableMonitoring: %w", fs.explain(err))
	}
	return g, nil
}

// Join puts a process into the group.
func (g *Group) Join(pid int) error {
	for _, dir := range []string{g.Dir, g.Monitor} {
		if dir == "" {
			continue
		}
		if err := write(filepath.Join(dir, "tasks"), strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// Set changes what the group has.
func (fs *FS) Set(g *Group, r *specs.LinuxIntelRdt) error {
	if err := Check(r); err != nil {
		return err
	}
	return fs.write(g, settings(r))
}

// Remove removes what is the container's alone. What is gone is no error.
func (fs *FS) Remove(g *Group) error {
	var errs []error
	if g.Monitor != "" {
		errs = append(errs, fs.rmdir(g.Monitor))
	}
	if g.Own {
		errs = append(errs, fs.rmdir(g.Dir))
	}
	return errors.Join(errs...)
}

func (fs *FS) write(g *Group, want []setting) error {
	for _, s := range want {
		if err := write(filepath.Join(g.Dir, "schemata"), s.line+"\n"); err != nil {
			return fmt.Errorf("%s: %w", s.field, fs.explain(err))
		}
	}
	return nil
}

// write writes a file that is there.
func write(file, content string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// explain adds what the kernel said about the last command.
func (fs *FS) explain(err error) error {
	b, rerr := os.ReadFile(filepath.Join(fs.Root, "info/last_cmd_status"))
	if s := strings.TrimSpace(string(b)); rerr == nil && s != "" && s != "ok" {
		return fmt.Errorf("%w (%s)", err, s)
	}
	return err
}

// compare tells whether an existing group has what is wanted.
func compare(dir string, want []setting) error {
	b, err := os.ReadFile(filepath.Join(dir, "schemata"))
	if err != nil {
		return fmt.Errorf("closID: %w", err)
	}
	have := map[string]string{}
	for line := range strings.Lines(string(b)) {
		parse(line, have)
	}
	for _, s := range want {
		asked := map[string]string{}
		parse(s.line, asked)
		for domain, value := range asked {
			if have[domain] != value {
				return fmt.Errorf("%s: group %s exists and has %s=%s, not %s", s.field, dir, domain, have[domain], value)
			}
		}
	}
	return nil
}

// parse reads "L3:0=7f0;1=1f" into L3:0 → 7f0, L3:1 → 1f.
func parse(line string, into map[string]string) {
	resource, domains, _ := strings.Cut(strings.TrimSpace(line), ":")
	for d := range strings.SplitSeq(domains, ";") {
		if id, value, ok := strings.Cut(d, "="); ok {
			value = strings.TrimLeft(strings.ToLower(strings.TrimSpace(value)), "0")
			into[resource+":"+strings.TrimSpace(id)] = value
		}
	}
}

// Schemata are the lines of the group's schemata, by resource ("L3"); nothing if
// they cannot be read.
func (g *Group) Schemata() map[string]string {
	lines := map[string]string{}
	b, _ := os.ReadFile(filepath.Join(g.Dir, "schemata"))
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		resource, _, _ := strings.Cut(line, ":")
		lines[resource] = line
	}
	return lines
}
