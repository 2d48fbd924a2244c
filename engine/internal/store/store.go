// Package store keeps the engine's records of pod sandboxes and containers: one
// directory per object with one JSON file in it, replaced atomically and
// versioned. It is called by the engine alone; who writes an object sees to it
// that only one does at a time.
//
// A record survives a crash of the engine and a reboot. It is not forced to the
// disk at each step, which would cost more than all else that starts a pod: after
// a power cut a record may be missing or torn. Then it is set aside, and nothing
// is lost but the memory of a pod that is gone in any case.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"podstead/sys"
)

// version of the format. A reader takes all versions up to its own; what an
// older one lacks stays zero.
const version = 1

const (
	recordFile = "record.json"
	badFile    = "record.bad"
)

// maxRecord bounds what is read of a record: requests are at most 16 MiB.
const maxRecord = 64 << 20

// idPattern is what an object's ID looks like; it is a directory's name.
var idPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Dir is a directory of records of one type. Safe for concurrent use as long
// as calls for one ID do not overlap.
type Dir[T any] struct {
	path string
	kind string
}

type envelope struct {
	Version int             `json:"version"`
	Kind    string          `json:"kind"`
	Record  json.RawMessage `json:"record"`
}

// Open makes the directory at path for records of the named kind.
func Open[T any](path, kind string) (*Dir[T], error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	return &Dir[T]{path: path, kind: kind}, nil
}

// Path is the directory of one object, for the files that belong to it.
func (d *Dir[T]) Path(id string) string { return filepath.Join(d.path, id) }

// Put replaces the record of id, and makes the object's directory.
func (d *Dir[T]) Put(id string, record T) error {
	raw, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode record of %s %s: %w", d.kind, id, err)
	}
	b, err := json.Marshal(envelope{Version: version, Kind: d.kind, Record: raw})
	if err != nil {
		return err
	}
	if err := os.Mkdir(d.Path(id), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return sys.WriteFileAtomic(filepath.Join(d.Path(id), recordFile), b, 0o600, false)
}

// Delete removes the object's directory with all that is in it. A missing one
// is no error.
func (d *Dir[T]) Delete(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("%q is not the ID of a %s", id, d.kind)
	}
	return sys.RemoveTree(d.Path(id))
}

// Bad is a record that could not be read. It was renamed, so that it is not
// read again and can be looked at.
type Bad struct {
	ID   string
	File string
	Err  error
}

// Load reads all records. One that cannot be read is set aside and returned in
// bad; it is never an error of the whole. Directories without a record, which a
// crash leaves, are in bare.
func (d *Dir[T]) Load() (records map[string]T, bare []string, bad []Bad, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, nil, nil, err
	}
	records = map[string]T{}
	for _, e := range entries {
		id := e.Name()
		if !e.IsDir() || !idPattern.MatchString(id) {
			continue
		}
		d.removeTemporary(id)
		file := filepath.Join(d.Path(id), recordFile)
		r, err := d.read(file)
		switch {
		case err == nil:
			records[id] = r
		case errors.Is(err, os.ErrNotExist):
			bare = append(bare, id)
		default:
			aside := filepath.Join(d.Path(id), badFile)
			err = errors.Join(err, os.Rename(file, aside))
			bad = append(bad, Bad{ID: id, File: aside, Err: err})
		}
	}
	return records, bare, bad, nil
}

// removeTemporary removes what a crash in the middle of Put left.
func (d *Dir[T]) removeTemporary(id string) {
	left, _ := filepath.Glob(filepath.Join(d.Path(id), ".tmp-*"))
	for _, f := range left {
		os.Remove(f)
	}
}

func (d *Dir[T]) read(file string) (r T, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return r, err
	}
	if info.Size() > maxRecord {
		return r, fmt.Errorf("%s: %d bytes are no record", file, info.Size())
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return r, err
	}
	if r, err = decode[T](b, d.kind); err != nil {
		return r, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

func decode[T any](b []byte, kind string) (r T, err error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return r, err
	}
	if e.Kind != kind {
		return r, fmt.Errorf("record of a %q, not of a %s", e.Kind, kind)
	}
	if e.Version < 1 || e.Version > version {
		return r, fmt.Errorf("record of version %d; this program reads 1 to %d", e.Version, version)
	}
	if len(strings.TrimSpace(string(e.Record))) == 0 {
		return r, errors.New("record is empty")
	}
	return r, json.Unmarshal(e.Record, &r)
}
