#include "textflag.h"

// func wakeHandler()
// It runs on the signal stack, with all signals blocked. The kernel has pushed the address of
// wakeRestorer for it to return to.
TEXT ·wakeHandler(SB),NOSPLIT|NOFRAME,$0-0
	RET

// func wakeRestorer()
// rt_sigreturn(2): the stack pointer is where the kernel expects it.
TEXT ·wakeRestorer(SB),NOSPLIT|NOFRAME,$0-0
	MOVL $15, AX
	SYSCALL
	INT $3

// func wakeHandlerAddr() uintptr
TEXT ·wakeHandlerAddr(SB),NOSPLIT,$0-8
	LEAQ ·wakeHandler(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func wakeRestorerAddr() uintptr
TEXT ·wakeRestorerAddr(SB),NOSPLIT,$0-8
	LEAQ ·wakeRestorer(SB), AX
	MOVQ AX, ret+0(FP)
	RET
