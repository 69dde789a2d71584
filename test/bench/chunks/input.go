package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

const pageSize = 4096

// region is a part of an image whose chunks are cut on their own. Regions follow each other
// in the file from its beginning on.
type region struct {
	What    string         `json:"what"`
	Extents []image.Extent `json:"extents"`
}

// input is one image to look at.
type input struct {
	name, program string
	data          []byte // all but the trailer
	whole         []byte // the mapped file
	regions       []region
}

// loadInputs maps all images of a folder, in the order in which they are to be stored: the
// programs as they stand in programs, the checkpoints of one as they were taken.
func loadInputs(dir string) (ins []*input, err error) {
	for _, p := range programs() {
		paths, err := filepath.Glob(filepath.Join(dir, p.name+"-*.raw"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths { // sorted: a1 … a5, b1
			in, err := loadInput(path)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			in.program = p.name
			ins = append(ins, in)
		}
	}
	if len(ins) == 0 {
		return nil, fmt.Errorf("no images in %s; make them with: chunks collect %s", dir, dir)
	}
	return ins, nil
}

func loadInput(path string) (*input, error) {
	in := &input{name: strings.TrimSuffix(filepath.Base(path), ".raw")}
	b, err := os.ReadFile(regionsOf(path))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &in.regions); err != nil {
		return nil, err
	}
	if in.whole, err = mapFile(path); err != nil {
		return nil, err
	}
	n := in.dataLen()
	if n < 0 || n > len(in.whole) {
		return nil, fmt.Errorf("it has %d bytes, its regions %d", len(in.whole), n)
	}
	in.data = in.whole[:n]
	return in, nil
}

func regionsOf(path string) string { return strings.TrimSuffix(path, ".raw") + ".regions" }

func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
}

func (in *input) close() error { return unix.Munmap(in.whole) }

func (in *input) dataLen() (n int) {
	for _, r := range in.regions {
		for _, e := range r.Extents {
			n += int(e.Len)
		}
	}
	return n
}

// saveInput writes the regions beside a file that snapshot wrote, and a trailer as an image
// has one behind it, so that every tool is given the same bytes.
func saveInput(path string, regions []region) (err error) {
	b, err := json.Marshal(regions)
	if err != nil {
		return err
	}
	if err := os.WriteFile(regionsOf(path), b, 0o644); err != nil {
		return err
	}
	in, err := loadInput(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	var trailer []byte
	for _, c := range in.cut(image.ChunkSize) {
		h := blake3.Sum256(c)
		trailer = append(trailer, h[:]...)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(trailer)
	return errors.Join(err, f.Close())
}

// cut returns the chunks: all stored pages of one region inside one aligned window of size
// bytes each, see ckpt/image.
func (in *input) cut(size uint64) (chunks [][]byte) {
	off := 0
	for _, r := range in.regions {
		window, begin := ^uint64(0), off
		for _, e := range r.Extents {
			for start, end := e.Start, e.Start+e.Len; start < end; {
				n := min(end-start, size-start%size)
				if start/size != window && off > begin {
					chunks = append(chunks, in.data[begin:off])
					begin = off
				}
				window = start / size
				start, off = start+n, off+int(n)
			}
		}
		if off > begin {
			chunks = append(chunks, in.data[begin:off])
		}
	}
	return chunks
}

// neighbours is some neighbouring chunks of an image.
type neighbours struct {
	data []byte
	lens []int // of the chunks
}

// batches returns the whole image, trailer and all, cut as ckpt/image does it, with as many chunks
// together as have size bytes at most.
func (in *input) batches(size int) (list []neighbours) {
	chunks := slices.AppendSeq(in.cut(image.ChunkSize), slices.Chunk(in.whole[len(in.data):], image.ChunkSize))
	off := 0
	for len(chunks) > 0 {
		var r neighbours
		n := 0
		for len(chunks) > 0 && (n == 0 || n+len(chunks[0]) <= size) {
			r.lens = append(r.lens, len(chunks[0]))
			n += len(chunks[0])
			chunks = chunks[1:]
		}
		r.data = in.whole[off : off+n]
		off += n
		list = append(list, r)
	}
	return list
}

// part returns one in n of all aligned MiB of address space, the same ones of every image.
func (in *input) part(n uint64) *input {
	const window = 1 << 20
	p := &input{name: in.name, program: in.program}
	off := uint64(0)
	for _, r := range in.regions {
		kept := region{What: r.What}
		for _, e := range r.Extents {
			for start, end := e.Start, e.Start+e.Len; start < end; {
				size := min(end-start, window-start%window)
				if start/window*0x9e3779b97f4a7c15>>32%n == 0 {
					kept.Extents = append(kept.Extents, image.Extent{Start: start, Len: size})
					p.data = append(p.data, in.data[off:off+size]...)
				}
				start, off = start+size, off+size
			}
		}
		if len(kept.Extents) > 0 {
			p.regions = append(p.regions, kept)
		}
	}
	return p
}

var pageSeed = maphash.MakeSeed()

// cutByContent returns chunks that end after a page whose own hash says so, size bytes on
// average and at most four times as much. It is the variant that finds the same content at
// another address.
func (in *input) cutByContent(size uint64) (chunks [][]byte) {
	off, mask := 0, size/pageSize-1
	for _, r := range in.regions {
		begin := off
		for _, e := range r.Extents {
			for end := off + int(e.Len); off < end; {
				page := in.data[off : off+pageSize]
				off += pageSize
				if maphash.Bytes(pageSeed, page)&mask == 0 || off-begin >= int(4*size) {
					chunks = append(chunks, in.data[begin:off])
					begin = off
				}
			}
		}
		if off > begin {
			chunks = append(chunks, in.data[begin:off])
		}
	}
	return chunks
}
