// Package sysv asks the kernel about System V shared memory, semaphore sets and message queues (sysvipc(7)) of
// our IPC namespace, which is that of every tree that can be checkpointed, and makes new ones
// under the ids they had.
package sysv
