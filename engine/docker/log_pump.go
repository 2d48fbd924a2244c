package docker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pump moves one container's output from Docker's log files to the client's.
//
// Nothing is lost or written twice if this program is killed at any moment: a
// position says how far the one file was read when the other had which size.
// What the other has beyond it is what would be written next, and is skipped.
type pump struct {
	source string // Docker's current file; older ones are source.1, source.2, …
	target string
	in     *os.File
	out    *os.File
	state  *os.File // holds the position
	at     position
	skip   int64  // bytes of what comes next that the target has already
	unread []byte // of the source: read and not a whole line yet
	unsent []byte // for the target: translated and not written yet
}

// position is what is kept of a pump, always as a whole.
type position struct {
	Source uint64 // inode
	Offset int64  // all before it is in the target
	Target uint64 // inode
	Size   int64  // of the target then
}

const (
	positionFile = "log-position"
	readSize     = 256 << 10
	maxEntry     = 4 << 20 // no line of Docker's is near as long
)

// openPump begins where the last pump ended; dir is where its position is kept.
func openPump(source, target, dir string) (*pump, error) {
	p := &pump{source: source, target: target}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if p.state, err = os.OpenFile(filepath.Join(dir, positionFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	// A position that is not there, or not whole, is the beginning.
	fresh := binary.Read(io.NewSectionReader(p.state, 0, 64), binary.LittleEndian, &p.at) != nil
	if fresh {
		p.at = position{}
	}
	// A file that the client has removed is made again only for what is new.
	if _, err := os.Lstat(target); fresh || err == nil {
		if err := errors.Join(p.openTarget(), p.save()); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	return p, nil
}

func (p *pump) close() error {
	var errs []error
	for _, f := range []*os.File{p.in, p.out, p.state} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// openTarget opens or makes the client's file, and compares it with the
// position.
func (p *pump) openTarget() error {
	if err := os.MkdirAll(filepath.Dir(p.target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(p.target, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	inode, size, err := identity(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if p.out != nil {
		p.out.Close()
	}
	p.out, p.skip = f, 0
	if inode == p.at.Target && size > p.at.Size {
		p.skip = size - p.at.Size
	}
	if inode != p.at.Target || size < p.at.Size {
		p.at.Target, p.at.Size = inode, size
	}
	return nil
}

// reopen goes on in a new file. What there is comes into the old one before,
// as far as a container that never stops writing lets it.
func (p *pump) reopen() error {
	for i := 0; i < burst || p.skip > 0; i++ {
		more, err := p.step()
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if err := errors.Join(p.flush(), p.openTarget()); err != nil {
		return err
	}
	return p.save()
}

func identity(f *os.File) (inode uint64, size int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return st.Ino, st.Size, nil
}

// burst is how many pieces are moved before anything else is looked at.
const burst = 16

// run moves what there is, burst pieces at most, and tells whether there is more.
func (p *pump) run() (more bool, err error) {
	for range burst {
		if more, err = p.step(); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// step moves a piece of what there is, or goes on to the next file, and tells
// whether there is more.
func (p *pump) step() (more bool, err error) {
	if err := p.flush(); err != nil {
		return false, err
	}
	if p.in == nil {
		if err := p.openSource(); err != nil || p.in == nil {
			return false, err
		}
	}
	if n, err := p.read(); err != nil || n > 0 {
		return n > 0, err
	}
	return p.next()
}

// read takes the next piece of the source, and translates its whole lines.
func (p *pump) read() (int, error) {
	buf := make([]byte, readSize)
	n, err := p.in.ReadAt(buf, p.at.Offset+int64(len(p.unread)))
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	p.unread = append(p.unread, buf[:n]...)
	for {
		i := bytes.IndexByte(p.unread, '\n')
		if i < 0 && len(p.unread) > maxEntry {
			i = len(p.unread) - 1 // whatever this is, it is no entry
		}
		if i < 0 {
			return n, nil
		}
		p.unsent = appendEntry(p.unsent, p.unread[:i])
		p.unread = p.unread[i+1:]
		p.at.Offset += int64(i + 1)
	}
}

// flush writes what is translated, and then the position.
func (p *pump) flush() error {
	if len(p.unsent) == 0 {
		return nil
	}
	if p.out == nil {
		if err := p.openTarget(); err != nil {
			return err
		}
	}
	if n := min(p.skip, int64(len(p.unsent))); n > 0 {
		p.unsent, p.skip, p.at.Size = p.unsent[n:], p.skip-n, p.at.Size+n
	}
	n, err := p.out.Write(p.unsent)
	p.unsent, p.at.Size = p.unsent[n:], p.at.Size+int64(n)
	if err != nil {
		return err
	}
	p.unsent = nil
	return p.save()
}

func (p *pump) save() error {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, p.at); err != nil {
		return err
	}
	_, err := p.state.WriteAt(b.Bytes(), 0)
	return err
}

// openSource opens the file that the position is in or, if that is gone, the
// oldest, from its beginning. There may be none yet.
func (p *pump) openSource() error {
	files := p.files()
	for _, name := range files {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // renamed meanwhile; looked for again
		}
		if err != nil {
			return err
		}
		if inode, _, err := identity(f); err == nil && inode == p.at.Source {
			p.in = f
			return nil
		}
		f.Close()
	}
	if len(files) == 0 {
		return nil
	}
	return p.begin(files[len(files)-1], nil)
}

// begin reads a file from its beginning, if sure, which is asked after it was
// opened, says that it is the right one.
func (p *pump) begin(name string, sure func() bool) error {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	inode, _, err := identity(f)
	if err != nil || sure != nil && !sure() {
		return errors.Join(err, f.Close())
	}
	if p.in != nil {
		p.in.Close()
	}
	p.in, p.unread, p.at.Source, p.at.Offset = f, nil, inode, 0
	return nil
}

// next goes on to the file that Docker began after this one, if there is one.
// When it is, this one is complete, and has been read once more.
func (p *pump) next() (bool, error) {
	names := p.files()
	for i, name := range names {
		st, err := os.Stat(name)
		if err != nil {
			return true, nil // renamed meanwhile: look again
		}
		if inode(st) != p.at.Source {
			continue
		}
		switch read := p.at.Offset + int64(len(p.unread)); {
		case st.Size() > read:
			return true, nil
		case st.Size() < read: // truncated
			return true, p.begin(name, nil)
		case i == 0:
			return false, nil
		}
		// If this one still has its name after the newer one was opened, none
		// came between.
		return true, p.begin(names[i-1], func() bool {
			st, err := os.Stat(name)
			return err == nil && inode(st) == p.at.Source
		})
	}
	if len(names) == 0 {
		return false, nil
	}
	return true, p.begin(names[len(names)-1], nil)
}

// files are Docker's, the newest first.
func (p *pump) files() []string {
	var names []string
	if _, err := os.Stat(p.source); err == nil {
		names = append(names, p.source)
	}
	for i := 1; ; i++ {
		name := p.source + "." + strconv.Itoa(i)
		if _, err := os.Stat(name); err != nil {
			return names
		}
		names = append(names, name)
	}
}

func inode(info os.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }

// appendEntry translates an entry of Docker's log: a line, or the part of one
// that has no newline. What is no entry, which a crash of Docker's leaves, is
// passed over.
func appendEntry(to, entry []byte) []byte {
	var e struct {
		Log    string    `json:"log"`
		Stream string    `json:"stream"`
		Time   time.Time `json:"time"`
	}
	if err := json.Unmarshal(entry, &e); err != nil || e.Time.IsZero() || e.Stream != "stdout" && e.Stream != "stderr" {
		return to
	}
	for line := range strings.Lines(e.Log) {
		text, whole := strings.CutSuffix(line, "\n")
		tag := "P"
		if whole {
			tag = "F"
		}
		to = e.Time.AppendFormat(to, time.RFC3339Nano)
		to = append(append(append(append(to, ' '), e.Stream...), ' '), tag...)
		to = append(append(append(to, ' '), text...), '\n')
	}
	return to
}
