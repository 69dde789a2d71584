package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
)

// TestCutAsTheEngine compares our chunks with those of an image.
func TestCutAsTheEngine(t *testing.T) {
	m := imagetest.Manifest()
	b := imagetest.Bytes(t, m, imagetest.Fill)
	r := imagetest.Open(t, b)
	in := &input{data: b[r.Layout.HeadLen:]}
	for i := range m.MMs {
		for _, v := range m.MMs[i].VMAs {
			in.regions = append(in.regions, region{Extents: v.Extents})
		}
	}
	for _, s := range m.Segments {
		in.regions = append(in.regions, region{Extents: s.Extents})
	}
	ours := in.cut(image.ChunkSize)
	for _, c := range r.Layout.Chunks {
		if c.Region.Kind != image.RegionVMA && c.Region.Kind != image.RegionSegment {
			continue
		}
		if len(ours) == 0 {
			t.Fatalf("no chunk for %+v", c)
		}
		if !bytes.Equal(ours[0], b[c.Off:c.Off+int64(c.Len)]) {
			t.Errorf("our chunk of %d bytes is not %+v", len(ours[0]), c)
		}
		ours = ours[1:]
	}
	if len(ours) > 0 {
		t.Errorf("%d chunks too many", len(ours))
	}
}

// testInput is an image of pages that repeat, compress, do neither or are zeros.
func testInput(seed, start uint64, pages int) *input {
	rng := rand.New(rand.NewPCG(seed, 1))
	in := &input{name: "x", data: make([]byte, pages*pageSize)}
	for i := range pages {
		page := in.data[i*pageSize : (i+1)*pageSize]
		switch i % 7 {
		case 0:
			copy(page, strings.Repeat("the same everywhere", 200))
		case 1:
		case 2, 3:
			for j := range page {
				page[j] = byte(rng.Uint32())
			}
		default:
			for j := 0; j < len(page); {
				j += copy(page[j:], redisWords[rng.IntN(len(redisWords))]+" ")
			}
		}
	}
	hole := uint64(pages/3) * pageSize
	in.regions = []region{{Extents: []image.Extent{{Start: start, Len: hole}, {Start: start + hole + 8*pageSize, Len: uint64(len(in.data)) - hole}}}}
	return in
}

func TestCut(t *testing.T) {
	in := testInput(1, 0x7f0000003000, 1000)
	moved := testInput(1, 0x7f1230009000, 1000)
	for _, size := range []uint64{4 << 10, 16 << 10, 64 << 10, 256 << 10} {
		plain, content := in.cut(size), in.cutByContent(size)
		if n := len(in.windows(size)); n != len(plain) {
			t.Errorf("%d: %d places for %d chunks", size, n, len(plain))
		}
		for i, c := range [][][]byte{plain, content} {
			longest := int(size)
			if i == 1 {
				longest *= 4
			}
			for _, b := range c {
				if len(b) > longest || len(b) == 0 {
					t.Errorf("%d: a chunk of %d bytes", size, len(b))
				}
			}
			if !bytes.Equal(bytes.Join(c, nil), in.data) {
				t.Errorf("%d: the chunks are not the image", size)
			}
		}
		if len(content) != len(moved.cutByContent(size)) {
			t.Errorf("%d: cut by content depends on the address", size)
		}
	}
}

// TestMemstore stores two images that differ in one page with every scheme and reads them.
func TestMemstore(t *testing.T) {
	a, b := testInput(1, 0, 700), testInput(1, 0, 700)
	b.data[500*pageSize+7]++
	for _, c := range schemes() {
		s, err := newMemstore(c.cutting, []*input{a, b}, 0, c.codec)
		if err != nil {
			t.Fatal(err)
		}
		refs := s.ingest(a)
		first := s.tally(0)
		again := s.ingest(b)
		second := s.tally(0)
		for _, r := range [][]chunkRef{refs, again} {
			if err := s.read(r); err != nil {
				t.Errorf("%s: %v", c.name(), err)
			}
		}
		// A cut by content may move the end of a chunk.
		if n := second[kindData].chunks - first[kindData].chunks; n < 1 || n > 1 && !c.byContent || n > 2 {
			t.Errorf("%s: one page changed, %d chunks stored", c.name(), n)
		}
		if first[kindData].stored >= first[kindData].raw && !c.codec.same(&codecNone) || first[kindData].raw > int64(len(a.data)) {
			t.Errorf("%s: nothing was saved: %+v", c.name(), first)
		}
		for _, w := range s.workers {
			for _, slab := range w.slabs {
				for i := range slab {
					slab[i] ^= 0x55
				}
			}
		}
		if err := s.read(refs); err == nil {
			t.Errorf("%s: damage was not noticed", c.name())
		}
	}
}

// TestDelta stores a second image of which some pages changed.
func TestDelta(t *testing.T) {
	a, b := testInput(1, 0, 700), testInput(1, 0, 700)
	for i := range 16 {
		b.data[(500+i)*pageSize] ^= 1 // all of one chunk at least is touched
	}
	b.data[100*pageSize] ^= 1
	s, err := newMemstore(cutting{size: deltaChunk, delta: true}, []*input{a, b}, 1, codecZstd)
	if err != nil {
		t.Fatal(err)
	}
	s.ingest(a)
	first := s.tally(0)
	s.ingest(b)
	second := s.tally(0)
	changed := len(chunksOf(b)) // chunks of b that are not in a, told without the store
	for _, c := range chunksOf(a) {
		for _, d := range chunksOf(b) {
			if bytes.Equal(c, d) {
				changed--
				break
			}
		}
	}
	grown := second[kindData].raw - first[kindData].raw
	if n := second[kindData].chunks - first[kindData].chunks; n != int64(changed) || grown >= n*deltaChunk || grown < 17*pageSize {
		t.Errorf("%d chunks of %d bytes, %d changed", n, grown, changed)
	}
}

// deltaChunk is the size of the chunks that TestDelta cuts.
const deltaChunk = 64 << 10

func chunksOf(in *input) [][]byte { return in.cut(deltaChunk) }

// TestCountAll checks that counting several codecs gives what each of them gives.
func TestCountAll(t *testing.T) {
	in := testInput(3, 0, 1000)
	dict, err := train([]*input{{program: "x", data: in.data, regions: in.regions}}, 4<<10)
	if err != nil {
		t.Fatal(err)
	}
	kinds := []codecKind{codecS2, codecMinLZ, codecSuper, codecZstd, codecProbe, codecEntropy, codecDefault, dict}
	together, err := newMemstore(cutting{size: 16 << 10}, []*input{in}, 1, kinds...)
	if err != nil {
		t.Fatal(err)
	}
	together.ingest(in)
	for i, k := range kinds {
		alone, err := newMemstore(cutting{size: 16 << 10}, []*input{in}, 0, k)
		if err != nil {
			t.Fatal(err)
		}
		refs := alone.ingest(in)
		if got, want := together.tally(i), alone.tally(0); got != want {
			t.Errorf("%s: %+v together, %+v alone", k.name, got, want)
		}
		if err := alone.read(refs); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
	}
}

// TestTree changes one chunk of many: only its leaf and what is above may change.
func TestTree(t *testing.T) {
	const chunks = 100_000
	rng := rand.New(rand.NewPCG(1, 2))
	refs := make([]chunkRef, chunks)
	for i := range refs {
		for j := range refs[i].hash {
			refs[i].hash[j] = byte(rng.Uint32())
		}
	}
	seen := map[hash]bool{}
	var stored, nodes int
	put := func(node []byte) hash {
		h := image.HashOf(node)
		if !seen[hash(h)] {
			seen[hash(h)] = true
			nodes++
			stored += len(node)
		}
		return hash(h)
	}
	putTree(refs, put)
	if stored < chunks*leafLen || stored > chunks*leafLen*11/10 || nodes < chunks/80 || nodes > chunks/50 {
		t.Errorf("%d bytes in %d nodes for %d chunks", stored, nodes, chunks)
	}
	before := nodes
	refs[chunks/2].hash[0]++
	putTree(refs, put)
	if n := nodes - before; n < 2 || n > 6 {
		t.Errorf("%d nodes changed", n)
	}
}

// TestSnapshot reads the memory of a process whose environment we know.
func TestSnapshot(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	cmd.Env = []string{"MARK=this is on the stack"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	})
	path := filepath.Join(t.TempDir(), "x.raw")
	if err := stopAndTake(cmd.Process.Pid, path, os.Stderr); err != nil {
		t.Fatal(err)
	}
	in, err := loadInput(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(in.data, []byte(cmd.Env[0])) {
		t.Errorf("%d bytes, and no stack among them", len(in.data))
	}
	if want := 32 * len(in.cut(image.ChunkSize)); len(in.whole)-len(in.data) != want {
		t.Errorf("a trailer of %d bytes, not %d", len(in.whole)-len(in.data), want)
	}
	if err := in.close(); err != nil {
		t.Error(err)
	}
}
