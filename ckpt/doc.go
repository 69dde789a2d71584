// Package ckpt takes checkpoints of running process trees.
//
// Take works in these steps:
//
//  1. Look: without stopping anything, find the tree and everything in it that cannot be
//     kept. A tree that would be refused is never frozen. Explain ends here.
//  2. Freeze: seize and stop every thread of every process, again and again until a pass
//     finds nothing new. Whatever fails from here on, the undo stack lets everything go.
//  3. Capture: registers, masks and queued signals by ptrace; what only the process itself
//     can ask by remote system calls; descriptors by pidfd_getfd, each open file description
//     once; mappings from /proc.
//  4. Snapshot: each process makes a copy-on-write child that holds its memory as it is now.
//     What a fork does not snapshot (shared memory, MADV_DONTFORK, MADV_WIPEONFORK, hugetlb,
//     deleted files that the tree can write to) is copied here. Where the clone fails,
//     everything is copied here.
//  5. Resume: registers and masks back, detach. The tree has been still for milliseconds.
//  6. Layout: which pages there are is read from the snapshot. Now the manifest is complete
//     and the image's exact size is known; Take returns.
//  7. Stream: the image goes to an image.Sink, block by block, read and hashed on all cores.
//
// With After set to Stop or Kill there is no snapshot: the tree stays frozen until Finish.
//
// A process is traced by one ptrace.Tracer from its freeze to the end of its snapshot. A tree of some size is divided
// among several, one for each CPU at most, which capture at the same time (tracers.go).
//
// With a Tracker, between look and freeze, what was written since the checkpoint before is found and copied
// (trackrun.go, trackscan.go), and what is written meanwhile in the freeze; a process of which little is left then needs no
// snapshot. In the stream a sink that can refers to the chunks that nothing was written to (trackbase.go), and
// whoever stores the image calls Checkpoint.Stored, so that the next one can refer to it. Whatever is not known to be
// unchanged counts as written.
//
// What the look has learned of sockets holds in the freeze if the kernel's memory says that they are as they were
// (kind.SockMemo), and descriptor tables are read there (filesmem.go): with thousands of descriptors, system calls
// for each would be most of the freeze. Where that memory cannot be read they are made.
package ckpt
