// Package disk names the files of a store and makes them durable: an ID says when its file was
// made, and no file is seen before all of it is on the disk. It knows nothing of what is inside.
package disk

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"time"
)

// The extensions of the files in a store folder.
const (
	PackExt = ".pack"
	RunExt  = ".run"
	ImgExt  = ".img"
	TmpExt  = ".tmp" // not visible yet; whoever opens the store removes it
)

// ID names a pack, an index run or a record: the time in ms, 6 bytes big endian, and 10
// random ones. So machines that share a bucket never choose the same one, and a listing
// that begins at a time has what is younger.
type ID [16]byte

// String is the ID in hex, as it stands in file names.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// NewID makes an ID of this moment.
func NewID() ID { return IDAt(time.Now()) }

// IDAt makes an ID of a time.
func IDAt(t time.Time) (id ID) {
	rand.Read(id[:]) // never fails, see crypto/rand
	binary.BigEndian.PutUint64(id[:], uint64(t.UnixMilli())<<16|uint64(id[6])<<8|uint64(id[7]))
	return id
}

// Time is when the ID was made. IDs of layout 1 were random and tell nothing.
func (id ID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:]) >> 16))
}

// Bits of the last byte of a pack's ID: what is in it, without reading it.
const (
	Nodes = 1 // nodes of chunk lists
	Fast  = 2 // chunks stored in no time: MinLZ (s2 in layout 2), or as they are because that did not pay
)

// NewPackID makes the ID of a pack; kind is 0, Nodes or Fast.
func NewPackID(kind byte) ID {
	id := NewID()
	id[15] = id[15]&^(Nodes|Fast) | kind
	return id
}

// HasNodes reports whether a pack holds nodes of chunk lists. Packs of layout 1 hold both,
// so it is only a hint.
func (id ID) HasNodes() bool { return id[15]&Nodes != 0 }

// IsFast reports whether a pack waits for Settle. In older packs the bit is random, so that is
// only a hint too.
func (id ID) IsFast() bool { return id[15]&(Nodes|Fast) == Fast }

// ParseID takes the ID out of a file name with the extension ext.
func ParseID(name, ext string) (id ID, ok bool) {
	s, found := strings.CutSuffix(name, ext)
	if !found || len(s) != 2*len(id) {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(s))
	return id, err == nil && id.String() == s
}
