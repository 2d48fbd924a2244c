// Package seccomp compiles the seccomp profile of an OCI specification into a
// classic BPF filter, in pure Go and without libseccomp, whose semantics it
// follows where profiles rely on them. It is pure: package launch installs the
// filter.
//
// The filter finds a system call by binary search over ranges of numbers with
// the same outcome. Docker's default profile becomes some 230 instructions for
// each architecture, of which a system call executes about ten; a list would
// have more of them for the kernel to check, translate and execute.
package seccomp

//go:generate go run gen.go

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Filter is a compiled profile.
type Filter struct {
	Instructions []unix.SockFilter
	Flags        uint // SECCOMP_FILTER_FLAG_*
	// Notify tells that there are calls (SCMP_ACT_NOTIFY) which wait for what a
	// listener says. Flags ask for one then.
	Notify bool
}

// maxInstructions is the kernel's limit of a filter (BPF_MAXINSNS).
const maxInstructions = 4096

// Compile compiles a profile for the architecture this program was built for.
// An error names the field below linux.seccomp: ".syscalls[3].action: …".
func Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	return compile(p, native())
}

func compile(p *specs.LinuxSeccomp, native *arch) (*Filter, error) {
	notify, err := parseNotify(p)
	if err != nil {
		return nil, err
	}
	flags, err := parseFlags(p.Flags, notify)
	if err != nil {
		return nil, err
	}
	fallback, err := parseAction(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf(".defaultAction: %w", err)
	}
	archs, err := selectArchs(p.Architectures, native)
	if err != nil {
		return nil, err
	}
	rules, err := parseRules(p.Syscalls)
	if err != nil {
		return nil, err
	}
	code := assemble(archs, rules, fallback)
	if len(code) > maxInstructions {
		return nil, fmt.Errorf(".syscalls: the filter needs %d instructions, the kernel takes %d", len(code), maxInstructions)
	}
	return &Filter{Instructions: code, Flags: flags, Notify: notify}, nil
}

// parseNotify tells whether a profile has calls that wait for a listener, and
// checks what is said about it. write cannot be one of them: it is by writing
// that a process tells of its listener. A path alone has no effect.
func parseNotify(p *specs.LinuxSeccomp) (notify bool, err error) {
	if p.DefaultAction == specs.ActNotify {
		return false, fmt.Errorf(".defaultAction: %s cannot be the default", p.DefaultAction)
	}
	for i, s := range p.Syscalls {
		if s.Action != specs.ActNotify {
			continue
		}
		if slices.Contains(s.Names, "write") {
			return false, fmt.Errorf(".syscalls[%d].action: write cannot be %s", i, s.Action)
		}
		notify = true
	}
	switch {
	case notify && p.ListenerPath == "":
		return false, fmt.Errorf(".listenerPath: is missing, for %s", specs.ActNotify)
	case p.ListenerMetadata != "" && p.ListenerPath == "":
		return false, fmt.Errorf(".listenerMetadata: there is no listenerPath")
	}
	return notify, nil
}

// parseFlags translates the flags. Without any, the mitigation against
// speculative store bypass is not asked for, as runc has it; TSYNC means
// nothing for a process of one thread.
func parseFlags(list []specs.LinuxSeccompFlag, notify bool) (flags uint, err error) {
	if notify {
		flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	if list == nil {
		return flags | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	for i, f := range list {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			if !notify {
				return 0, fmt.Errorf(".flags[%d]: %s is for %s", i, f, specs.ActNotify)
			}
			flags |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		case "SECCOMP_FILTER_FLAG_TSYNC":
		default:
			return 0, fmt.Errorf(".flags[%d]: %q is not supported", i, f)
		}
	}
	return flags, nil
}

// parseAction returns a filter's return value.
func parseAction(a specs.LinuxSeccompAction, errnoRet *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errnoRet != nil {
		if a != specs.ActErrno && a != specs.ActTrace {
			return 0, fmt.Errorf("%s takes no errnoRet", a)
		}
		if *errnoRet > unix.SECCOMP_RET_DATA {
			return 0, fmt.Errorf("errnoRet %d is too large", *errnoRet)
		}
		data = uint32(*errnoRet)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActNotify:
		return unix.SECCOMP_RET_USER_NOTIF, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("%q is not supported", a)
}

// rule is an element of syscalls.
type rule struct {
	names  []string
	action uint32
	// Any of these lets the rule match; each is a conjunction. Empty: always.
	conditions [][]specs.LinuxSeccompArg
}

func parseRules(list []specs.LinuxSyscall) ([]rule, error) {
	var rules []rule
	for i, s := range list {
		action, err := parseAction(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf(".syscalls[%d].action: %w", i, err)
		}
		for j, a := range s.Args {
			if a.Index > 5 {
				return nil, fmt.Errorf(".syscalls[%d].args[%d].index: %d is not one of 0 to 5", i, j, a.Index)
			}
			if !slices.Contains(operators, a.Op) {
				return nil, fmt.Errorf(".syscalls[%d].args[%d].op: %q is unknown", i, j, a.Op)
			}
		}
		rules = append(rules, rule{names: s.Names, action: action, conditions: conditions(s.Args)})
	}
	return rules, nil
}

var operators = []specs.LinuxSeccompOperator{
	specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
	specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
}

// conditions are met together, unless two look at the same argument: then each
// stands alone. It is a quirk of runc that profiles rely on.
func conditions(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	if len(args) == 0 {
		return nil
	}
	var seen [6]bool
	for _, a := range args {
		if seen[a.Index] {
			var each [][]specs.LinuxSeccompArg
			for _, a := range args {
				each = append(each, []specs.LinuxSeccompArg{a})
			}
			return each
		}
		seen[a.Index] = true
	}
	return [][]specs.LinuxSeccompArg{args}
}
