package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"github.com/zeebo/blake3"
)

// The format of an index run; doc.go draws it.
const (
	runMagic    = "ckptrun1"
	runHeadLen  = 64 // magic 8, packs 4, zero 4, entries 8, zero 8, BLAKE3 of head, table and sparse index 32
	runPackLen  = 32 // id 16, size 8, created 8
	runBlock    = 4096
	runEntryLen = 48 // hash 32, offset 4, stored 4, raw and codec 4, pack 4
	perBlock    = 85 // entries of a block; its last 16 bytes are CRC-32C 4, zero 12
	maxRunPacks = 1 << 20
	maxRunLen   = 1 << 31 // entries
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errRun = errors.New("the index file is damaged")

// runError says which run is damaged; healIndex makes it again.
type runError struct {
	run *run
	err error
}

func (e *runError) Error() string {
	return fmt.Sprintf("the index file %s is damaged: %v; delete it, it is made again from the packs", e.run.path, e.err)
}

func (e *runError) Unwrap() []error { return []error{errRun, e.err} }

// run is a sorted, immutable part of the index. It can be made again from its packs.
type run struct {
	path   string
	f      *os.File
	packs  []*pack
	n      int
	data   int64    // where the blocks begin
	sparse []uint64 // first eight bytes of the first hash of every block
}

func (r *run) blocks() int { return (r.n + perBlock - 1) / perBlock }

func key8(h *Hash) uint64 { return binary.BigEndian.Uint64(h[:8]) }

var blockPool = sync.Pool{New: func() any { return new([runBlock]byte) }}

// find looks h up: one block is read, unless two blocks begin with equal keys.
func (r *run) find(h *Hash, accept func(loc, *run, int) bool) (pos int, l loc, ok bool, err error) {
	k := key8(h)
	b := sort.Search(len(r.sparse), func(i int) bool { return r.sparse[i] > k }) - 1
	block := blockPool.Get().(*[runBlock]byte)
	defer blockPool.Put(block)
	for ; b >= 0; b-- {
		n, err := r.block(b, block)
		if err != nil {
			return 0, l, false, err
		}
		i := sort.Search(n, func(i int) bool { return bytes.Compare(block[i*runEntryLen:i*runEntryLen+32], h[:]) >= 0 })
		if i < n && Hash(block[i*runEntryLen:i*runEntryLen+32]) == *h {
			pos := b*perBlock + i
			if l, err = r.loc(block[i*runEntryLen:]); err != nil || accept(l, r, pos) {
				return pos, l, err == nil, err
			}
			return 0, l, false, nil
		}
		if r.sparse[b] < k {
			break
		}
	}
	return 0, l, false, nil
}

// block reads and checks one block and returns the number of its entries.
func (r *run) block(b int, buf *[runBlock]byte) (int, error) {
	if _, err := r.f.ReadAt(buf[:], r.data+int64(b)*runBlock); err != nil {
		return 0, &runError{r, fmt.Errorf("block %d: %w", b, err)}
	}
	return r.checkBlock(b, buf)
}

func (r *run) checkBlock(b int, buf *[runBlock]byte) (int, error) {
	if crc32.Checksum(buf[:perBlock*runEntryLen], castagnoli) != binary.LittleEndian.Uint32(buf[perBlock*runEntryLen:]) {
		return 0, &runError{r, fmt.Errorf("block %d: checksum", b)}
	}
	return min(perBlock, r.n-b*perBlock), nil
}

func (r *run) loc(rec []byte) (loc, error) {
	raw := binary.LittleEndian.Uint32(rec[40:])
	pk := binary.LittleEndian.Uint32(rec[44:])
	l := loc{off: binary.LittleEndian.Uint32(rec[32:]), stored: binary.LittleEndian.Uint32(rec[36:]),
		raw: raw & 0xffffff, codec: uint8(raw >> 24)}
	if int(pk) >= len(r.packs) || l.raw == 0 || l.raw > MaxChunk || l.stored > 2*MaxChunk {
		return l, &runError{r, errors.New("entry out of bounds")}
	}
	l.p = r.packs[pk]
	return l, nil
}

// openRun reads head, pack table and sparse index. known gives the packs that exist; a
// pack it does not have is entered as gone.
func openRun(path string, known func(id fileID, size, created int64) *pack) (*run, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	var r *run
	if err == nil {
		r, err = readRun(f, st.Size(), known)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.f, r.path = f, path
	return r, nil
}

func readRun(f io.ReaderAt, size int64, known func(id fileID, size, created int64) *pack) (*run, error) {
	head := make([]byte, runHeadLen)
	if _, err := f.ReadAt(head, 0); err != nil || string(head[:8]) != runMagic {
		return nil, fmt.Errorf("%w: no header", errRun)
	}
	packs := int64(binary.LittleEndian.Uint32(head[8:]))
	n := binary.LittleEndian.Uint64(head[16:])
	if packs > maxRunPacks || n > maxRunLen {
		return nil, fmt.Errorf("%w: %d packs, %d chunks", errRun, packs, n)
	}
	blocks := (int64(n) + perBlock - 1) / perBlock
	data := alignBlock(runHeadLen + packs*runPackLen)
	if data+blocks*runBlock+blocks*8 != size {
		return nil, fmt.Errorf("%w: %d bytes for %d packs and %d chunks", errRun, size, packs, n)
	}
	table := make([]byte, packs*runPackLen)
	sparse := make([]byte, blocks*8)
	if _, err := f.ReadAt(table, runHeadLen); err != nil && len(table) > 0 {
		return nil, fmt.Errorf("%w: %w", errRun, err)
	}
	if _, err := f.ReadAt(sparse, size-blocks*8); err != nil && len(sparse) > 0 {
		return nil, fmt.Errorf("%w: %w", errRun, err)
	}
	if runSum(head, table, sparse) != Hash(head[32:]) {
		return nil, fmt.Errorf("%w: checksum", errRun)
	}
	r := &run{n: int(n), data: data, sparse: make([]uint64, blocks), packs: make([]*pack, packs)}
	for i := range r.sparse {
		r.sparse[i] = binary.LittleEndian.Uint64(sparse[i*8:])
	}
	for i := range r.packs {
		t := table[i*runPackLen:]
		r.packs[i] = known(fileID(t[:16]), int64(binary.LittleEndian.Uint64(t[16:])), int64(binary.LittleEndian.Uint64(t[24:])))
	}
	return r, nil
}

func alignBlock(n int64) int64 { return (n + runBlock - 1) &^ (runBlock - 1) }

func runSum(head, table, sparse []byte) (sum Hash) {
	h := blake3.New()
	h.Write(head[:32])
	h.Write(table)
	h.Write(sparse)
	h.Sum(sum[:0])
	return sum
}

// runWriter writes a run from entries that come in order of their hash.
type runWriter struct {
	f      *os.File
	path   string
	w      *bufio.Writer
	packs  []*pack
	number map[*pack]uint32
	n      int
	block  [runBlock]byte
	sparse []byte
}

func newRunWriter(dir string, packs []*pack) (*runWriter, error) {
	w := &runWriter{path: filepath.Join(dir, newID().String()+runExt), packs: packs, number: make(map[*pack]uint32, len(packs))}
	for i, p := range packs {
		w.number[p] = uint32(i)
	}
	f, err := os.OpenFile(w.path+tmpExt, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	w.f, w.w = f, bufio.NewWriterSize(f, 1<<18)
	_, err = w.w.Write(make([]byte, alignBlock(runHeadLen+int64(len(packs))*runPackLen)))
	if err != nil {
		w.abort()
		return nil, err
	}
	return w, nil
}

func (w *runWriter) add(h *Hash, l *loc) error {
	i := w.n % perBlock
	if i == 0 {
		if err := w.flushBlock(); err != nil {
			return err
		}
		w.sparse = binary.LittleEndian.AppendUint64(w.sparse, key8(h))
	}
	rec := w.block[i*runEntryLen : i*runEntryLen : (i+1)*runEntryLen]
	rec = append(rec, h[:]...)
	rec = binary.LittleEndian.AppendUint32(rec, l.off)
	rec = binary.LittleEndian.AppendUint32(rec, l.stored)
	rec = binary.LittleEndian.AppendUint32(rec, l.raw|uint32(l.codec)<<24)
	binary.LittleEndian.AppendUint32(rec, w.number[l.p])
	w.n++
	return nil
}

func (w *runWriter) flushBlock() error {
	if w.n == 0 {
		return nil
	}
	binary.LittleEndian.PutUint32(w.block[perBlock*runEntryLen:], crc32.Checksum(w.block[:perBlock*runEntryLen], castagnoli))
	_, err := w.w.Write(w.block[:])
	clear(w.block[:])
	return err
}

// finish makes the run durable and visible, and opens it.
func (w *runWriter) finish() (*run, error) {
	r, err := w.complete()
	if err != nil {
		w.abort()
		return nil, err
	}
	return r, nil
}

func (w *runWriter) complete() (*run, error) {
	if err := w.flushBlock(); err != nil {
		return nil, err
	}
	if _, err := w.w.Write(w.sparse); err != nil {
		return nil, err
	}
	if err := w.w.Flush(); err != nil {
		return nil, err
	}
	head := make([]byte, runHeadLen)
	copy(head, runMagic)
	binary.LittleEndian.PutUint32(head[8:], uint32(len(w.packs)))
	binary.LittleEndian.PutUint64(head[16:], uint64(w.n))
	var table []byte
	for _, p := range w.packs {
		table = append(table, p.id[:]...)
		table = binary.LittleEndian.AppendUint64(table, uint64(p.size))
		table = binary.LittleEndian.AppendUint64(table, uint64(p.created))
	}
	sum := runSum(head, table, w.sparse)
	copy(head[32:], sum[:])
	if _, err := w.f.WriteAt(append(head, table...), 0); err != nil {
		return nil, err
	}
	if err := w.f.Sync(); err != nil {
		return nil, err
	}
	r := &run{path: w.path, f: w.f, packs: w.packs, n: w.n,
		data: alignBlock(runHeadLen + int64(len(table))), sparse: make([]uint64, len(w.sparse)/8)}
	for i := range r.sparse {
		r.sparse[i] = binary.LittleEndian.Uint64(w.sparse[i*8:])
	}
	return r, publish(w.path+tmpExt, w.path)
}

func (w *runWriter) abort() {
	w.f.Close()
	os.Remove(w.path + tmpExt) // best effort: Open removes what stays
}

// runIter walks the entries of a run in order.
type runIter struct {
	r     *run
	src   *bufio.Reader
	block [runBlock]byte
	pos   int
	hash  Hash
	loc   loc
}

func (r *run) iter() *runIter {
	return &runIter{r: r, pos: -1,
		src: bufio.NewReaderSize(io.NewSectionReader(r.f, r.data, int64(r.blocks())*runBlock), 1<<18)}
}

// next steps on; false at the end.
func (it *runIter) next() (bool, error) {
	it.pos++
	if it.pos >= it.r.n {
		return false, nil
	}
	i := it.pos % perBlock
	if i == 0 {
		if _, err := io.ReadFull(it.src, it.block[:]); err != nil {
			return false, &runError{it.r, err}
		}
		if _, err := it.r.checkBlock(it.pos/perBlock, &it.block); err != nil {
			return false, err
		}
	}
	rec := it.block[i*runEntryLen:]
	it.hash = Hash(rec[:32])
	var err error
	it.loc, err = it.r.loc(rec)
	return err == nil, err
}
