// Package lazy lets restored processes run before their memory has come.
//
// How it goes:
//
//  1. The restore starts a page server, a process of its own (client.go, link.go, serve.go), and hands it the
//     image: a file, or sockets over which a mount's process reads its store for it (feed.go).
//  2. It makes a userfaultfd(2) in each stub, registers the private anonymous memory with it that has content,
//     and hands that over instead of filling the memory. Root makes it, so that faults within the
//     kernel are told too: read(2) into a page that is missing waits like a load from it.
//  3. Once the processes are let go the server brings what is missing in the order of the image (space.go),
//     and before that what is touched, with its neighbours up to 64 KiB. Each chunk is compared
//     with its hash before it is put in. What is missing is known from a bit for each page and from
//     where the parts of the image belong (missing.go). What was never in the image is zero.
//  4. When nothing is missing any more the userfaultfd is closed, what were huge pages is made huge again
//     (MADV_COLLAPSE), and the server ends. Nothing is left that tells the process from one that was
//     restored otherwise.
//
// # What the program does meanwhile
//
// The kernel tells what becomes of the memory, and lets the program go on when that has been read: mremap(2) moves
// what is to come; what is unmapped or thrown away (MADV_DONTNEED) is not brought, since from then on
// it is zero; a child of fork(2) has a userfaultfd of its own and misses what its parent missed
// (family.go). While such an event waits to be read the kernel refuses to put pages (EAGAIN), so pages are put
// and events are read under one lock. The events of several threads may come in another order than
// their calls were done, see flux.go. exec(2) and exit(2) end the memory (ESRCH).
//
// # What must never happen
//
// When the last descriptor of a userfaultfd is closed, what is missing becomes zero pages: the program would go on
// with zeros for data. So the server has a guard (guard.go), a process that shares its table of descriptors, not a
// copy of it: also the userfaultfd of a child, which the kernel puts there amid read(2), is in it at
// once. If the server is killed, the guard kills the processes that are still lazy (rescue.go): nobody knows
// which events the server had read and not yet acted upon. If the guard is killed, the server forks
// another one. Both can only be beaten by a SIGKILL to both within the moment that this takes.
//
// What cannot be read of the image, or does not have its hash, is poisoned (UFFDIO_POISON): touching it is a SIGBUS
// for that process alone, or EFAULT from a system call, and the log says what and why.
//
// # Checkpoints
//
// A checkpoint's copy-on-write child would read zeros where memory is missing. So package ckpt asks the servers
// (package lazymem) and waits until all has come; the server hurries then.
//
// # What is not so while a process is lazy
//
//   - Shared memory, private pages of mapped files, huge pages of hugetlbfs, stacks, locked memory, and memory with
//     MADV_WIPEONFORK are not lazy: they are filled before the process runs. So is all memory of a process that has
//     guard regions.
//   - A core dump has holes where memory was missing: the kernel does not wait for it (handle_userfault, PF_DUMPCORE).
//     For the same reason the restore brings in what the kernel reads when a thread ends.
//   - FUTEX_WAKE_OP and the PI futexes fail with EFAULT on a word whose page is missing (fault_in_user_writeable).
//     Libraries touch the word first; the restore brings in the words of threads that are in such a call.
//   - Debuggers read EIO for what is missing: ptrace(2) and /proc/PID/mem do not wait (process_vm_readv(2) does).
//   - The process cannot register this memory with a userfaultfd of its own (EBUSY).
//   - mremap(2) of several mappings in one call (Linux 6.17) fails.
//   - MADV_GUARD_INSTALL and _REMOVE of memory that had not come tell nobody: it then holds the data of the image
//     rather than zeros, in a program that had no guard region when it was checkpointed.
//   - If one thread forks amid another one's mremap(2), the child has zeros where that memory was or is.
package lazy
