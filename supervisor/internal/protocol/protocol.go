// Package protocol is what the supervisor and its clients say to each other:
// messages over a SOCK_SEQPACKET unix socket, descriptors beside them by
// SCM_RIGHTS. It is spoken by package supervisor (the client) and by
// supervisor/daemon, and knows neither. It keeps no state.
//
// A client may have many requests under way; an answer carries the number of
// its request. Answers come in any order, events in the order of the exits.
//
//	client                                        supervisor
//	Hello{version}                       ──▶
//	                                     ◀──  OK{version, pid}
//	Launch{id, program, log, …} +fds     ──▶
//	                                     ◀──  OK{process} +pidfd [+console]
//	Start{id} [+hooks], Get{id}          ──▶
//	                                     ◀──  OK{process}
//	Signal{id, n}, Forget{id},           ──▶
//	Resize{id, w, h}, ReopenLog{id}
//	                                     ◀──  OK
//	List                                 ──▶
//	                                     ◀──  OK{processes}
//	Watch                                ──▶
//	                                     ◀──  Event{}: no later exit is missed
//	                                     ◀──  Event{process}, again and again
//	Attach{id, …} +outputs               ──▶
//	                                     ◀──  Event{} +stdin: attached
//	CloseStdin{attach}, Detach{attach}   ──▶
//	                                     ◀──  OK: the attachment has ended
//	Store{name} +fds, Drop{name}         ──▶
//	                                     ◀──  OK
//	Take{name}                           ──▶
//	                                     ◀──  OK +fds
//	RunEngine{argv, env, dir} +out +err  ──▶
//	                                     ◀──  Event{pid}: it runs, or runs again
//	StopEngine{grace}                    ──▶
//	                                     ◀──  OK{code} to RunEngine, then OK to StopEngine
//	Handles                              ──▶
//	                                     ◀──  Event{handle} +fds for each live process, then OK
//	Return{handle} +fds                  ──▶
//	                                     ◀──  OK
//	Become{id, pid} [+console]           ──▶
//	                                     ◀──  OK{process} +pidfd [+console]
//	Upgrade{exe}                         ──▶
//	                                     ◀──  OK, from the new program image
//
// Instead of OK every answer may be Fail{error}.
package protocol

import (
	"slices"
	"strings"
)

// Version is raised when the meaning of a message changes. Fields that are
// added at the end of a message need no new version: a reader takes missing
// ones as zero and skips what it does not know.
const Version = 1

// SocketName and LockName are the names of the listening socket and of the
// lock file in the run directory, StateDir holds the records on disk.
const (
	SocketName = "supervisor.sock"
	LockName   = "supervisor.lock"
	StateDir   = "supervisor"
	// DaemonLog is where a supervisor logs that a client started.
	DaemonLog = "supervisor.log"
)

// SupervisedEnv is set in the engine's environment, to the run directory.
const SupervisedEnv = "PODSTEAD_SUPERVISED"

// SmallPages is the environment for supervisor and engine: env, and a setting
// that keeps Go's heap from huge pages, unless env has settings of its own. Many
// hosts give huge pages to whoever maps memory (transparent_hugepage=always);
// they double a small heap.
func SmallPages(env []string) []string {
	const name = "GODEBUG="
	if slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, name) }) {
		return env
	}
	return append(slices.Clip(env), name+"disablethp=1")
}

// Op says what a message is.
type Op uint8

// Requests, then answers.
const (
	Hello Op = iota + 1
	Launch
	Start
	Get
	Signal
	Forget
	Resize
	ReopenLog
	List
	Watch
	Attach
	CloseStdin
	Detach
	Store
	Take
	Drop
	RunEngine
	StopEngine
	Handles
	Return
	Upgrade
	Become

	OK    Op = 0x80
	Fail  Op = 0x81
	Event Op = 0x82
)

// Limits of what a peer may send.
const (
	MaxBody   = 16 << 20 // body of one message
	MaxFds    = 250      // descriptors of one message, beside the memfd
	MaxString = 1 << 20
	MaxID     = 200
	inline    = 32 << 10 // a larger body travels in a memfd
)

// Packet is one message in transit. The receiver owns Fds.
type Packet struct {
	Op   Op
	Seq  uint32 // of the request; answers repeat it
	Body []byte
	Fds  []int
}
