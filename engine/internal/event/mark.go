package event

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// doubt is how much of what was told last is told again after a crash: a
// listener's connection may have had it when the engine was killed, or not.
const doubt = time.Second

// Mark remembers in a file up to when events have been told. It is to survive the
// engine, and need not survive the machine, as listeners do not.
type Mark struct {
	mu   sync.Mutex
	file *os.File
	last int64
}

// OpenMark opens the file, or makes it: then all up to now counts as told.
func OpenMark(path string) (*Mark, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	m := &Mark{file: f}
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	m.last, err = strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 64)
	if err != nil { // new, or torn
		m.move(time.Now().UnixNano())
	}
	return m, nil
}

// Untold is from when on what happened may not have been told.
func (m *Mark) Untold() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Unix(0, m.last).Add(-doubt)
}

// move writes a later time. It costs a microsecond, and if it fails more is told
// again than need be.
func (m *Mark) move(to int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if to <= m.last {
		return
	}
	m.last = to
	_, _ = m.file.WriteAt(fmt.Appendf(nil, "%020d\n", to), 0)
}

// Close closes the file.
func (m *Mark) Close() error {
	if m == nil {
		return nil
	}
	return m.file.Close()
}
