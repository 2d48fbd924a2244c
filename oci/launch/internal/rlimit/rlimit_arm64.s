#include "textflag.h"

// func prlimit64(resource uintptr, old *Limit) (errno uintptr)
TEXT ·prlimit64(SB), NOSPLIT, $0-24
	MOVD $261, R8           // SYS_prlimit64
	MOVD $0, R0             // pid: this process
	MOVD resource+0(FP), R1
	MOVD $0, R2             // no new limit
	MOVD old+8(FP), R3
	SVC
	MOVD R0, errno+16(FP)
	RET
