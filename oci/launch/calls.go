package launch

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// namespaceFlags are the clone flags that a program may ask for.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUTS | unix.CLONE_NEWUSER | unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME

// callID is an index into calls. The order is part of the encoding, which only
// ever lives between an engine and the supervisor of the same version.
type callID uint8

// call is what the executor can do: a system call with a fixed signature, so
// that a program can be checked before it runs and printed for a reader.
type call struct {
	name   string
	nr     uintptr // system call number, or one of the executor's own below
	params []param
}

// param says what an argument must be.
type param struct {
	kind paramKind
	n    uint64 // pConst: the value; pBuffer: bytes; pSized, pInts: argument that holds the count
	null bool   // a null pointer will do
	show string // how to print an integer: "open", "mount", "attr", …
}

type paramKind uint8

const (
	pInt    paramKind = iota
	pConst            // this integer and no other
	pString           // pointer to a NUL-terminated string
	pBuffer           // pointer to n bytes
	pSized            // pointer to as many bytes as argument n says
	pInts             // pointer to as many 32-bit integers as argument n says
	pVector           // pointer to a null-terminated array of strings
	pFilter           // pointer to struct sock_fprog
)

// The executor's own operations, numbers that no system call has.
const (
	nrWaitMaps     = ^uintptr(0) - iota // wait until the forker has written the id maps
	nrPrepared                          // tell the forker that the child is prepared, wait for its start
	nrFork                              // go on in a child of the forker (CLONE_PARENT) with new namespaces
	nrTest                              // compare data with a value
	nrTestReg                           // compare a register with a value
	nrStore                             // store a register into data
	nrLimitCaps                         // take from a capset what another does not permit
	nrFail                              // fail with an errno
	nrWarn                              // tell the forker that this step was passed over
	nrSignals                           // default action for every signal, empty mask
	nrCloseAll                          // close everything but stdio, the executor's socket and one more
	nrFileLimit                         // restore the limit of open files that Go raised
	nrConsole                           // send a pty's master to the forker
	nrExecuting                         // tell the forker that all that is left is to execve
	nrPoint                             // tell the forker that a point is reached, wait for it to let us on
	nrMakePath                          // open a path inside a root, make what is missing of it
	nrSet                               // set a register to a value
	nrListener                          // tell the forker of a seccomp listener, wait until it has it
	nrDropBounding                      // drop a set of capabilities from the bounding set
	nrCopyUp                            // copy what is in a directory into another
	nrFirstOwn                          // smallest of them; keep last
)

// Shorthands of the table below.
var (
	anInt     = param{kind: pInt}
	openFlags = param{kind: pInt, show: "open"}
	octal     = param{kind: pInt, show: "octal"}
	aString   = param{kind: pString}
	anOptStr  = param{kind: pString, null: true}
	noString  = param{kind: pConst}
)

func isConst(v uint64) param           { return param{kind: pConst, n: v} }
func space(n uint64) param             { return param{kind: pBuffer, n: n} }
func sized(argument uint64) param      { return param{kind: pSized, n: argument} }
func shown(as string) param            { return param{kind: pInt, show: as} }
func buffer(n uint64, as string) param { return param{kind: pBuffer, n: n, show: as} }

const (
	cInvalid callID = iota
	cClose
	cDup2
	cWrite
	cOpenat
	cOpenat2
	cMkdirat
	cMknodat
	cSymlinkat
	cUnlinkat
	cFchown
	cFchownat
	cFchmod
	cFsopen
	cFsconfigFlag
	cFsconfigString
	cFsconfigCreate
	cFsmount
	cMoveMount
	cOpenTree
	cMountSetattr
	cMount
	cUmount
	cPivotRoot
	cChdir
	cFchdir
	cChroot
	cGetcwd
	cUnshare
	cSetns
	cSethostname
	cSetdomainname
	cSetDumpable
	cSetKeepcaps
	cSetNoNewPrivs
	cDropBounding
	cClearAmbient
	cRaiseAmbient
	cCapget
	cCapset
	cSeccomp
	cSetresuid
	cSetresgid
	cSetgroups
	cPrlimit
	cUmask
	cSetsid
	cSetControllingTTY
	cUnlockPty
	cOpenPtyPeer
	cSetWindowSize
	cStatx
	cFstatfs
	cFaccessat2
	cExecve
	cExecveat
	cExit
	cSchedSetattr
	cSchedSetaffinity
	cIoprioSet
	cPersonality
	cSetMempolicy
	cJoinSessionKeyring
	cWaitMaps
	cPrepared
	cFork
	cTest
	cTestReg
	cStore
	cLimitCaps
	cFail
	cWarn
	cSignals
	cCloseAll
	cFileLimit
	cConsole
	cExecuting
	cPoint
	cMakePath
	cSet
	cFspick
	cFsconfigReconfigure
	cCopyUp
	cListener
	cFsetxattr
	numCalls
)

// statfsSize is enough for struct statfs of any 64-bit architecture.
const (
	statxSize  = 256
	statfsSize = 120
)

// calls is never written to.
var calls = [numCalls]call{
	cClose:               {"close", unix.SYS_CLOSE, []param{anInt}},
	cDup2:                {"dup3", unix.SYS_DUP3, []param{anInt, anInt, openFlags}},
	cWrite:               {"write", unix.SYS_WRITE, []param{anInt, sized(2), anInt}},
	cOpenat:              {"openat", unix.SYS_OPENAT, []param{shown("dirfd"), aString, openFlags, octal}},
	cOpenat2:             {"openat2", unix.SYS_OPENAT2, []param{shown("dirfd"), aString, buffer(24, "how"), isConst(24)}},
	cMkdirat:             {"mkdirat", unix.SYS_MKDIRAT, []param{shown("dirfd"), aString, octal}},
	cMknodat:             {"mknodat", unix.SYS_MKNODAT, []param{shown("dirfd"), aString, octal, shown("dev")}},
	cSymlinkat:           {"symlinkat", unix.SYS_SYMLINKAT, []param{aString, shown("dirfd"), aString}},
	cUnlinkat:            {"unlinkat", unix.SYS_UNLINKAT, []param{shown("dirfd"), aString, anInt}},
	cFchown:              {"fchown", unix.SYS_FCHOWN, []param{anInt, anInt, anInt}},
	cFchownat:            {"fchownat", unix.SYS_FCHOWNAT, []param{shown("dirfd"), aString, anInt, anInt, shown("at")}},
	cFchmod:              {"fchmod", unix.SYS_FCHMOD, []param{anInt, octal}},
	cFsopen:              {"fsopen", unix.SYS_FSOPEN, []param{aString, isConst(unix.FSOPEN_CLOEXEC)}},
	cFsconfigFlag:        {"fsconfig_flag", unix.SYS_FSCONFIG, []param{anInt, isConst(unix.FSCONFIG_SET_FLAG), aString, noString, isConst(0)}},
	cFsconfigString:      {"fsconfig_string", unix.SYS_FSCONFIG, []param{anInt, isConst(unix.FSCONFIG_SET_STRING), aString, aString, isConst(0)}},
	cFsconfigCreate:      {"fsconfig_create", unix.SYS_FSCONFIG, []param{anInt, isConst(unix.FSCONFIG_CMD_CREATE), noString, noString, isConst(0)}},
	cFsconfigReconfigure: {"fsconfig_reconfigure", unix.SYS_FSCONFIG, []param{anInt, isConst(unix.FSCONFIG_CMD_RECONFIGURE), noString, noString, isConst(0)}},
	cFspick:              {"fspick", unix.SYS_FSPICK, []param{shown("dirfd"), aString, isConst(unix.FSPICK_CLOEXEC | unix.FSPICK_EMPTY_PATH)}},
	cFsmount:             {"fsmount", unix.SYS_FSMOUNT, []param{anInt, isConst(unix.FSMOUNT_CLOEXEC), shown("attr")}},
	cMoveMount:           {"move_mount", unix.SYS_MOVE_MOUNT, []param{shown("dirfd"), aString, shown("dirfd"), aString, shown("move")}},
	cOpenTree:            {"open_tree", unix.SYS_OPEN_TREE, []param{shown("dirfd"), aString, shown("tree")}},
	cMountSetattr:        {"mount_setattr", unix.SYS_MOUNT_SETATTR, []param{shown("dirfd"), aString, shown("at"), buffer(32, "mountattr"), isConst(32)}},
	cMount:               {"mount", unix.SYS_MOUNT, []param{anOptStr, aString, anOptStr, shown("mount"), anOptStr}},
	cUmount:              {"umount2", unix.SYS_UMOUNT2, []param{aString, shown("umount")}},
	cPivotRoot:           {"pivot_root", unix.SYS_PIVOT_ROOT, []param{aString, aString}},
	cChdir:               {"chdir", unix.SYS_CHDIR, []param{aString}},
	cFchdir:              {"fchdir", unix.SYS_FCHDIR, []param{anInt}},
	cChroot:              {"chroot", unix.SYS_CHROOT, []param{aString}},
	cGetcwd:              {"getcwd", unix.SYS_GETCWD, []param{sized(1), anInt}},
	cUnshare:             {"unshare", unix.SYS_UNSHARE, []param{shown("clone")}},
	cSetns:               {"setns", unix.SYS_SETNS, []param{anInt, shown("clone")}},
	cSethostname:         {"sethostname", unix.SYS_SETHOSTNAME, []param{sized(1), anInt}},
	cSetdomainname:       {"setdomainname", unix.SYS_SETDOMAINNAME, []param{sized(1), anInt}},

	cSetDumpable:   {"prctl_set_dumpable", unix.SYS_PRCTL, []param{isConst(unix.PR_SET_DUMPABLE), anInt}},
	cSetKeepcaps:   {"prctl_set_keepcaps", unix.SYS_PRCTL, []param{isConst(unix.PR_SET_KEEPCAPS), anInt}},
	cSetNoNewPrivs: {"prctl_set_no_new_privs", unix.SYS_PRCTL, []param{isConst(unix.PR_SET_NO_NEW_PRIVS), anInt}},
	cDropBounding:  {"drop_bounding", nrDropBounding, []param{shown("capset")}},
	cClearAmbient:  {"prctl_cap_ambient_clear_all", unix.SYS_PRCTL, []param{isConst(unix.PR_CAP_AMBIENT), isConst(unix.PR_CAP_AMBIENT_CLEAR_ALL)}},
	cRaiseAmbient:  {"prctl_cap_ambient_raise", unix.SYS_PRCTL, []param{isConst(unix.PR_CAP_AMBIENT), isConst(unix.PR_CAP_AMBIENT_RAISE), shown("cap")}},
	cCapget:        {"capget", unix.SYS_CAPGET, []param{space(8), space(24)}},
	cCapset:        {"capset", unix.SYS_CAPSET, []param{space(8), buffer(24, "caps")}},
	cSeccomp:       {"seccomp_set_mode_filter", unix.SYS_SECCOMP, []param{isConst(unix.SECCOMP_SET_MODE_FILTER), anInt, {kind: pFilter}}},

	cSetresuid: {"setresuid", unix.SYS_SETRESUID, []param{anInt, anInt, anInt}},
	cSetresgid: {"setresgid", unix.SYS_SETRESGID, []param{anInt, anInt, anInt}},
	cSetgroups: {"setgroups", unix.SYS_SETGROUPS, []param{anInt, {kind: pInts, n: 0, null: true}}},
	cPrlimit:   {"prlimit64", unix.SYS_PRLIMIT64, []param{isConst(0), shown("rlimit"), buffer(16, "pair"), noString}},
	cUmask:     {"umask", unix.SYS_UMASK, []param{octal}},
	cSetsid:    {"setsid", unix.SYS_SETSID, nil},

	cSetControllingTTY: {"ioctl_tiocsctty", unix.SYS_IOCTL, []param{anInt, isConst(unix.TIOCSCTTY), anInt}},
	cUnlockPty:         {"ioctl_tiocsptlck", unix.SYS_IOCTL, []param{anInt, isConst(unix.TIOCSPTLCK), space(4)}},
	cOpenPtyPeer:       {"ioctl_tiocgptpeer", unix.SYS_IOCTL, []param{anInt, isConst(unix.TIOCGPTPEER), openFlags}},
	cSetWindowSize:     {"ioctl_tiocswinsz", unix.SYS_IOCTL, []param{anInt, isConst(unix.TIOCSWINSZ), buffer(8, "hex")}},

	cStatx:      {"statx", unix.SYS_STATX, []param{shown("dirfd"), aString, shown("at"), anInt, space(statxSize)}},
	cFstatfs:    {"fstatfs", unix.SYS_FSTATFS, []param{anInt, space(statfsSize)}},
	cFaccessat2: {"faccessat2", unix.SYS_FACCESSAT2, []param{shown("dirfd"), aString, anInt, shown("at")}},
	cExecve:     {"execve", unix.SYS_EXECVE, []param{aString, {kind: pVector}, {kind: pVector}}},
	cExecveat:   {"execveat", unix.SYS_EXECVEAT, []param{anInt, aString, {kind: pVector}, {kind: pVector}, shown("at")}},
	cExit:       {"exit_group", unix.SYS_EXIT_GROUP, []param{anInt}},

	cSchedSetattr:       {"sched_setattr", unix.SYS_SCHED_SETATTR, []param{isConst(0), buffer(56, "hex"), isConst(0)}},
	cSchedSetaffinity:   {"sched_setaffinity", unix.SYS_SCHED_SETAFFINITY, []param{isConst(0), anInt, sized(1)}},
	cIoprioSet:          {"ioprio_set", unix.SYS_IOPRIO_SET, []param{isConst(1), isConst(0), anInt}},
	cPersonality:        {"personality", unix.SYS_PERSONALITY, []param{anInt}},
	cSetMempolicy:       {"set_mempolicy", unix.SYS_SET_MEMPOLICY, []param{anInt, {kind: pBuffer, n: 128, null: true, show: "hex"}, isConst(1024)}},
	cJoinSessionKeyring: {"keyctl_join_session_keyring", unix.SYS_KEYCTL, []param{isConst(unix.KEYCTL_JOIN_SESSION_KEYRING), noString}},

	cWaitMaps:  {"wait_id_maps", nrWaitMaps, nil},
	cPrepared:  {"prepared_wait_start", nrPrepared, nil},
	cFork:      {"fork_sibling", nrFork, []param{shown("clone")}},
	cTest:      {"test", nrTest, []param{space(8), shown("hex"), shown("hex"), shown("errno")}},
	cTestReg:   {"test_register", nrTestReg, []param{anInt, anInt, shown("errno")}},
	cStore:     {"store", nrStore, []param{space(8), anInt}},
	cLimitCaps: {"limit_caps", nrLimitCaps, []param{space(24), space(24)}},
	cFail:      {"fail", nrFail, []param{shown("errno")}},
	cWarn:      {"warn", nrWarn, nil},
	cSignals:   {"reset_signals", nrSignals, nil},
	cCloseAll:  {"close_all_but", nrCloseAll, []param{anInt}},
	cFileLimit: {"restore_file_limit", nrFileLimit, nil},
	cConsole:   {"send_console", nrConsole, []param{anInt}},
	cExecuting: {"executing", nrExecuting, nil},
	cPoint:     {"point", nrPoint, []param{anInt}},
	cSet:       {"set", nrSet, []param{anInt}},
	cMakePath:  {"make_path", nrMakePath, []param{anInt, aString, octal, shown("resolve")}},
	cListener:  {"listener_wait_taken", nrListener, []param{anInt}},
	cFsetxattr: {"fsetxattr", unix.SYS_FSETXATTR, []param{anInt, aString, sized(3), anInt, anInt}},
	cCopyUp:    {"copy_up", nrCopyUp, []param{anInt, anInt, anInt}},
}

// checkVector checks an array of pointers to strings, as execve takes it.
func (p *Program) checkVector(off uint64, targets map[uint32]uint32) error {
	for ; ; off += 8 {
		if off%8 != 0 || p.inData(off, 8) != nil {
			return fmt.Errorf("no pointer array at %d", off)
		}
		to, ok := targets[uint32(off)]
		if !ok {
			if binary.NativeEndian.Uint64(p.data[off:]) != 0 {
				return fmt.Errorf("stray pointer at %d", off)
			}
			return nil
		}
		if _, ok := p.cString(uint64(to)); !ok {
			return fmt.Errorf("no string at %d", to)
		}
	}
}

// checkFilter checks struct sock_fprog { u16 len; struct sock_filter *filter }.
func (p *Program) checkFilter(off uint64, targets map[uint32]uint32) error {
	if off%8 != 0 {
		return fmt.Errorf("filter is not aligned")
	}
	if err := p.inData(off, 16); err != nil {
		return err
	}
	to, ok := targets[uint32(off+8)]
	if !ok {
		return fmt.Errorf("filter without instructions")
	}
	n := binary.NativeEndian.Uint16(p.data[off:])
	return p.inData(uint64(to), uint64(n)*8)
}
