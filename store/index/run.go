package index

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/zeebo/blake3"
)

// The format of an index run; doc.go draws it.
const (
	runMagic    = "ckptrun2"
	runOldMagic = "ckptrun1" // without a filter
	runHeadLen  = 64         // magic 8, packs 4, zero 4, entries 8, CRC-32C of keys and filter 4, zero 4, BLAKE3 of head and table 32
	runPackLen  = 32         // id 16, size 8, created 8
	runBlock    = 4096
	runEntryLen = 48 // hash 32, offset 4, stored 4, raw and codec 4, pack 4
	perBlock    = 85 // entries of a block; its last 16 bytes are CRC-32C 4, zero 12
	runTailLen  = 8 + filterLen
	maxRunPacks = 1 << 20
	maxRunLen   = 1 << 31 // entries
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	ErrRun    = errors.New("the index file cannot be used")
	errOldRun = fmt.Errorf("%w: an earlier ckptfs wrote it", ErrRun)
)

// DamagedRun says which run is damaged; healIndex makes it again.
type DamagedRun struct {
	run *run
	err error
}

func (e *DamagedRun) Error() string {
	return fmt.Sprintf("the index file %s is damaged: %v; delete it, it is made again from the packs", e.run.path, e.err)
}

func (e *DamagedRun) Unwrap() []error { return []error{ErrRun, e.err} }

// runFile is what a run is read from.
type runFile interface {
	io.ReaderAt
	io.Closer
}

// run is a sorted, immutable part of the index. It can be made again from its packs, and
// opened from a file that another machine wrote. What of it is in memory is checked when
// it is opened, a block whenever it is read.
type run struct {
	path   string
	f      runFile
	packs  []*pack.Pack
	n      int
	data   int64  // where the blocks begin
	keys   []byte // first eight bytes of the first hash of every block
	filter []byte // filterLen for every block
}

func (r *run) blocks() int { return (r.n + perBlock - 1) / perBlock }

func (r *run) key(b int) uint64 { return binary.LittleEndian.Uint64(r.keys[8*b:]) }

// end is the key of what follows a block.
func (r *run) end(b int) uint64 {
	if 8*(b+1) < len(r.keys) {
		return r.key(b + 1)
	}
	return math.MaxUint64
}

// memory is how many bytes the tables of a run take.
func (r *run) memory() int { return cap(r.keys) + cap(r.filter) + 8*cap(r.packs) }

// lastBlock returns the last block whose first key is not above k, or -1. Hashes are
// spread evenly, so it cannot be far from where they say.
func (r *run) lastBlock(k uint64) int {
	n := r.blocks()
	hi, _ := bits.Mul64(k, uint64(n))
	from, to := int(hi), int(hi) // every block before from is not above k, those at to and later are
	for step := 8; from > 0 && r.key(from-1) > k; step *= 2 {
		to, from = from-1, max(0, from-step)
	}
	for step := 8; to < n && r.key(to) <= k; step *= 2 {
		from, to = to+1, min(n, to+step)
	}
	for from < to {
		if mid := int(uint(from+to) / 2); r.key(mid) <= k {
			from = mid + 1
		} else {
			to = mid
		}
	}
	return from - 1
}

var blockPool = sync.Pool{New: func() any { return new([runBlock]byte) }}

// find looks h up and adds the blocks it reads to reads: one if h is there, none if it is
// not, unless fingerprints are equal.
func (r *run) find(h *chunk.Hash, reads *atomic.Uint64) (pos int, l pack.Loc, ok bool, err error) {
	k := key8(h[:])
	for b := r.lastBlock(k); b >= 0; b-- {
		if slot := r.slot(b, h, 0); slot >= 0 {
			reads.Add(1)
			if pos, l, ok, err = r.look(b, slot, h); ok || err != nil {
				return pos, l, ok, err
			}
		}
		if r.key(b) < k {
			break // else it may stand in the block before
		}
	}
	return 0, pack.Loc{}, false, nil
}

// slot returns the first slot of a block, not before from, that may hold h, or -1.
func (r *run) slot(b int, h *chunk.Hash, from int) int {
	rec := r.filter[b*filterLen : (b+1)*filterLen]
	return filterSlot(rec, partOf(key8(h[:]), r.key(b), r.end(b)), fingerprint(h[:]), from)
}

// look reads a block and compares h with what stands in the slots where it may be.
func (r *run) look(b, slot int, h *chunk.Hash) (pos int, l pack.Loc, ok bool, err error) {
	block := blockPool.Get().(*[runBlock]byte)
	defer blockPool.Put(block)
	n, err := r.block(b, block)
	if err != nil {
		return 0, l, false, err
	}
	for ; slot >= 0 && slot < n; slot = r.slot(b, h, slot+1) {
		if rec := block[slot*runEntryLen:]; chunk.Hash(rec[:32]) == *h {
			l, err = r.loc(rec)
			return b*perBlock + slot, l, err == nil, err
		}
	}
	return 0, l, false, nil
}

// block reads and checks one block and returns the number of its entries.
func (r *run) block(b int, buf *[runBlock]byte) (int, error) {
	if _, err := r.f.ReadAt(buf[:], r.data+int64(b)*runBlock); err != nil {
		return 0, &DamagedRun{r, fmt.Errorf("block %d: %w", b, err)}
	}
	return r.checkBlock(b, buf)
}

func (r *run) checkBlock(b int, buf *[runBlock]byte) (int, error) {
	if crc32.Checksum(buf[:perBlock*runEntryLen], castagnoli) != binary.LittleEndian.Uint32(buf[perBlock*runEntryLen:]) {
		return 0, &DamagedRun{r, fmt.Errorf("block %d: checksum", b)}
	}
	return min(perBlock, r.n-b*perBlock), nil
}

func (r *run) loc(rec []byte) (pack.Loc, error) {
	raw := binary.LittleEndian.Uint32(rec[40:])
	pk := binary.LittleEndian.Uint32(rec[44:])
	l := pack.Loc{Off: binary.LittleEndian.Uint32(rec[32:]), Stored: binary.LittleEndian.Uint32(rec[36:]),
		Raw: raw & 0xffffff, Codec: uint8(raw >> 24)}
	if int(pk) >= len(r.packs) || l.Raw == 0 || l.Raw > chunk.MaxLen || l.Stored > 2*chunk.MaxLen {
		return l, &DamagedRun{r, errors.New("entry out of bounds")}
	}
	l.P = r.packs[pk]
	return l, nil
}

// openRun reads head, pack table, keys and filter. known gives the packs that exist; a
// pack it does not have is entered as gone.
func openRun(path string, known func(id disk.ID, size, created int64) *pack.Pack) (*run, error) {
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

// readRun checks all that is not in blocks. The file is still to be set.
func readRun(f io.ReaderAt, size int64, known func(id disk.ID, size, created int64) *pack.Pack) (*run, error) {
	head := make([]byte, runHeadLen)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w: no header: %w", ErrRun, err)
	}
	switch string(head[:8]) {
	case runMagic:
	case runOldMagic:
		return nil, errOldRun
	default:
		return nil, fmt.Errorf("%w: no header", ErrRun)
	}
	packs := int64(binary.LittleEndian.Uint32(head[8:]))
	n := binary.LittleEndian.Uint64(head[16:])
	if packs > maxRunPacks || n > maxRunLen {
		return nil, fmt.Errorf("%w: %d packs, %d chunks", ErrRun, packs, n)
	}
	blocks := (int64(n) + perBlock - 1) / perBlock
	data := alignBlock(runHeadLen + packs*runPackLen)
	if data+blocks*(runBlock+runTailLen) != size {
		return nil, fmt.Errorf("%w: %d bytes for %d packs and %d chunks", ErrRun, size, packs, n)
	}
	table := make([]byte, packs*runPackLen)
	tail := make([]byte, blocks*runTailLen)
	if _, err := f.ReadAt(table, runHeadLen); err != nil && len(table) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrRun, err)
	}
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil && len(tail) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrRun, err)
	}
	if runSum(head, table) != chunk.Hash(head[32:]) || crc32.Checksum(tail, castagnoli) != binary.LittleEndian.Uint32(head[24:]) {
		return nil, fmt.Errorf("%w: checksum", ErrRun)
	}
	r := &run{n: int(n), data: data, keys: tail[: 8*blocks : 8*blocks], filter: tail[8*blocks:], packs: make([]*pack.Pack, packs)}
	for b := 1; b < int(blocks); b++ {
		if r.key(b) < r.key(b-1) {
			return nil, fmt.Errorf("%w: block %d is out of order", ErrRun, b)
		}
	}
	for i := range r.packs {
		t := table[i*runPackLen:]
		r.packs[i] = known(disk.ID(t[:16]), int64(binary.LittleEndian.Uint64(t[16:])), int64(binary.LittleEndian.Uint64(t[24:])))
	}
	return r, nil
}

func alignBlock(n int64) int64 { return (n + runBlock - 1) &^ (runBlock - 1) }

func runSum(head, table []byte) (sum chunk.Hash) {
	h := blake3.New()
	h.Write(head[:32])
	h.Write(table)
	h.Sum(sum[:0])
	return sum
}

// runIter walks the entries of a run in order.
type runIter struct {
	r      *run
	src    *bufio.Reader
	block  [runBlock]byte
	filter []byte
	pos    int
	hash   chunk.Hash
	loc    pack.Loc
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
			return false, &DamagedRun{it.r, err}
		}
		if err := it.checkTables(it.pos / perBlock); err != nil {
			return false, err
		}
	}
	rec := it.block[i*runEntryLen:]
	if it.pos > 0 && bytes.Compare(it.hash[:], rec[:32]) >= 0 {
		return false, &DamagedRun{it.r, fmt.Errorf("entry %d is out of order", it.pos)}
	}
	it.hash = chunk.Hash(rec[:32])
	var err error
	it.loc, err = it.r.loc(rec)
	return err == nil, err
}

// checkTables checks a block, and that memory says the same of it: no lookup then misses
// what stands there.
func (it *runIter) checkTables(b int) error {
	r := it.r
	n, err := r.checkBlock(b, &it.block)
	if err != nil {
		return err
	}
	if key8(it.block[:]) != r.key(b) {
		return &DamagedRun{r, fmt.Errorf("block %d: key", b)}
	}
	for i := range n { // a key out of bounds is in no part
		if k := key8(it.block[i*runEntryLen:]); k < r.key(b) || k > r.end(b) {
			return &DamagedRun{r, fmt.Errorf("block %d: entry %d is out of order", b, i)}
		}
	}
	it.filter = appendFilter(it.filter[:0], &it.block, n, r.end(b))
	if !bytes.Equal(it.filter, r.filter[b*filterLen:(b+1)*filterLen]) {
		return &DamagedRun{r, fmt.Errorf("block %d: filter", b)}
	}
	return nil
}
