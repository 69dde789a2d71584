package index

import (
	"bufio"
	"encoding/binary"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
)

// runWriter writes a run from entries that come in order of their hash.
type runWriter struct {
	f      *os.File
	path   string
	w      *bufio.Writer
	packs  []*pack.Pack
	number map[*pack.Pack]uint32
	n      int
	block  [runBlock]byte
	keys   []byte
	filter []byte
}

// newRunWriter begins a run of at most entries entries.
func newRunWriter(dir string, packs []*pack.Pack, entries int) (*runWriter, error) {
	blocks := (entries + perBlock - 1) / perBlock
	w := &runWriter{path: filepath.Join(dir, disk.NewID().String()+disk.RunExt), packs: packs, number: make(map[*pack.Pack]uint32, len(packs)),
		keys: make([]byte, 0, blocks*8), filter: make([]byte, 0, blocks*filterLen)}
	for i, p := range packs {
		w.number[p] = uint32(i)
	}
	f, err := os.OpenFile(w.path+disk.TmpExt, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
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

func (w *runWriter) add(h *chunk.Hash, l *pack.Loc) error {
	i := w.n % perBlock
	if i == 0 {
		if err := w.flushBlock(key8(h[:])); err != nil {
			return err
		}
		w.keys = binary.LittleEndian.AppendUint64(w.keys, key8(h[:]))
	}
	rec := w.block[i*runEntryLen : i*runEntryLen : (i+1)*runEntryLen]
	rec = append(rec, h[:]...)
	rec = binary.LittleEndian.AppendUint32(rec, l.Off)
	rec = binary.LittleEndian.AppendUint32(rec, l.Stored)
	rec = binary.LittleEndian.AppendUint32(rec, l.Raw|uint32(l.Codec)<<24)
	binary.LittleEndian.AppendUint32(rec, w.number[l.P])
	w.n++
	return nil
}

// flushBlock writes the block that is full, or the last one. next is the key of the entry
// that follows it.
func (w *runWriter) flushBlock(next uint64) error {
	if w.n == 0 {
		return nil
	}
	w.filter = appendFilter(w.filter, &w.block, (w.n-1)%perBlock+1, next)
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
	if err := w.flushBlock(math.MaxUint64); err != nil {
		return nil, err
	}
	for _, b := range [][]byte{w.keys, w.filter} {
		if _, err := w.w.Write(b); err != nil {
			return nil, err
		}
	}
	if err := w.w.Flush(); err != nil {
		return nil, err
	}
	head := make([]byte, runHeadLen)
	copy(head, runMagic)
	binary.LittleEndian.PutUint32(head[8:], uint32(len(w.packs)))
	binary.LittleEndian.PutUint64(head[16:], uint64(w.n))
	// BLAKE3 would take most of the time that opening millions of chunks takes.
	tail := crc32.Update(crc32.Checksum(w.keys, castagnoli), castagnoli, w.filter)
	binary.LittleEndian.PutUint32(head[24:], tail)
	var table []byte
	for _, p := range w.packs {
		table = append(table, p.ID[:]...)
		table = binary.LittleEndian.AppendUint64(table, uint64(p.Size))
		table = binary.LittleEndian.AppendUint64(table, uint64(p.Created))
	}
	sum := runSum(head, table)
	copy(head[32:], sum[:])
	if _, err := w.f.WriteAt(append(head, table...), 0); err != nil {
		return nil, err
	}
	if err := w.f.Sync(); err != nil {
		return nil, err
	}
	r := &run{path: w.path, f: w.f, packs: w.packs, n: w.n, data: alignBlock(runHeadLen + int64(len(table))),
		keys: trim(w.keys), filter: trim(w.filter)}
	return r, disk.Publish(w.path+disk.TmpExt, w.path)
}

// trim gives unused memory back: a run stays for long.
func trim(b []byte) []byte {
	if cap(b)-len(b) > cap(b)/16 {
		return slices.Clone(b)
	}
	return b
}

func (w *runWriter) abort() {
	w.f.Close()
	os.Remove(w.path + disk.TmpExt) // best effort: Open removes what stays
}
