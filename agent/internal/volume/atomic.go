package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The layout by which a reader sees all files of one version or all of another
// (the same as the kubelet's, which programs have come to know):
//
//	name       → ..data/name        what the reader opens
//	..data     → ..2026_11_21_…     swapped by one rename
//	..2026_11_21_…/name             the files
const (
	dataLink = "..data"
	tempLink = "..data_tmp"
)

// write makes dir show files, and nothing else.
func write(dir string, files map[string]file, mode int32, group *int64) error {
	old, _ := os.Readlink(filepath.Join(dir, dataLink))
	if old != "" && same(filepath.Join(dir, old), files, mode, group) {
		return links(dir, files)
	}
	version, err := os.MkdirTemp(dir, "..v_")
	if err != nil {
		return err
	}
	if err := writeVersion(version, files, mode, group); err != nil {
		return errors.Join(err, os.RemoveAll(version))
	}
	temp := filepath.Join(dir, tempLink)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(version), temp); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	if err := links(dir, files); err != nil {
		return err
	}
	return dropVersions(dir, filepath.Base(version))
}

func writeVersion(version string, files map[string]file, mode int32, group *int64) error {
	if err := os.Chmod(version, 0o755); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(version, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
		if group != nil {
			if err := os.Chown(path, -1, int(*group)); err != nil {
				return err
			}
		}
		if err := os.Chmod(path, f.perm(mode, group)); err != nil {
			return err
		}
	}
	return nil
}

// perm is a file's mode: with an fsGroup the group may read what the owner may.
func (f file) perm(mode int32, group *int64) os.FileMode {
	m := f.mode
	if m == 0 {
		m = mode
	}
	if group != nil {
		m |= 0o440
	}
	return os.FileMode(m)
}

// same tells whether a version already has these files and no others.
func same(version string, files map[string]file, mode int32, group *int64) bool {
	n := 0
	err := filepath.WalkDir(version, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(version, path)
		f, ok := files[filepath.ToSlash(name)]
		if !ok {
			return fs.ErrInvalid
		}
		n++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil || !bytes.Equal(data, f.data) || st.Mode().Perm() != f.perm(mode, group) {
			return fs.ErrInvalid
		}
		return nil
	})
	return err == nil && n == len(files)
}

// links makes the names that readers open, and removes those that are gone.
func links(dir string, files map[string]file) error {
	want := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if want[e.Name()] && e.Type()&fs.ModeSymlink != 0 {
			delete(want, e.Name())
			continue
		}
		if !want[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove stale file of volume: %w", err)
			}
		}
	}
	for name := range want {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// dropVersions removes all versions but one: the last, and what a crash left.
func dropVersions(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") && e.IsDir() && e.Name() != keep {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
