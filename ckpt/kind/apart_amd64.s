#include "textflag.h"

// func apart(calls *call, n int) (pid int)
//
// All signals are blocked around the clone: the child has our handlers, and must run none. It
// touches no stack and no memory but the calls. Flags: CLONE_VM|CLONE_FILES|CLONE_VFORK.
TEXT ·apart(SB), NOSPLIT, $16-24
	MOVQ	calls+0(FP), R12
	MOVQ	n+8(FP), R13
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
	MOVQ	AX, pid+16(FP)
	MOVQ	$2, DI
	LEAQ	old-16(SP), SI
	MOVQ	$0, DX
	MOVQ	$8, R10
	MOVQ	$14, AX
	SYSCALL
	RET
child:
	CMPQ	R13, $0
	JEQ	done
	MOVQ	0(R12), AX
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	40(R12), R8
	MOVQ	48(R12), R9
	SYSCALL
	MOVQ	AX, 56(R12)
	ADDQ	$64, R12
	DECQ	R13
	JMP	child
done:
	MOVQ	$0, DI
	MOVQ	$231, AX          // exit_group
	SYSCALL
	JMP	done

// func apartQueues(q *queues) (pid int)
//
// As apart, but the child calls queuesChild on our stack, below this frame, while this thread waits for its end.
TEXT ·apartQueues(SB), NOSPLIT, $32-16
	MOVQ	q+0(FP), R12
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
	CALL	·queuesChild(SB)
done:
	MOVQ	$0, DI
	MOVQ	$231, AX          // exit_group
	SYSCALL
	JMP	done
