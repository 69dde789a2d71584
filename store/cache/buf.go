package cache

import (
	"sync"
	"sync/atomic"
)

// Buf is a pooled buffer that several holders share: the queue, the window of a running
// ingest, readers. The last one gives it back.
type Buf struct {
	Data []byte
	refs atomic.Int32
	pool *Pool // nil: the memory is somebody else's
}

// Hold adds a holder.
func (b *Buf) Hold() *Buf {
	b.refs.Add(1)
	return b
}

// Release takes a holder away.
func (b *Buf) Release() {
	if b.refs.Add(-1) == 0 && b.pool != nil {
		b.pool.p.Put(b)
	}
}

// Wrap returns a buffer over memory that is somebody else's, held once.
func Wrap(data []byte) *Buf {
	b := &Buf{Data: data[:len(data):len(data)]}
	b.refs.Store(1)
	return b
}

// Pool makes buffers for at least least bytes.
type Pool struct {
	p     sync.Pool
	least int
}

// Init makes a pool ready, whose buffers have room for least bytes.
func (bp *Pool) Init(least int) {
	bp.least = least
	bp.p.New = func() any { return &Buf{pool: bp} }
}

// Get returns a buffer of n bytes, held once.
func (bp *Pool) Get(n int) *Buf {
	b := bp.p.Get().(*Buf)
	if cap(b.Data) < n {
		b.Data = make([]byte, n, max(n, bp.least))
	}
	b.Data = b.Data[:n]
	b.refs.Store(1)
	return b
}
