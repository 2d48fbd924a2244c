package launch

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Park starts a process that does nothing until it is ended, or its forker is:
// a member for a group that needs one before a container's process can be there.
func Park() (pid int, end func() error, err error) {
	p := &Program{
		id: "parked", cgroup: -1, pidns: -1,
		ops: []op{
			{call: cSetDumpable, args: [6]arg{{argInt, unix.PR_SET_DUMPABLE}}, out: noReg, text: "become undumpable"},
			{call: cPrepared, out: noReg},
		},
	}
	c, err := Fork(p, nil, Stdio{})
	if err != nil {
		return 0, nil, err
	}
	return c.Pid, func() error {
		err := c.Abandon()
		reap(c.Pid)
		return errors.Join(err, c.Pidfd.Close())
	}, nil
}
