// Package fusefs is the filesystem a user of ckptfs sees: reading a file takes a checkpoint,
// writing one restores it.
//
//	MOUNT/
//	  README                 how to use it
//	  ckpt/PID/image         not listed; opening it for reading checkpoints the tree below PID
//	  ckpt/PID/explain       what a checkpoint would refuse or lose; freezes nothing
//	  ckpt/PID/state         running or frozen; writing frozen, running or killed makes it so
//	  ckpt/PID/info          JSON: the tree, sizes, the last checkpoint and the last error
//	  images/NAME/…          what the store holds; mv renames, rm -r removes
//	  images/NAME/template   not listed; on or off: whether restores share memory that is held ready
//	  restore/NAME           an image written here is restored when it is closed
//	  restore/NAME.status    JSON: how that went; NAME.log, NAME.out
//	  restore/lazy/NAME…     the same, but the tree runs at once and its memory comes later
//
// # Reading an image
//
//  1. LOOKUP gives every calling process an inode of its own with the inode number all of
//     them see, so that one reader never gets bytes or a size of another reader's
//     checkpoint. Before an open the size is an upper estimate: it is never 0, since tar,
//     cpio and rsync copy nothing of an empty file.
//  2. OPEN takes the checkpoint: the tree is frozen, captured and running again when it
//     returns, and the exact size is known. Opens by the same process that overlap share
//     one checkpoint. An open that only the kernel makes, for FS_IOC_GETFLAGS, takes none
//     until something is read.
//  3. A goroutine streams the image into the store, however slow the reader is; for one that
//     is nearly as fast it waits a little (pace.go). READ follows it and waits for bytes that are not there yet. The READ that reaches the end waits for
//     the commit, so that a reader that sees no error has an image that is safely stored.
//  4. The last RELEASE before the end cancels: nothing is listed, the tree is as it was.
//
// # Restoring
//
//  1. WRITE goes to an unlinked spool file, in any order. What cannot be an image fails there
//     already, so that cp stops at once.
//  2. FLUSH comes with every close of every duplicate, often before or amid the data, so it
//     starts nothing unless the image is complete and verified, and nothing if the process
//     that closes dies of a signal. Then it restores and its errno is what close(2) returns.
//     Later FLUSHes repeat that errno.
//  3. RELEASE records an upload that was cut off. It restores nothing: nobody would see how
//     that went.
//
// # Templates
//
// Writing on to images/NAME/template verifies the image and has the engine hold its memory ready, in processes of
// its own that end with the image, with the mount, with the serving process, and when off is written. A restore of an image with
// the same identity uses it, wherever the bytes come from. Those that are linked to a stored image are not verified once
// more: the store compares what it reads with its hashes.
//
// # Old images
//
// After every commit and every removal a goroutine in the background removes what the policy
// does not keep and that has no template, then frees the space, if there is any to free. It looks at the whole store, so
// it works a tenth of the time at most. An image is never removed between its commit and the
// moment its reader has it open; who has one open reads on whatever happens.
//
// The serving process must never use its own mount; nothing here opens a path given by a
// user. Requests are served in parallel, so a task that waits in one of them can be frozen
// meanwhile: READ answers an interrupt at once, and OPEN fails with EDEADLK if its caller is
// itself being checkpointed.
package fusefs
