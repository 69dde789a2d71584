#include "textflag.h"

// func apart(r *apartRun) (pid int)
//
// All signals are blocked around the clone: the child has our handlers, and must run none. It calls
// apartChild on our stack, below this frame, while this thread waits for its end. Flags:
// CLONE_VM|CLONE_FILES|CLONE_VFORK.
TEXT ·apart(SB), NOSPLIT, $32-16
	MOVQ	r+0(FP), R12
	MOVQ	$-1, R8
	MOVQ	R8, all-8(SP)
	MOVQ	$2, DI            // SIG_SETMASK
	LEAQ	all-8(SP), SI
	LEAQ	old-16(SP), DX
	MOVQ	$8, R10
	MOVQ	$14, AX           // rt_sigprocmask
	SYSCALL
	MOVQ	$0x4500, DI
	MOVQ	$0, SI
	MOVQ	$0, DX
	MOVQ	$0, R10
	MOVQ	$0, R8
	MOVQ	$56, AX           // clone
	SYSCALL
	CMPQ	AX, $0
	JEQ	child
	MOVQ	AX, pid+8(FP)
	MOVQ	$2, DI
	LEAQ	old-16(SP), SI
	MOVQ	$0, DX
	MOVQ	$8, R10
	MOVQ	$14, AX
	SYSCALL
	RET
child:
	MOVQ	R12, 0(SP)
	CALL	·apartChild(SB)
done:
	MOVQ	$0, DI
	MOVQ	$231, AX          // exit_group
	SYSCALL
	JMP	done
