package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/secret"
)

// The list of copies that were found damaged outlives the process: one finds the damage,
// another stores the same content again, and must not refer to the damaged copy.
//
//	list  magic "ckptbad1", entries, BLAKE3 of all before 32
//	entry pack ID 16, offset 4; offset 0 stands for the pack's footer
const (
	badName     = "damaged"
	badMagic    = "ckptbad1"
	badEntryLen = 20
)

// footerOff is the place of a pack's footer in the list: no chunk stands at offset 0.
const footerOff = 0

// badPlace is a place as the list has it.
type badPlace struct {
	id  disk.ID
	off uint32
}

func encodeBad(sec *secret.Secrets, list []badPlace) []byte {
	b := make([]byte, 0, len(badMagic)+len(list)*badEntryLen+32)
	b = append(b, badMagic...)
	for _, e := range list {
		b = append(b, e.id[:]...)
		b = binary.LittleEndian.AppendUint32(b, e.off)
	}
	h := sec.NewSum()
	h.Write(b)
	return h.Sum(b)
}

var errBadList = errors.New("not a list of damaged copies")

func decodeBad(sec *secret.Secrets, b []byte) ([]badPlace, error) {
	n := len(b) - len(badMagic) - 32
	if n < 0 || n%badEntryLen != 0 || string(b[:len(badMagic)]) != badMagic {
		return nil, fmt.Errorf("%w: %d bytes", errBadList, len(b))
	}
	body := b[:len(b)-32]
	h := sec.NewSum()
	h.Write(body)
	if string(h.Sum(nil)) != string(b[len(body):]) {
		return nil, fmt.Errorf("%w: checksum", errBadList)
	}
	var list []badPlace
	for e := range slices.Chunk(body[len(badMagic):], badEntryLen) {
		list = append(list, badPlace{disk.ID(e), binary.LittleEndian.Uint32(e[16:])})
	}
	return list, nil
}

func (s *Store) badPath() string { return filepath.Join(s.dir, indexName, badName) }

// loadBad reads the list. Without it, damage is found again when it is read.
func (s *Store) loadBad() {
	b, err := os.ReadFile(s.badPath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var list []badPlace
	if err == nil {
		list, err = decodeBad(s.sec, b)
	}
	if err != nil {
		s.o.Log(fmt.Sprintf("store %s: %s: %v; ignored", s.dir, s.badPath(), err))
	}
	s.ix.mu.Lock()
	defer s.ix.mu.Unlock()
	for _, e := range list {
		if p := s.packs[e.id]; p != nil {
			s.ix.bad[place{p, e.off}] = struct{}{}
		}
	}
}

// saveBad writes the list if it changed. Called with maint held.
func (s *Store) saveBad() {
	x := s.ix
	x.mu.Lock()
	changed := x.badChanged
	x.badChanged = false
	var list []badPlace
	for at := range x.bad {
		if at.p.Gone.Load() {
			delete(x.bad, at)
			changed = true
			continue
		}
		list = append(list, badPlace{at.p.ID, at.off})
	}
	x.mu.Unlock()
	if !changed {
		return
	}
	if err := s.writeBad(list); err != nil {
		s.o.Log(fmt.Sprintf("store %s: the list of damaged copies: %v", s.dir, err))
	}
}

func (s *Store) writeBad(list []badPlace) error {
	if len(list) > 0 {
		return disk.WriteFile(s.badPath(), encodeBad(s.sec, list))
	}
	if err := os.Remove(s.badPath()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// condemnCopy remembers that a copy of a chunk is damaged, so that another copy is read
// and the next Put stores the chunk again.
func (x *index) condemnCopy(l pack.Loc) {
	x.mu.Lock()
	defer x.mu.Unlock()
	at := place{l.P, l.Off}
	if _, known := x.bad[at]; !known {
		x.bad[at] = struct{}{}
		x.badChanged = true
	}
}

// forgive takes back condemnCopy: the copy could be read after all.
func (x *index) forgive(l pack.Loc) {
	if !x.isBad(l.P, l.Off) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.bad, place{l.P, l.Off})
	x.badChanged = true
}

// isBad reports whether a copy is known to be damaged.
func (x *index) isBad(p *pack.Pack, off uint32) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, bad := x.bad[place{p, off}]
	return bad
}

// condemnFooter remembers that a pack no longer tells what it holds.
func (s *Store) condemnFooter(p *pack.Pack) { s.ix.condemnCopy(pack.Loc{P: p, Off: footerOff}) }

// anyCopy looks for a copy of a chunk, however bad it is. It may be in a pack that is gone.
func (s *Store) anyCopy(h *chunk.Hash) (l pack.Loc, ok bool) {
	s.ix.mu.RLock()
	defer s.ix.mu.RUnlock()
	if l, ok = s.ix.mem[*h]; ok {
		return l, true
	}
	_, _, _, ok, _ = s.ix.findRun(h, func(c pack.Loc, _ *run, _ int) bool { // an error here adds nothing
		l = c
		return true
	})
	return l, ok
}

// unreadable lists the packs of which nobody knows any more what is in them.
func (x *index) unreadable() (list []*pack.Pack) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for at := range x.bad {
		if at.off == footerOff && !at.p.Sealed.Load() && !at.p.Gone.Load() {
			list = append(list, at.p)
		}
	}
	slices.SortFunc(list, func(a, b *pack.Pack) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return list
}
