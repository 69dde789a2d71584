package fusefs

import (
	"io"

	"github.com/ckptfs/ckptfs/store"
)

// lean keeps the image that this checkpoint refers to open until it is stored itself, and returns it; nil if it is none of
// those that were given to Checkpoint.Stored.
func (s *session) lean(base io.ReaderAt) *store.Reader {
	b, ok := base.(*sharedReader)
	if !ok {
		return nil
	}
	if s.base.CompareAndSwap(nil, b) {
		b.share()
	}
	if s.base.Load() != b {
		return nil
	}
	return b.Reader
}

// standAlone is the end of lean.
func (s *session) standAlone() {
	if b := s.base.Swap(nil); b != nil {
		_ = b.release() // only read
	}
}

// handOver lets the next checkpoint of the tree refer to this one, which stays open as long.
func (f *filesystem) handOver(cp Checkpoint, name string) {
	r, err := f.store.OpenImage(name)
	if err != nil {
		f.logf("%s: the next checkpoint of this process will be a full one: %v", name, err)
		return
	}
	shared := newSharedReader(r)
	cp.Stored(shared, func() { _ = shared.release() }) // only read
}
