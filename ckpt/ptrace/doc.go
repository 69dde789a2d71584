// Package ptrace is the only caller of ptrace(2) in ckptfs. It stops threads, reads and
// writes their state, and lets a stopped process carry out system calls, in such a way
// that the process survives the death of its tracer at any instant.
//
// ptrace(2) belongs to an OS thread. A [Tracer] owns one, and every method of [Thread],
// [Remote], [Batch] and [Snapshot] must run inside [Tracer.Do]. No other goroutine may
// wait for a traced child of this process meanwhile (os/exec's Wait): any wait(2) of any
// thread for its number takes its ptrace stops, too.
//
// # How a process carries out a system call for us
//
//  1. Every thread is seized and stopped, and its state read ([Thread.Capture]). A thread
//     found inside the code of a predecessor that was killed is first let out of it.
//  2. A frame of some 400 bytes, with the general registers and the signal mask of one
//     thread and the code that loads them, is written to the unused tail of the vdso
//     ([Remote.Enter]): no page of the target is changed that it reads, and nothing needs
//     to be mapped first. Its size depends neither on the CPU nor on what the thread used:
//     vector registers stay where they are.
//  3. The thread's registers point at that code, its stack pointer below the red zone;
//     then all signals are blocked. The order matters: with it the thread can be let go
//     at any instant, and walks the way back to where it was.
//  4. A call sets the registers and lets the thread run to the entry and to the exit of
//     the call ([Remote.Syscall]). It never runs past the exit stop; if we die it does,
//     and the way back begins there.
//  5. Many calls go as a [Batch]: an array in a scratch mapping, carried out by a loop
//     that ends in a signal to the thread itself and, again, in the way back.
//  6. The mask, then the registers are put back ([Remote.Leave]). There is one frame, so
//     one thread at a time has foreign registers.
//  7. The scratch mapping goes, and the bytes of the vdso are put back ([Remote.Close]).
//
// What a killed tracer leaves behind (a private copy of one vdso page, one scratch
// mapping, one zombie that no wait(2) without __WALL sees) is found and removed by the
// next one ([Remote.Sweep]), or it refuses while a signal handler has to return there.
//
// On a busy machine every stop and every call would take until it is the tracee's turn. So a
// realtime thread of ours lends it its priority while we wait ([Tracer.Hurry]): by waiting
// for a lock that the kernel believes to be the tracee's, which nobody can forget to undo.
//
// The one hole is a target under a seccomp filter that kills: while we live its filter is
// suspended, but if we die between setting the registers and the entry of a call, the
// filter sees that call; and in any case the two rt_sigprocmask(2) of the way back. (And one with syscall user dispatch, prctl(2), loses that.)
package ptrace
