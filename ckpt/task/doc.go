// Package task reads and writes the state of processes that is neither memory nor files:
// one file for each piece (signals, timers, credentials, limits, scheduling …), with its Read
// and its Write side by side.
//
// What a checkpoint calls, in this order:
//
//  1. Check, on a running process: everything that cannot be kept, for explain too.
//  2. ReadTaskOutside, ReadFS and, for each thread, ReadThreadOutside: what /proc and other
//     calls tell about a process without its help.
//  3. ReadTraced for each stopped thread: registers and what only ptrace(2) tells.
//  4. ReadThreadInside for each thread and ReadTaskInside for the leader, which queue system
//     calls of the process itself; after Batch.Run the function they returned takes the results.
//  5. ReadPending for the leader: after the timers were read, for the reason given there.
//
// What a restore calls, in this order:
//
//  1. CheckRestore, before anything is made.
//  2. WriteMM once per address space when all VMAs stand, and WriteFS in the leader.
//  3. WriteThread in each thread, when all threads of the process exist.
//  4. WriteTaskOutside and WriteThreadOutside, while the process still has our credentials:
//     afterwards its limits could only be set with CAP_SYS_RESOURCE.
//  5. WriteCreds in each thread.
//  6. WriteSighand in the leader.
//  7. WriteLast and then WriteUrgent in each thread, the leader being the last.
//  8. VerifyCreds and WriteTraced for each thread, directly before it goes on.
//
// # What is kept
//
// Signal actions, masks, alternate stacks, queued signals with their siginfo; interval timers and
// timers of timer_create(2) under their ids; all user and group ids, supplementary groups, the five
// capability sets, securebits, no_new_privs; resource limits, oom_score_adj, personality,
// coredump_filter, autogroup nice; policy, nice, priority, time slice, affinity, I/O priority and
// timer slack; working directory, root and umask; name, robust list, clear_child_tid, rseq,
// parent-death signal, subreaper, dumpable, THP, KSM and MDWE settings,
// mlockall(MCL_FUTURE), TSC and CPUID faulting, membarrier(2) registrations, memory-error policy, IO_FLUSHER, speculation
// controls; the fields and the auxiliary vector that /proc/PID/stat, cmdline, environ and auxv
// show, and the exe link.
//
// Timers run on from what was left of them when they were read, whatever the clock. So a timer set
// for an absolute time of CLOCK_REALTIME no longer follows when that clock is set, and fires as
// much later as the process was away.
//
// # What is refused
//
// By Check: see there. Some refusals can only be found with a call in the process itself, so
// explain does not know them; ReadTraced, ReadTaskInside and ReadThreadInside return them as
// *image.RefusedError: syscall user dispatch, a local descriptor table (modify_ldt),
// a process or thread keyring, a memory policy of a thread other than
// the leader, the time slice extension of rseq.
//
// # What is not kept, since no process can read or set it
//
// A Landlock domain leaves no trace in /proc: Check reports where there may be one. Session
// keyrings are those of the restorer, since every login has one. The same goes for PR_SET_PTRACER
// of Yama, ioperm(2) and iopl(2), pkey_alloc(2) without a mapping that uses the key, the default
// timer slack that PR_SET_TIMERSLACK 0 returns to, the lock on shadow stack features and I/O
// context sharing (CLONE_IO). CPU time, fault counts, I/O counts and start times start anew:
// RLIMIT_CPU and CPU-time clocks count from zero (CPU-time timers keep what was left).
// PR_FUTEX_HASH is only a matter of speed and is not kept.
package task
