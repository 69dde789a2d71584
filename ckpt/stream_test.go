package ckpt

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// picky is a Sink that keeps what it gets, and checks how it is used.
type picky struct {
	t         *testing.T
	got       []byte
	appending atomic.Bool
	blocks    int // that were begun
	appended  atomic.Int32
	fail      func(appended int) error // of an Append
	refuse    func(first byte) error   // of a Ready
}

type pickyBlock struct {
	p *picky
	b []byte
	n int
}

func (p *picky) Block(n int) image.Block {
	p.blocks++
	if p.blocks-int(p.appended.Load()) > aheadBatches+runtime.GOMAXPROCS(0) {
		p.t.Errorf("%d blocks are begun, and %d appended", p.blocks, p.appended.Load())
	}
	return &pickyBlock{p, make([]byte, n), p.blocks}
}

func (b *pickyBlock) Bytes() []byte { return b.b }

func (b *pickyBlock) Ready([]image.Chunk, []image.Hash) error {
	if rand.IntN(4) == 0 {
		runtime.Gosched()
	}
	if b.p.refuse != nil {
		return b.p.refuse(b.b[0])
	}
	return nil
}

func (b *pickyBlock) Append() error {
	if !b.p.appending.CompareAndSwap(false, true) {
		b.p.t.Error("two blocks are appended at once")
	}
	defer b.p.appending.Store(false)
	n := int(b.p.appended.Add(1))
	if b.n != n {
		b.p.t.Errorf("block %d is appended as number %d", b.n, n)
	}
	b.p.got = append(b.p.got, b.b...)
	if b.p.fail != nil {
		return b.p.fail(n)
	}
	return nil
}

// TestStreaming: what many goroutines read comes in order, and what goes wrong with one ends all.
func TestStreaming(t *testing.T) {
	want := make([]byte, 300*batchLen+12345)
	for i := range want {
		want[i] = byte(i / 777 * 31)
	}
	full := errors.New("the disk is full")
	for _, c := range []struct {
		name   string
		fail   func(int) error
		refuse func(byte) error
		cancel int
		want   error
	}{
		{name: "all goes well"},
		{name: "the sink fails", fail: func(n int) error { return when(n == 200, full) }, want: full},
		{name: "a block fails", refuse: func(b byte) error { return when(b == want[len(want)/2/batchLen*batchLen], full) }, want: full},
		{name: "it is cancelled", cancel: 100, want: context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p := &picky{t: t, fail: c.fail, refuse: c.refuse}
			if c.cancel > 0 {
				p.fail = func(n int) error {
					if n == c.cancel {
						cancel()
						<-ctx.Done()
					}
					return nil
				}
			}
			var chunks []image.Chunk
			src := &source{}
			src.add(bytesReader(want), 0, len(want), "memory")
			for off := 0; off < len(want); off += image.ChunkSize {
				chunks = append(chunks, image.Chunk{Off: int64(off), Len: min(image.ChunkSize, len(want)-off)})
			}
			rest := chunks
			s := &streaming{sink: p, src: src, next: func() *batch {
				n := min(len(rest), batchLen/image.ChunkSize)
				if n == 0 {
					return nil
				}
				b := &batch{chunks: rest[:n]}
				for _, c := range b.chunks {
					b.size += c.Len
				}
				rest = rest[n:]
				return b
			}}
			err := s.run(ctx)
			if !errors.Is(err, c.want) {
				t.Fatalf("it ended with %v, want %v", err, c.want)
			}
			if !bytes.Equal(p.got, want[:len(p.got)]) {
				t.Error("the bytes are others")
			}
			if err != nil {
				return
			}
			if len(p.got) != len(want) || len(s.hashes) != len(chunks) {
				t.Fatalf("%d bytes of %d, %d hashes of %d", len(p.got), len(want), len(s.hashes), len(chunks))
			}
			for i, ch := range chunks {
				if s.hashes[i] != image.HashOf(want[ch.Off:][:ch.Len]) {
					t.Fatalf("hash %d is another one", i)
				}
			}
		})
	}
}

func when(cond bool, err error) error {
	if cond {
		return err
	}
	return nil
}
