package seccomp

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// arch is a system call convention: what the kernel calls an architecture, and
// the numbers by name.
type arch struct {
	name  specs.Arch
	audit uint32 // seccomp_data.arch
	bits  int    // of an argument
	// x32 calls come with the number of x86_64 and this bit set.
	mask   uint32
	number func() map[string]uint32
	// muxed calls exist also as an operation of socketcall or ipc, given by
	// its first argument.
	muxed map[string]muxed
}

type muxed struct {
	via       string
	operation uint64
}

const x32Bit = 0x40000000

var (
	x86_64  = &arch{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, 64, 0, parsed(tableAMD64), nil}
	x86     = &arch{specs.ArchX86, unix.AUDIT_ARCH_I386, 32, 0, parsed(table386), socketcalls}
	x32     = &arch{specs.ArchX32, unix.AUDIT_ARCH_X86_64, 64, x32Bit, x32Numbers(), nil}
	aarch64 = &arch{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, 64, 0, parsed(tableARM64), nil}
	arm     = &arch{specs.ArchARM, unix.AUDIT_ARCH_ARM, 32, 0, parsed(tableARM + armPrivate), nil}
)

// archs are the architectures that a machine of this kind can run.
func family(native *arch) []*arch {
	if native == aarch64 {
		return []*arch{aarch64, arm}
	}
	return []*arch{x86_64, x86, x32}
}

func native() *arch {
	if runtime.GOARCH == "arm64" {
		return aarch64
	}
	return x86_64
}

// selectArchs returns the architectures of a profile. The native one is always
// among them; those that this machine cannot run need no code.
func selectArchs(list []specs.Arch, native *arch) ([]*arch, error) {
	selected := []*arch{native}
	for i, name := range list {
		if !knownArchs[name] {
			return nil, fmt.Errorf(".architectures[%d]: %q is unknown", i, name)
		}
		for _, a := range family(native) {
			if a.name == name && a != native {
				selected = append(selected, a)
			}
		}
	}
	return selected, nil
}

var knownArchs = map[specs.Arch]bool{
	specs.ArchX86: true, specs.ArchX86_64: true, specs.ArchX32: true, specs.ArchARM: true, specs.ArchAARCH64: true,
	specs.ArchMIPS: true, specs.ArchMIPS64: true, specs.ArchMIPS64N32: true, specs.ArchMIPSEL: true,
	specs.ArchMIPSEL64: true, specs.ArchMIPSEL64N32: true, specs.ArchPPC: true, specs.ArchPPC64: true,
	specs.ArchPPC64LE: true, specs.ArchS390: true, specs.ArchS390X: true, specs.ArchPARISC: true,
	specs.ArchPARISC64: true, specs.ArchRISCV64: true, specs.ArchLOONGARCH64: true, specs.ArchM68K: true,
	specs.ArchSH: true, specs.ArchSHEB: true,
}

// parsed reads a table of tables.go when it is first needed.
func parsed(table string) func() map[string]uint32 {
	return sync.OnceValue(func() map[string]uint32 {
		m := make(map[string]uint32, 512)
		next := 0
		for _, word := range strings.Fields(table) {
			if nr, ok := strings.CutPrefix(word, "="); ok {
				n, err := strconv.ParseUint(nr, 0, 31)
				if err != nil {
					panic("seccomp: " + err.Error())
				}
				next = int(n)
				continue
			}
			m[word] = uint32(next)
			next++
		}
		return m
	})
}

// armPrivate are calls that only 32-bit ARM has (asm/unistd.h).
const armPrivate = " =0xf0001 breakpoint cacheflush usr26 usr32 set_tls get_tls"

// x32Special are the calls that have other numbers in the x32 convention.
const x32Special = "=512 rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace " +
	"rt_sigpending rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid " +
	"set_robust_list get_robust_list vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg " +
	"process_vm_readv process_vm_writev setsockopt getsockopt io_setup io_submit execveat preadv2 pwritev2"

func x32Numbers() func() map[string]uint32 {
	return sync.OnceValue(func() map[string]uint32 {
		m := make(map[string]uint32, 512)
		for name, nr := range parsed(tableAMD64)() {
			m[name] = nr
		}
		for name, nr := range parsed(x32Special)() {
			m[name] = nr
		}
		return m
	})
}

// socketcalls are the operations of socketcall(2) and ipc(2) on 32-bit x86
// (linux/net.h, linux/ipc.h).
var socketcalls = map[string]muxed{
	"socket": {"socketcall", 1}, "bind": {"socketcall", 2}, "connect": {"socketcall", 3},
	"listen": {"socketcall", 4}, "accept": {"socketcall", 5}, "getsockname": {"socketcall", 6},
	"getpeername": {"socketcall", 7}, "socketpair": {"socketcall", 8}, "send": {"socketcall", 9},
	"recv": {"socketcall", 10}, "sendto": {"socketcall", 11}, "recvfrom": {"socketcall", 12},
	"shutdown": {"socketcall", 13}, "setsockopt": {"socketcall", 14}, "getsockopt": {"socketcall", 15},
	"sendmsg": {"socketcall", 16}, "recvmsg": {"socketcall", 17}, "accept4": {"socketcall", 18},
	"recvmmsg": {"socketcall", 19}, "sendmmsg": {"socketcall", 20},
	"semop": {"ipc", 1}, "semget": {"ipc", 2}, "semctl": {"ipc", 3}, "semtimedop": {"ipc", 4},
	"msgsnd": {"ipc", 11}, "msgrcv": {"ipc", 12}, "msgget": {"ipc", 13}, "msgctl": {"ipc", 14},
	"shmat": {"ipc", 21}, "shmdt": {"ipc", 22}, "shmget": {"ipc", 23}, "shmctl": {"ipc", 24},
}
