package launch

import (
	"fmt"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultPath is searched if the process has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// candidates are the paths to execute args[0] from. Entries of PATH that are
// not absolute would lead to wherever the process happens to be, and are passed
// over, as Go does.
func (c *compiler) candidates() []string {
	name := c.proc.Args[0]
	if strings.Contains(name, "/") {
		return []string{name}
	}
	search := defaultPath
	for _, e := range c.proc.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	var list []string
	for _, dir := range strings.Split(search, ":") {
		if path.IsAbs(dir) {
			list = append(list, path.Join(dir, name))
		}
	}
	return list
}

// chooseExecutable finds out before the start what there is to execute, so
// that creating the container fails and not its start.
func (c *compiler) chooseExecutable() {
	name, list := c.proc.Args[0], c.candidates()
	text := fmt.Sprintf("exec: %q", name)
	c.chosen = c.newReg()
	if strings.Contains(name, "/") {
		c.do(text, cFaccessat2, unix.AT_FDCWD, name, unix.X_OK, unix.AT_EACCESS)
		return
	}
	first := len(c.p.ops)
	for i, p := range list {
		c.do(text, cFaccessat2, unix.AT_FDCWD, p, unix.X_OK, unix.AT_EACCESS)
		c.andThen(func() { c.do(text, cSet, i).out = uint16(c.chosen) }, syscall.ENOENT, syscall.ENOTDIR, syscall.EACCES)
	}
	for _, p := range list {
		c.do(text, cFaccessat2, unix.AT_FDCWD, p, unix.F_OK, 0)
		c.andThen(func() { c.do(text, cFail, syscall.EACCES) }, anyErrno)
	}
	c.do(text+": executable file not found in $PATH", cFail, syscall.ENOENT).whole = true
	// The first that was found ends the search.
	for i := first; i < first+2*len(list); i += 2 {
		c.p.ops[i+1].skipOK = uint16(c.last() - i - 1)
	}
}

// execute replaces the child by the image that was chosen.
func (c *compiler) execute() {
	list := c.candidates()
	text := fmt.Sprintf("exec: %q", c.proc.Args[0])
	argv, envp := c.vector(c.proc.Args), c.vector(c.proc.Env)
	for i, p := range list {
		if len(list) == 1 {
			c.do(text, cExecve, p, argv, envp)
			return
		}
		c.do(text, cTestReg, c.chosen, i, syscall.ENOENT)
		c.andThen(func() { c.do(text, cExecve, p, argv, envp) }, syscall.ENOENT)
	}
}
