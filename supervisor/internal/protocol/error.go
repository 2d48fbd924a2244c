package protocol

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// Failure is the body of Fail: a text for people, and what errors.Is answers.
type Failure struct {
	Class uint64
	Errno uint64
	Text  string
}

// Code codes the fields.
func (f *Failure) Code(c *Coder) {
	c.Uint(&f.Class)
	c.Uint(&f.Errno)
	c.String(&f.Text)
}

// ErrSlowReader ends an attachment whose client does not read.
var ErrSlowReader = errors.New("attached client reads too slowly")

// ErrBusy says that another front runs the engine.
var ErrBusy = errors.New("another front runs the engine")

// classes are the errors that keep their identity on the wire; their numbers
// are part of the protocol.
var classes = []struct {
	n   uint64
	err error
}{
	{1, fs.ErrNotExist},
	{2, fs.ErrExist},
	{3, os.ErrProcessDone},
	{4, fs.ErrInvalid},
	{5, ErrSlowReader},
	{6, ErrBusy},
	{7, errors.ErrUnsupported},
}

// FailureOf packs an error.
func FailureOf(err error) *Failure {
	f := &Failure{Text: err.Error()}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			f.Class = c.n
			break
		}
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		f.Errno = uint64(errno)
	}
	if len(f.Text) > 8<<10 {
		f.Text = f.Text[:8<<10]
	}
	return f
}

// Error returns the text.
func (f *Failure) Error() string { return f.Text }

// Is matches the class and the system error that the text was made from.
func (f *Failure) Is(target error) bool {
	for _, c := range classes {
		if c.n == f.Class && c.err == target {
			return true
		}
	}
	errno := syscall.Errno(f.Errno)
	return errno != 0 && (errno == target || errno.Is(target))
}
