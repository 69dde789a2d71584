package store

import (
	"sync"
	"sync/atomic"
)

// buf is a pooled buffer that several holders share: the queue, the window of a running
// ingest, readers. The last one gives it back.
type buf struct {
	data []byte
	refs atomic.Int32
	pool *bufPool // nil: the memory is somebody else's
}

func (b *buf) hold() *buf {
	b.refs.Add(1)
	return b
}

func (b *buf) release() {
	if b.refs.Add(-1) == 0 && b.pool != nil {
		b.pool.p.Put(b)
	}
}

// bufPool makes buffers for at least least bytes.
type bufPool struct {
	p     sync.Pool
	least int
}

func (bp *bufPool) init(least int) {
	bp.least = least
	bp.p.New = func() any { return &buf{pool: bp} }
}

// get returns a buffer of n bytes, held once.
func (bp *bufPool) get(n int) *buf {
	b := bp.p.Get().(*buf)
	if cap(b.data) < n {
		b.data = make([]byte, n, max(n, bp.least))
	}
	b.data = b.data[:n]
	b.refs.Store(1)
	return b
}
