package fusefs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/fusefs"
)

// fake is an engine whose every checkpoint has other bytes and another size.
type fake struct {
	ctl string
	gen atomic.Int64
}

// event adds a line to a log in the control folder.
func (e *fake) event(format string, args ...any) {
	f, err := os.OpenFile(filepath.Join(e.ctl, "events"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err) // of a test helper
	}
	defer f.Close()
	fmt.Fprintf(f, format+"\n", args...)
}

// number reads a number from the control folder, 0 if there is none.
func (e *fake) number(name string) int {
	b, err := os.ReadFile(filepath.Join(e.ctl, name))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

func (e *fake) sleep(ctx context.Context, name string) error {
	select {
	case <-time.After(time.Duration(e.number(name)) * time.Millisecond):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *fake) fail(name string) error {
	if n := e.number(name); n != 0 {
		return fmt.Errorf("the fake was told so: %w", syscall.Errno(n))
	}
	return nil
}

func (e *fake) Take(ctx context.Context, pid int, o fusefs.TakeOptions) (fusefs.Checkpoint, error) {
	e.event("take %d", pid)
	if err := errors.Join(e.sleep(ctx, "take-delay"), e.fail("take-errno")); err != nil {
		return nil, err
	}
	o.Log("taken by the fake " + o.Policy.String())
	if o.Track != nil {
		o.Log("tracked")
	}
	b, m, chunks, err := fakeImage(e.gen.Add(1))
	return &fakeCheckpoint{e, b, m, chunks}, err
}

// fakeTracker counts itself.
type fakeTracker struct{ e *fake }

func (e *fake) NewTracker() fusefs.Tracker {
	e.event("track")
	return fakeTracker{e}
}

func (t fakeTracker) Info() fusefs.TrackInfo { return fusefs.TrackInfo{Processes: 1} }
func (t fakeTracker) Close() error           { t.e.event("untrack"); return nil }

func (e *fake) Estimate(int) (int64, error) { return 8 << 20, nil }

func (e *fake) Explain(pid int, _ policy.Set) ([]image.Finding, error) {
	return []image.Finding{{Severity: image.Lose, PID: int32(pid), FD: 3, Kind: "fake", What: "is lost"}}, nil
}

func (e *fake) Tree(pid int) ([]int, error) {
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", tree[i]))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			b, _ := os.ReadFile(f) // "" for one that ended
			for _, s := range strings.Fields(string(b)) {
				kid, _ := strconv.Atoi(s)
				tree = append(tree, kid)
			}
		}
	}
	return tree, nil
}

func (e *fake) Freeze(_ context.Context, pid int) (fusefs.Frozen, error) {
	e.event("freeze %d", pid)
	return &fakeFrozen{e, pid}, e.fail("freeze-errno")
}

func (e *fake) Restore(ctx context.Context, r *image.Reader, o fusefs.RestoreOptions) (*fusefs.Restored, error) {
	e.event("restore %s", r.Root())
	if err := errors.Join(e.sleep(ctx, "restore-delay"), e.fail("restore-errno")); err != nil {
		return nil, err
	}
	o.Log("restored by the fake")
	if o.Lazy != nil {
		e.lazily(o.Lazy)
	}
	if o.Template != nil {
		e.event("shared")
	}
	if err := os.WriteFile(o.OutPath, []byte("hello from the tree\n"), 0o600); err != nil {
		return nil, err
	}
	return &fusefs.Restored{Root: 1000, PIDs: []int{1000, 1001}, Warnings: []string{"a warning"}}, nil
}

// lazily brings memory when it is told to, and then reads the image to its end.
func (e *fake) lazily(o *fusefs.LazyOptions) {
	p := fusefs.LazyProgress{Server: 7, PIDs: []int{1000}, Missing: 5, Total: 10}
	o.Report(p)
	from := o.Image
	if f, ok := from.(*os.File); ok {
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			panic(err) // of a test helper
		}
		from = os.NewFile(uintptr(fd), f.Name())
	}
	go func() {
		defer o.Release()
		for e.number("bring") == 0 {
			time.Sleep(time.Millisecond)
		}
		if _, err := from.ReadAt(make([]byte, o.Size), 0); err != nil {
			o.Log("the image cannot be read: " + err.Error())
		}
		p.Missing, p.Done, p.PIDs = 0, true, nil
		o.Report(p)
	}()
}

func (e *fake) Template(ctx context.Context, r *image.Reader) (fusefs.Template, error) {
	e.event("template %s", r.Root())
	return &fakeTemplate{e: e}, errors.Join(e.sleep(ctx, "template-delay"), e.fail("template-errno"))
}

// fakeTemplate is gone when the fake is told so.
type fakeTemplate struct{ e *fake }

func (t *fakeTemplate) Bytes() int64 { return 3 << 20 }
func (t *fakeTemplate) PID() int     { return 4321 }
func (t *fakeTemplate) Gone() bool   { return t.e.number("template-gone") != 0 }
func (t *fakeTemplate) Close() error { t.e.event("drop"); return nil }

type fakeFrozen struct {
	e   *fake
	pid int
}

func (z *fakeFrozen) Take(ctx context.Context, o fusefs.TakeOptions) (fusefs.Checkpoint, error) {
	return z.e.Take(ctx, z.pid, o)
}

func (z *fakeFrozen) Thaw() error { z.e.event("thaw %d", z.pid); return nil }

func (z *fakeFrozen) Kill() error {
	z.e.event("kill %d", z.pid)
	return syscall.Kill(z.pid, syscall.SIGKILL)
}

type fakeCheckpoint struct {
	e      *fake
	b      []byte
	m      *image.Manifest
	chunks []image.Chunk
}

// Stored wants no reader.
func (c *fakeCheckpoint) Stored(_ io.ReaderAt, release func()) { release() }

func (c *fakeCheckpoint) Size() int64               { return int64(len(c.b)) }
func (c *fakeCheckpoint) Manifest() *image.Manifest { return c.m }
func (c *fakeCheckpoint) Close() error              { c.e.event("close"); return nil }

func (c *fakeCheckpoint) Stream(ctx context.Context, sink image.Sink) (root image.Hash, err error) {
	emitted := func(off int64, p []byte) error {
		if err := c.e.sleep(ctx, "chunk-delay"); err != nil {
			return err
		}
		b := sink.Block(len(p))
		copy(b.Bytes(), p)
		if err := b.Ready([]image.Chunk{{Off: off, Len: len(p)}}, []image.Hash{image.HashOf(p)}); err != nil {
			return err
		}
		return b.Append()
	}
	for i, ch := range c.chunks {
		if i == len(c.chunks)/2 {
			if err := c.e.fail("stream-errno"); err != nil {
				return root, err
			}
		}
		if err := emitted(ch.Off, c.b[ch.Off:ch.Off+int64(ch.Len)]); err != nil {
			return root, err
		}
	}
	last := c.chunks[len(c.chunks)-1]
	for off := last.Off + int64(last.Len); off < c.Size(); {
		n := min(c.Size()-off, image.ChunkSize)
		if err := emitted(off, c.b[off:off+n]); err != nil {
			return root, err
		}
		off += n
	}
	r, err := image.Open(bytes.NewReader(c.b), c.Size())
	if err != nil {
		return root, err
	}
	return r.Root(), nil
}

// fakeImage makes a valid image of about 3 MiB: every word holds its generation and address.
func fakeImage(gen int64) ([]byte, *image.Manifest, []image.Chunk, error) {
	m := imagetest.Manifest()
	heap := &m.MMs[0].VMAs[1]
	heap.End = heap.Start + 4<<20
	heap.Extents = []image.Extent{{Start: heap.Start, Len: 3<<20 + uint64(gen%7)<<12}}
	for i := range m.MMs[0].VMAs[2:] {
		v := &m.MMs[0].VMAs[2+i]
		v.Start, v.End = v.Start+1<<30, v.End+1<<30
	}
	head, l, err := image.Encode(m)
	if err != nil {
		return nil, nil, nil, err
	}
	b := make([]byte, l.HeadLen+l.DataLen, l.Total)
	copy(b, head)
	for i := l.HeadLen; i < int64(len(b)); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(gen)<<32|uint64(i))
	}
	hashes := make([]image.Hash, len(l.Chunks))
	for i, c := range l.Chunks {
		hashes[i] = image.HashOf(b[c.Off : c.Off+int64(c.Len)])
	}
	trailer, _, err := l.Trailer(hashes)
	return append(b, trailer...), m, l.Chunks, err
}
