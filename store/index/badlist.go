package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

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

func (x *Index) badPath() string { return filepath.Join(x.dir, badName) }

// LoadBad reads the list. An error says what of it is ignored: without it, damage is found again
// when it is read.
func (x *Index) LoadBad(sec *secret.Secrets, packs map[disk.ID]*pack.Pack) error {
	b, err := os.ReadFile(x.badPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var list []badPlace
	if err == nil {
		list, err = decodeBad(sec, b)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w; ignored", x.badPath(), err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range list {
		if p := packs[e.id]; p != nil {
			x.bad[place{p, e.off}] = struct{}{}
		}
	}
	return err
}

// SaveBad writes the list if it changed. Called with maint held.
func (x *Index) SaveBad(sec *secret.Secrets) error {
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
		return nil
	}
	return x.writeBad(sec, list)
}

func (x *Index) writeBad(sec *secret.Secrets, list []badPlace) error {
	if len(list) > 0 {
		return disk.WriteFile(x.badPath(), encodeBad(sec, list))
	}
	if err := os.Remove(x.badPath()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CondemnCopy remembers that a copy of a chunk is damaged, so that another copy is read
// and the next Put stores the chunk again.
func (x *Index) CondemnCopy(l pack.Loc) {
	x.mu.Lock()
	defer x.mu.Unlock()
	at := place{l.P, l.Off}
	if _, known := x.bad[at]; !known {
		x.bad[at] = struct{}{}
		x.badChanged = true
	}
}

// Forgive takes back CondemnCopy: the copy could be read after all.
func (x *Index) Forgive(l pack.Loc) {
	if !x.IsBad(l.P, l.Off) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.bad, place{l.P, l.Off})
	x.badChanged = true
}

// IsBad reports whether a copy is known to be damaged.
func (x *Index) IsBad(p *pack.Pack, off uint32) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, bad := x.bad[place{p, off}]
	return bad
}

// AnyBad reports whether a damaged copy is known.
func (x *Index) AnyBad() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.bad) > 0
}

// CondemnFooter remembers that a pack no longer tells what it holds.
func (x *Index) CondemnFooter(p *pack.Pack) { x.CondemnCopy(pack.Loc{P: p, Off: footerOff}) }

// Unreadable lists the packs of which nobody knows any more what is in them.
func (x *Index) Unreadable() (list []*pack.Pack) {
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

// ForgiveFooter takes back CondemnFooter.
func (x *Index) ForgiveFooter(p *pack.Pack) { x.Forgive(pack.Loc{P: p, Off: footerOff}) }

// FooterBad reports whether a pack is known not to tell what it holds.
func (x *Index) FooterBad(p *pack.Pack) bool { return x.IsBad(p, footerOff) }
