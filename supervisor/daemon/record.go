package daemon

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"

	"podstead/supervisor/internal/protocol"
)

// Records are what a supervisor finds of the one before it if that was killed:
// one file for each process, and one for the engine, in DIR/supervisor. They
// are encoded like the state of an upgrade, with a checksum before them.

const (
	recordSuffix = ".process"
	engineRecord = "engine"
)

// recordPath makes one file name of an ID with slashes.
func (d *daemon) recordPath(id string) string {
	return d.statePath(strings.ReplaceAll(id, "/", "+") + recordSuffix)
}

func (d *daemon) statePath(name string) string {
	return filepath.Join(d.cfg.RunDir, protocol.StateDir, name)
}

func (d *daemon) writeRecord(p *process) {
	s := p.save()
	s.Program = nil
	p.recorded = true
	d.writeState(d.recordPath(p.ID), &s)
}

func (d *daemon) removeRecord(p *process) {
	if p.recorded {
		os.Remove(d.recordPath(p.ID))
	}
}

func (d *daemon) writeEngine() {
	s := d.engine.save()
	d.writeState(d.statePath(engineRecord), &s)
}

func (d *daemon) removeEngine() { os.Remove(d.statePath(engineRecord)) }

// writeState replaces a record. Without it the supervisor works as well, so an
// error is for the log only.
func (d *daemon) writeState(path string, s protocol.Coded) {
	body := protocol.Encode(s)
	sum := crc32.ChecksumIEEE(body)
	record := append([]byte{byte(sum), byte(sum >> 8), byte(sum >> 16), byte(sum >> 24), stateVersion}, body...)
	// Only the loop writes records: one temporary name will do.
	err := os.WriteFile(path+".tmp", record, 0o600)
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		d.log.Error("write record", "err", err)
	}
}

// readState reads a record.
func readState(path string, s protocol.Coded) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(b) < 5 {
		return fmt.Errorf("%d bytes: %w", len(b), protocol.ErrMalformed)
	}
	sum := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
	if sum != crc32.ChecksumIEEE(b[5:]) {
		return fmt.Errorf("wrong checksum: %w", protocol.ErrMalformed)
	}
	if b[4] != stateVersion {
		return fmt.Errorf("version %d, not %d", b[4], stateVersion)
	}
	return protocol.Decode(b[5:], s)
}
