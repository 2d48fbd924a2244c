package protocol

import "time"

// Command is what a launch has in place of a launch program if a program of
// somebody else's makes the process, such as an OCI runtime's command line.
type Command struct {
	// Run is executed first, with the process's stdio. It makes the process and
	// writes its number to PidFile; with PidFile empty it is the process itself.
	Run []string
	// Then, if not empty, is executed after it, without stdio.
	Then []string
	Env  []string
	Dir  string
	// PidFile and Console are paths; at Console a socket is made, to which Run
	// sends a pty's master.
	PidFile, Console string
	// Timeout bounds Run and Then, each.
	Timeout time.Duration
}

// commandMark is the first byte of an encoded Command, and of no launch program.
const commandMark = 0xc0

// Code codes the fields.
func (m *Command) Code(c *Coder) {
	Slice(c, &m.Run, (*Coder).String)
	Slice(c, &m.Then, (*Coder).String)
	Slice(c, &m.Env, (*Coder).String)
	c.String(&m.Dir)
	c.String(&m.PidFile)
	c.String(&m.Console)
	c.Int((*int64)(&m.Timeout))
}

// EncodeCommand encodes a command to stand where launch programs do.
func EncodeCommand(m *Command) []byte { return append([]byte{commandMark}, Encode(m)...) }

// IsCommand tells whether b is a command, and no launch program.
func IsCommand(b []byte) bool { return len(b) > 0 && b[0] == commandMark }

// DecodeCommand tells whether b is a command, and decodes it.
func DecodeCommand(b []byte) (m *Command, ok bool, err error) {
	if !IsCommand(b) {
		return nil, false, nil
	}
	m = &Command{}
	return m, true, Decode(b[1:], m)
}
