package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Options are those that a dump and its restore have in common.
type Options struct {
	// Images is the directory of the image files; Work, if not nil, that of log
	// and statistics.
	Images, Work *os.File
	LogFile      string // in Work; "dump.log" or "restore.log" if empty
	// Root is where the container's root is mounted; needed for a restore.
	Root string
	// External are objects from outside: "mnt[/data]:/host/path", "net[123]:key",
	// "file[mnt:inode]".
	External []string
	// ManageCgroups other than CgroupIgnore has CRIU dump and make cgroups.
	ManageCgroups CgroupMode
	// CgroupRoots are where CRIU makes them: "controller:/path" or "/path".
	CgroupRoots []string

	TCPEstablished  bool // connections are kept
	TCPSkipInFlight bool // those that are being made are not
	TCPClose        bool // connections are closed at the restore
	LinkRemap       bool // unlinked files get a name
	ExtUnixSockets  bool // sockets connected with others outside
	ShellJob        bool // session and terminal of a shell outside
	FileLocks       bool
	OrphanPtsMaster bool // a terminal's master is outside
	AutoDedup       bool
	LazyPages       bool
	EmptyNetwork    bool // the network namespace is made empty
	PageServer      *PageServer
	LSMProfile      string // "apparmor:NAME" or "selinux:LABEL"
	LSMMountContext string

	// Notify is told of the moments, and may refuse.
	Notify func(Notification) error
}

// PageServer is where a dump sends memory, or a lazy restore gets it from.
type PageServer struct {
	Address string
	Port    int
}

// CgroupMode is CRIU's --manage-cgroups.
type CgroupMode int

// CgroupIgnore leaves restored processes in CRIU's own cgroup. The others are
// CRIU's; Soft makes what is missing.
const (
	CgroupIgnore CgroupMode = iota
	CgroupNone
	CgroupProps
	CgroupSoft
	CgroupFull
	CgroupStrict
)

// DumpOptions is what a dump is told.
type DumpOptions struct {
	Options
	Pid          int
	LeaveRunning bool
	// FreezeCgroup is the directory of the freezer cgroup that holds all
	// processes, also if it is frozen already.
	FreezeCgroup string
	// Parent is the directory of an earlier (pre-)dump, relative to Images.
	Parent string
	// TrackMemory prepares for a later dump with Parent, PreDump takes memory
	// alone and leaves the processes running.
	TrackMemory, PreDump bool
}

// Numbers of fields (criu_opts of CRIU's rpc.proto).
const (
	optImagesDirFd = 1
	optWorkDirFd   = 17
)

func (o *Options) encode(m *message, log string) {
	if o.LogFile != "" {
		log = o.LogFile
	}
	m.number(optImagesDirFd, uint64(o.Images.Fd()))
	if o.Work != nil {
		m.number(optWorkDirFd, uint64(o.Work.Fd()))
	}
	m.number(9, logLevel)
	m.text(10, log)
	m.flag(4, o.ExtUnixSockets)
	m.flag(5, o.TCPEstablished)
	m.flag(7, o.ShellJob)
	m.flag(8, o.FileLocks)
	if p := o.PageServer; p != nil {
		m.part(11, func(m *message) {
			m.text(1, p.Address)
			m.number(2, uint64(p.Port))
		})
	}
	m.flag(12, true) // notifications
	m.text(13, o.Root)
	m.flag(16, o.AutoDedup)
	m.flag(18, o.LinkRemap)
	for _, r := range o.CgroupRoots {
		controller, path, ok := strings.Cut(r, ":")
		if !ok {
			controller, path = "", r
		}
		m.part(25, func(m *message) { m.text(1, controller); m.text(2, path) })
	}
	m.flag(24, o.ManageCgroups != CgroupIgnore)
	m.number(34, uint64(o.ManageCgroups))
	for _, e := range o.External {
		m.text(37, e)
	}
	if o.EmptyNetwork {
		m.number(38, cloneNewnet)
	}
	m.flag(46, o.TCPSkipInFlight)
	m.flag(48, o.LazyPages)
	m.flag(50, o.OrphanPtsMaster)
	m.flag(52, o.TCPClose)
	m.text(53, o.LSMProfile)
	m.text(63, o.LSMMountContext)
}

const (
	logLevel    = 4 // all, for whoever asks why
	cloneNewnet = 0x40000000
)

// Dump writes the state of a process and all its descendants to image files. If
// it fails the processes go on, as they do with LeaveRunning. When ctx ends,
// CRIU is ended with it.
func Dump(ctx context.Context, path string, o DumpOptions) error {
	c, err := Start(path)
	if err != nil {
		return err
	}
	defer c.Close()
	var m message
	o.encode(&m, "dump.log")
	m.number(2, uint64(o.Pid))
	m.flag(3, o.LeaveRunning)
	m.text(14, o.Parent)
	m.flag(15, o.TrackMemory)
	m.text(44, o.FreezeCgroup)
	typ := typeDump
	if o.PreDump {
		typ = typeSinglePreDump
	}
	if _, err := c.call(ctx, typ, m, o.Notify); err != nil {
		return errors.Join(o.explain("criu dump", "dump.log", err), c.Close())
	}
	return c.Close()
}

// explain says what CRIU has logged as errors, if it was CRIU that failed.
func (o *Options) explain(what, log string, err error) error {
	if ours := (*refusal)(nil); errors.As(err, &ours) {
		return err
	}
	if o.LogFile != "" {
		log = o.LogFile
	}
	dir := o.Work
	if dir == nil {
		dir = o.Images
	}
	text, rerr := tail(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), log))
	if lines := errorLines(text, 3); rerr == nil && len(lines) > 0 {
		var failed *Error
		if errors.As(err, &failed) {
			return fmt.Errorf("%s: %w", what, &Error{Text: strings.Join(lines, "; "), Errno: failed.Errno})
		}
		return fmt.Errorf("%s: %w (%s)", what, err, strings.Join(lines, "; "))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// tail reads the end of a log.
func tail(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const most = 64 << 10
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return "", err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	return string(b), err
}

// errorLines are the first errors of a log, without times and places. The limit
// of open files is no error that matters.
func errorLines(log string, most int) []string {
	var lines []string
	for line := range strings.Lines(log) {
		_, text, ok := strings.Cut(line, "Error ")
		if !ok || strings.Contains(text, "RLIMIT_NOFILE") || len(lines) == most {
			continue
		}
		if _, after, ok := strings.Cut(text, "): "); ok {
			text = after
		}
		lines = append(lines, strings.TrimSpace(text))
	}
	return lines
}
