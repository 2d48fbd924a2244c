#include "textflag.h"

// func prlimit64(resource uintptr, old *Limit) (errno uintptr)
TEXT ·prlimit64(SB), NOSPLIT, $0-24
	MOVQ $302, AX           // SYS_prlimit64
	MOVQ $0, DI             // pid: this process
	MOVQ resource+0(FP), SI
	MOVQ $0, DX             // no new limit
	MOVQ old+8(FP), R10
	SYSCALL
	MOVQ AX, errno+16(FP)
	RET
