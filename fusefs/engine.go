package fusefs

import (
	"context"
	"io"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
)

// Engine is what the filesystem needs of the checkpointer. Its methods may be called at the
// same time; Take is never called while another Take runs. An error that has a method
// Errno() syscall.Errno is answered with that errno, see errno.go.
type Engine interface {
	// Take checkpoints the tree below pid. When it returns the tree runs again and the exact
	// size of the image is known.
	Take(ctx context.Context, pid int, o TakeOptions) (Checkpoint, error)
	// Estimate returns an upper bound for the size of an image of the tree, in bytes. It is
	// asked for every stat, so it may not read page tables.
	Estimate(pid int) (int64, error)
	// Explain lists what a checkpoint with these policies would refuse or lose. It stops nothing.
	Explain(pid int, p policy.Set) ([]image.Finding, error)
	// Tree returns pid and all its descendants, parents first.
	Tree(pid int) ([]int, error)
	// Freeze stops the tree until Thaw or Kill. It goes on by itself if this process dies.
	Freeze(ctx context.Context, pid int) (Frozen, error)
	// NewTracker returns a Tracker for one tree.
	NewTracker() Tracker
	// Restore brings an image back, which has been verified unless the restore is lazy.
	Restore(ctx context.Context, r *image.Reader, o RestoreOptions) (*Restored, error)
	// Template holds the memory of a verified image ready in a process of its own.
	Template(ctx context.Context, r *image.Reader) (Template, error)
}

// Template is memory of an image that restores of it share copy-on-write.
type Template interface {
	// Bytes is how much memory that is.
	Bytes() int64
	// PID is the process that holds it.
	PID() int
	// Gone reports whether that process was killed; restores copy the memory then.
	Gone() bool
	// Close gives the memory back when no restore uses it any more. It is called once.
	Close() error
}

// Checkpoint is one checkpoint whose bytes are still to be read.
type Checkpoint interface {
	// Size is the exact size of the image in bytes.
	Size() int64
	// Manifest describes the tree.
	Manifest() *image.Manifest
	// Stream gives all bytes of the image to a sink, cut into the chunks of the image's layout,
	// and returns the image's identity.
	Stream(ctx context.Context, sink image.Sink) (image.Hash, error)
	// Close gives everything back. It is always called, once.
	Close() error
	// Stored tells that the image is stored and can be read from r until release is called: the next checkpoint with the
	// same Tracker may refer to it. It may be called after Close.
	Stored(r io.ReaderAt, release func())
}

// Tracker follows what a tree writes between its checkpoints, so that each of them reads only
// that. It is used for one checkpoint at a time.
type Tracker interface {
	Info() TrackInfo
	// Close ends it: the processes are as before.
	Close() error
}

// TrackInfo tells of the last checkpoint with a Tracker.
type TrackInfo struct {
	Processes int   `json:"processes"` // that are followed
	Bytes     int64 `json:"bytes"`     // of the last image
	Unchanged int64 `json:"unchanged"` // how many of them the one before had
	Copied    bool  `json:"copied"`    // what had changed was copied; else there was a snapshot
}

// Frozen is a tree that Freeze stopped. Thaw and Kill end it and are not called while one of
// its checkpoints is still open.
type Frozen interface {
	// Take checkpoints the tree, which stays frozen.
	Take(ctx context.Context, o TakeOptions) (Checkpoint, error)
	// Thaw lets the tree run on.
	Thaw() error
	// Kill ends every process of the tree.
	Kill() error
}

// TakeOptions say how to take a checkpoint.
type TakeOptions struct {
	Log    func(string) // takes lines for the image's log
	Policy policy.Set
	Track  Tracker // of this tree; may be nil
}

// RestoreOptions say how to restore.
type RestoreOptions struct {
	OutPath   string       // file for what the tree writes to terminals and pipes that are gone
	CallerUID int          // whom everything in the image must belong to; -1: anybody
	Log       func(string) // takes lines for NAME.log
	Policy    policy.Set   // what counts instead of the policies of the image
	Lazy      *LazyOptions // nil: all memory is there when Restore returns
	Template  Template     // of the same image, or nil
}

// Restored tells of a tree that runs.
type Restored struct {
	Root     int             `json:"root"`
	PIDs     []int           `json:"pids"`
	Warnings []string        `json:"warnings,omitempty"`
	Lost     []image.Finding `json:"lost,omitempty"`
	Shared   int64           `json:"shared,omitempty"` // bytes of memory that it shares with a template
}
