#include "textflag.h"

// func cloneStage(args *cloneArgs, size uintptr, m *machine) (pid, errno uintptr)
TEXT ·cloneStage(SB), NOSPLIT, $0-40
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	m+16(FP), R19
	MOVD	$435, R8 // clone3
	SVC
	CBZ	R0, child
	CMN	$4095, R0
	BCS	failed
	MOVD	R0, pid+24(FP)
	MOVD	ZR, errno+32(FP)
	RET
failed:
	NEG	R0, R0
	MOVD	ZR, pid+24(FP)
	MOVD	R0, errno+32(FP)
	RET
child:
	MOVD	ZR, R29
	SUB	$16, RSP
	MOVD	R19, 8(RSP)
	BL	·runMachine(SB)
	BRK

// func systemCall(nr, a, b, c, d, e, f uintptr) (result, errno uintptr)
TEXT ·systemCall(SB), NOSPLIT, $0-72
	MOVD	nr+0(FP), R8
	MOVD	a+8(FP), R0
	MOVD	b+16(FP), R1
	MOVD	c+24(FP), R2
	MOVD	d+32(FP), R3
	MOVD	e+40(FP), R4
	MOVD	f+48(FP), R5
	SVC
	CMN	$4095, R0
	BCS	failed
	MOVD	R0, result+56(FP)
	MOVD	ZR, errno+64(FP)
	RET
failed:
	NEG	R0, R0
	MOVD	ZR, result+56(FP)
	MOVD	R0, errno+64(FP)
	RET
