package image

import (
	"io"
	"sync"
)

// Sink takes an image while it is being made, in blocks of some neighbouring chunks.
type Sink interface {
	// Block returns memory for the next n bytes of the image.
	Block(n int) Block
}

// Block is memory on its way into a Sink. Several are under way at once: they get ready in any
// order and on any goroutine, and are then appended in the order of the image.
type Block interface {
	// Bytes is the memory, as long as was asked for.
	Bytes() []byte
	// Ready is called when the bytes are there, with the chunks that they consist of and the
	// hash of each. It takes the time of the goroutine that calls it.
	Ready(chunks []Chunk, hashes []Hash) error
	// Append makes the block the next one of the image. It is the last call.
	Append() error
}

// Referrer is a Sink that may have chunks already, and then needs no bytes of them.
type Referrer interface {
	Sink
	// Refer returns a block that is ready: it has these chunks, whose hashes are known, as the image base has them.
	// It returns nil if any of them is not there, and may be called by several goroutines at once.
	Refer(base io.ReaderAt, chunks []Chunk, hashes []Hash) (Block, error)
}

// Writer is a Sink that only wants the bytes: write gets them in the order of the image, and may
// not keep them.
func Writer(write func(b []byte) error) Sink {
	w := &writer{write: write}
	w.pool.New = func() any { return &written{w: w} }
	return w
}

type writer struct {
	write func(b []byte) error
	pool  sync.Pool
}

// written is a Block of a writer.
type written struct {
	w *writer
	b []byte
}

func (w *writer) Block(n int) Block {
	b := w.pool.Get().(*written)
	if cap(b.b) < n {
		b.b = make([]byte, n)
	}
	b.b = b.b[:n]
	return b
}

func (b *written) Bytes() []byte { return b.b }

func (b *written) Ready([]Chunk, []Hash) error { return nil }

func (b *written) Append() error {
	err := b.w.write(b.b)
	b.w.pool.Put(b)
	return err
}
