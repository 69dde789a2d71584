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
// All ptrace calls of one checkpoint are made by one ptrace.Tracer.
package ckpt
