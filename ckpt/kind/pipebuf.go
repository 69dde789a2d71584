package kind

import (
	"errors"
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// What pipes and fifos have in common: a buffer with a capacity, and ends.

// pipeRec is the record of one open file description of a pipe or fifo.
type pipeRec struct {
	identity
	Capacity int    `cbor:"8,keyasint"` // bytes, F_GETPIPE_SZ
	UID      uint32 `cbor:"9,keyasint"`
	GID      uint32 `cbor:"10,keyasint"`
	Outside  bool   `cbor:"11,keyasint,omitempty"` // a process outside the tree held the other end
	Deleted  bool   `cbor:"12,keyasint,omitempty"` // fifo without a name
	// Parts is set with the blob if there are packets in it.
	Parts []pipePart `cbor:"13,keyasint,omitempty"`
}

// pipeEnds tells which ends of a pipe a tree holds, and where its content is.
type pipeEnds struct {
	read, write bool
	blob        image.ObjRef
	parts       []pipePart // of the blob, see pipePart
}

func (p *pipeEnds) add(flags uint32) {
	p.read = p.read || readable(flags)
	p.write = p.write || writable(flags)
}

// endsOf looks for the ends of the pipe f in the whole tree.
func endsOf(f *Found, s *Scene) pipeEnds {
	var p pipeEnds
	p.add(f.Flags)
	for _, g := range s.sharing(f) {
		p.add(g.Flags)
	}
	return p
}

// recordedEnds is the same for the restore.
func recordedEnds(kind string, r *pipeRec, e *Env) (pipeEnds, error) {
	all, err := shared(e, "ends of every "+kind, func() (map[string]*pipeEnds, error) { return allEnds(kind, e) })
	if err != nil {
		return pipeEnds{}, err
	}
	if p := all[inodeKey(kind, r.Dev, r.Ino)]; p != nil {
		return *p, nil
	}
	return pipeEnds{}, fmt.Errorf("the %s with inode %d is not in the image", kind, r.Ino)
}

// allEnds reads the records of all pipes of the image, or all fifos.
func allEnds(kind string, e *Env) (map[string]*pipeEnds, error) {
	all := map[string]*pipeEnds{}
	for i := range e.Manifest.Files {
		rec := &e.Manifest.Files[i]
		if rec.Kind != kind {
			continue
		}
		var r pipeRec
		if err := decodeRec(rec, &r); err != nil {
			return nil, err
		}
		key := inodeKey(kind, r.Dev, r.Ino)
		if all[key] == nil {
			all[key] = &pipeEnds{}
		}
		all[key].add(rec.Flags)
		if rec.Blob > all[key].blob {
			all[key].blob, all[key].parts = rec.Blob, r.Parts
		}
	}
	return all, nil
}

// contentFindings refuses content that has too many packets to be looked at.
func contentFindings(f *Found, s *Scene) []image.Finding {
	if first(f, s) != f || !endsOf(f, s).read {
		return nil
	}
	if size, err := capacity(f.FD); err != nil || size <= maxPackets*os.Getpagesize() {
		return nil // each packet takes a page
	}
	if _, err := peekPipe(f, s); errors.Is(err, errPackets) {
		return []image.Finding{f.refuse(err.Error(), "read it empty before the checkpoint, or use a socket pair of type SOCK_SEQPACKET")}
	}
	return nil // anything else is due to a process that still runs, or Dump will say so
}

// describePipe makes the record of f, and puts the content of the pipe into the image if f comes
// first of its open file descriptions and somebody in the tree can read it.
func describePipe(f *Found, s *Scene, rec *image.File) (*pipeRec, error) {
	size, err := capacity(f.FD)
	if err != nil {
		return nil, err
	}
	r := &pipeRec{identity: identify(&f.Stat), Capacity: size, UID: f.Stat.Uid, GID: f.Stat.Gid}
	r.Size, r.MTime = 0, 0 // they say nothing about a pipe
	ends := endsOf(f, s)
	other := unix.O_RDONLY
	if readable(f.Flags) {
		other = unix.O_WRONLY
	}
	r.Outside = s.Outside(f.Stat.Dev, f.Stat.Ino, other) != 0
	if first(f, s) != f || !ends.read {
		return r, nil
	}
	c, err := peekPipe(f, s)
	if err != nil {
		return nil, err
	}
	if len(c.data) > 0 {
		rec.Blob, r.Parts = s.Blob(c.data), c.parts
	}
	return r, nil
}

// readEnd returns a descriptor of the pipe f that can read.
func readEnd(f *Found, s *Scene) int {
	for _, g := range s.sharing(f) {
		if readable(g.Flags) {
			return g.FD
		}
	}
	return f.FD
}

// capacity is how many bytes fit into a pipe.
func capacity(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return 0, fmt.Errorf("F_GETPIPE_SZ: %w", err)
	}
	return n, nil
}

// peekPipe copies what is in the pipe f, of which the tree has a read end.
func peekPipe(f *Found, s *Scene) (pipeData, error) { return peek(readEnd(f, s)) }

// orShort is err, or what a short count means.
func orShort(err error) error {
	if err == nil {
		return unix.EMSGSIZE
	}
	return err
}

// fillPipe sets the capacity of the pipe behind the write end fd, which must not
// block, and writes the recorded content into it.
func fillPipe(fd int, r *pipeRec, ends pipeEnds, e *Env) error {
	size, err := capacity(fd)
	if err != nil {
		return err
	}
	if size != r.Capacity {
		got, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, r.Capacity)
		if err != nil || got != r.Capacity {
			return fmt.Errorf("it had a capacity of %d bytes and gets %d; raise /proc/sys/fs/pipe-max-size or pipe-user-pages-soft: %w", r.Capacity, max(got, 0), orShort(err))
		}
	}
	c, err := ends.content(e)
	if err != nil {
		return err
	}
	return refill(fd, c)
}

// content is what the image has of the pipe's content.
func (p *pipeEnds) content(e *Env) (pipeData, error) {
	if p.blob == 0 {
		return pipeData{}, nil
	}
	data, err := e.Blob(p.blob)
	if err != nil {
		return pipeData{}, fmt.Errorf("its content: %w", err)
	}
	return pipeData{data, p.parts}, nil
}
