// Package collect removes what no image needs: it marks what images, open readers and running
// ingests refer to, moves what is alive out of packs that are mostly dead, and, in a bucket, lets a
// grace time pass before a pack goes. It also settles packs that were stored fast.
package collect

import (
	"errors"
	"time"

	"github.com/ckptfs/ckptfs/store/ahead"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/index"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/secret"
	"github.com/ckptfs/ckptfs/store/tree"
)

// ErrRelearned tells that a GC has to begin anew: what it counted was not all.
var ErrRelearned = errors.New("the index has learned of chunks that it had lost")

// Report tells what a GC did.
type Report struct {
	Packs   int   // packs removed
	Written int   // packs written with what was alive in removed ones
	Freed   int64 // bytes fewer in packs than before
	Live    int64 // bytes of chunks that are needed, with their entries in footers
	Dead    int64 // bytes of chunks that are not, and stay in packs where little is dead
	Pending int   // packs of a bucket that a later GC removes, when the grace time is over
	// Again is how long that takes, 0 if nothing is pending.
	Again time.Duration
	Kept  []string // packs that should have gone but could not be read, and why

	// Live and Dead are as they were before this.
	Settled     int   // packs of what ingests stored fast that were rewritten, see Settle
	SettledFrom int64 // bytes of their chunks before
	SettledTo   int64 // and after
	Unsettled   int   // packs that Settle has still to do
}

// Host is a store as a GC needs it.
type Host interface {
	// Footer reads what a pack holds.
	Footer(*pack.Pack) (*pack.Info, error)
	// Leaf returns the entries of a leaf.
	Leaf(tree.Span) ([]tree.Ref, error)
	// WalkLeaves calls fn for every leaf of a tree whose nodes seen does not know.
	WalkLeaves(t tree.Root, seen func(*chunk.Hash) (bool, error), fn func(tree.Span) error) error
	// Missing says why a chunk cannot be found.
	Missing(*chunk.Hash) error
	// LearnAgain looks into all packs for what the index lost; again says that the caller, who
	// began at a fleet.Now, should look once more.
	LearnAgain(begun int64) (again bool, err error)
	// Mark marks a chunk as needed; known tells that a node was marked before.
	Mark(h *chunk.Hash, node bool) (known, found bool, err error)
	// StillDamaged fails if the record of an image cannot be read.
	StillDamaged() error
	// Ingests lists what is running.
	Ingests() []Ingest
	// Records lists the records of all images, listed or still open.
	Records() []*record.Record
	// Writers makes writers for packs of what is moved.
	Writers(pack.Sink) *pack.Writers
	// Pack finds a pack, or nil.
	Pack(disk.ID) *pack.Pack
	// Opened, Sealed and Lost are told of packs that are written.
	Opened(*pack.Pack)
	Sealed(*pack.Pack)
	Lost(*pack.Pack)
	// Remove removes a pack from a folder, Gone forgets one that went from a bucket, and
	// SyncPacks makes removals durable.
	Remove(*pack.Pack) error
	Gone(*pack.Pack)
	SyncPacks() error
}

// Ingest is an image that is being written.
type Ingest interface {
	// Needs returns what it refers to: the leaves of its list, and what is in none yet. It
	// waits for what is under way, and returns nothing of an ingest that has ended.
	Needs() (leaves []tree.Span, more []tree.Ref)
}

// Env is what a GC works on.
type Env struct {
	Host
	Index    *index.Index
	Fleet    *fleet.Fleet // nil in a folder
	Files    *pack.Files
	Sec      *secret.Secrets
	Dec      *codec.Decoder
	Pools    *ahead.Pools
	PackSize int64         // where a pack is full, in bytes
	Young    time.Duration // how old a pack of a bucket must be to be looked at; 0 means YoungPacks grace times
}
