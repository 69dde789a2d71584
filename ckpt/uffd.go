package ckpt

import (
	"errors"
	"fmt"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/uffd"
	"golang.org/x/sys/unix"
)

// writeTracking is a userfaultfd(2) that write-protects memory of one process asynchronously: a
// write lifts the protection of a page without asking anybody, and PAGEMAP_SCAN tells which
// pages are protected no more. The process never waits for us. When the last descriptor is closed
// everything is as before: the kernel goes through all page tables then (33 ms for each GiB of small
// pages), and mmap(2) of the process waits, see tracked.release, which does so in pieces.
type writeTracking struct{ uffd.FD }

// newWriteTracking takes over fd.
func newWriteTracking(fd uffd.FD) (writeTracking, error) {
	if err := fd.Init(uffd.WPAsync | uffd.WPUnpopulated); err != nil {
		return writeTracking{-1}, errors.Join(fmt.Errorf("write tracking needs UFFD_FEATURE_WP_ASYNC (Linux 6.7): %w", err), fd.Close())
	}
	return writeTracking{fd}, nil
}

// canTrack says why this kernel does not let writes be tracked. It is asked before a tree is stopped for that.
var canTrack = sync.OnceValue(func() error {
	fd, err := uffd.New(unix.O_CLOEXEC | unix.O_NONBLOCK | uffd.UserModeOnly)
	if err != nil {
		return err
	}
	w, err := newWriteTracking(fd)
	if err == nil {
		w.close()
	}
	return err
})

// register begins to track a range of anonymous memory. Nothing is protected
// yet. Errors: EBUSY (somebody else tracks it), ESRCH (the process has another address space now).
func (w writeTracking) register(start, end uint64) error {
	return w.Register(start, end-start, uffd.WriteProtect)
}

// lowPage lies below where mappings begin, as a rule.
const lowPage = 0x1000

// alive reports whether the address space still exists that it is for: a process that calls exec gets another one.
func (w writeTracking) alive() bool {
	return !errors.Is(w.Unprotect(lowPage, pageSize), unix.ESRCH) // nothing is there
}

// close ends all of it.
func (w writeTracking) close() { _ = w.Close() } // it cannot fail
