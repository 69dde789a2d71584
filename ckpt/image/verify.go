package image

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// verifyRead is how much Verify reads at a time, bytes.
const verifyRead = 1 << 20

// verifiers is how many goroutines hash at the same time.
const verifiers = 2

// Verify reads the whole image and compares every chunk with the trailer, and the trailer with
// the root hash. The first difference is returned as a CorruptError with the chunk. progress,
// which may be nil, is told from one goroutine at a time how many of the image's bytes are done.
func (r *Reader) Verify(ctx context.Context, progress func(done, total int64)) error {
	hashes, err := r.readHashes()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v := &verification{r: r, hashes: hashes, progress: progress}
	var wg sync.WaitGroup
	for range verifiers {
		wg.Go(func() {
			if err := v.run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// readHashes reads the trailer and checks it against the root hash.
func (r *Reader) readHashes() ([]byte, error) {
	l := r.Layout
	off := l.HeadLen + l.DataLen
	hashes := make([]byte, l.TrailerLen-int64(footerLen))
	if err := readFull(r.r, hashes, off, "the trailer"); err != nil {
		return nil, err
	}
	if rootHash(hashes) != r.root {
		return nil, &CorruptError{Chunk: -1, Off: off, What: "the trailer does not have the root hash that it says"}
	}
	return hashes, nil
}

// verification is one Verify that runs.
type verification struct {
	r        *Reader
	hashes   []byte
	progress func(done, total int64)

	mu   sync.Mutex
	next int   // first chunk that nobody has taken
	done int64 // bytes
}

// run takes one batch of chunks after the other until there is none, or ctx ends.
func (v *verification) run(ctx context.Context) error {
	buf := make([]byte, verifyRead)
	for ctx.Err() == nil {
		from, to := v.take()
		if from == to {
			return nil
		}
		n, err := v.batch(buf, from, to)
		if err != nil {
			return err
		}
		v.report(n)
	}
	return nil
}

// take takes the next chunks that fit one read.
func (v *verification) take() (from, to int) {
	chunks := v.r.Layout.Chunks
	v.mu.Lock()
	defer v.mu.Unlock()
	from, to = v.next, v.next
	for n := 0; to < len(chunks) && n+chunks[to].Len <= verifyRead; to++ {
		n += chunks[to].Len
	}
	v.next = to
	return from, to
}

// batch checks chunks that stand one after the other in the file.
func (v *verification) batch(buf []byte, from, to int) (int64, error) {
	chunks := v.r.Layout.Chunks[from:to]
	last := chunks[len(chunks)-1]
	buf = buf[:last.Off+int64(last.Len)-chunks[0].Off]
	if err := readFull(v.r.r, buf, chunks[0].Off, "the data"); err != nil {
		return 0, err
	}
	n := int64(len(buf))
	for i, c := range chunks {
		want := v.hashes[(from+i)*len(Hash{}):]
		if sum := HashOf(buf[:c.Len]); string(sum[:]) != string(want[:len(sum)]) {
			return 0, &CorruptError{Chunk: from + i, Off: c.Off, What: fmt.Sprintf("chunk %d (%v, from %#x) does not have its hash", from+i, c.Region, c.Start)}
		}
		buf = buf[c.Len:]
	}
	return n, nil
}

// report counts bytes and tells about them.
func (v *verification) report(n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done += n
	if v.progress != nil {
		v.progress(v.done, v.r.Layout.HeadLen+v.r.Layout.DataLen)
	}
}

var _ io.ReaderAt = (*Reader)(nil)
