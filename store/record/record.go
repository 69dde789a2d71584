// Package record has the small files that say what is needed: the record of an image, the lease of a
// machine that reads, the marker of a GC that wants to remove. All of them come from a disk or a
// bucket that anybody may have written to, and are checked.
package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/secret"
	"github.com/ckptfs/ckptfs/store/tree"
	"github.com/fxamacker/cbor/v2"
)

// An image record: magic 8, length 4, CBOR, BLAKE3 32 of all before.
const (
	recMagic  = "ckptimg1"
	recSealed = "ckptimgs" // a record with a key: salt 16, then the same encrypted, tag 16
	recMin    = 8 + 4 + 32
	MaxLen    = 1 << 20 // bytes, sealed or not
	maxLabel  = 255     // bytes of a host or series
)

// MaxAttached bounds the attachments of one image together, in bytes: they stay in memory
// until Commit.
const MaxAttached = 64 << 20

// Record is everything the store knows of one image but its bytes.
type Record struct {
	Name    string    `cbor:"1,keyasint"`
	Created int64     `cbor:"2,keyasint"` // Unix ns
	Unique  int64     `cbor:"3,keyasint"` // bytes in packs that were new with this image
	Chunks  int64     `cbor:"4,keyasint"`
	Data    tree.Root `cbor:"5,keyasint"`
	Attach  []Side    `cbor:"6,keyasint,omitempty"`
	Kept    bool      `cbor:"7,keyasint,omitempty"` // the user gave it a name: only he removes it
	Host    string    `cbor:"8,keyasint,omitempty"` // Options.Host of who took it
	Series  string    `cbor:"9,keyasint,omitempty"` // Ingest.SetSeries
}

// Trees lists the chunk lists of the image and its attachments; an empty one has no size.
func (r *Record) Trees() []tree.Root {
	list := append(make([]tree.Root, 0, 1+len(r.Attach)), r.Data)
	for i := range r.Attach {
		list = append(list, r.Attach[i].Data)
	}
	return list
}

// Side is one attachment.
type Side struct {
	Name string    `cbor:"1,keyasint"`
	Data tree.Root `cbor:"2,keyasint"`
}

func recDecMode() (cbor.DecMode, error) {
	return cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels: 8, MaxArrayElements: 1 << 16, MaxMapPairs: 64}.DecMode()
}

var ErrRecord = errors.New("not an image record")

// File is the content of a record's file.
func File(x *secret.Secrets, id disk.ID, r *Record) ([]byte, error) {
	b, err := encodeRecord(r)
	if err != nil || x == nil {
		return b, err
	}
	return append([]byte(recSealed), x.SealRecord(id, b)...), nil
}

// Parse is the way back.
func Parse(x *secret.Secrets, id disk.ID, b []byte) (*Record, error) {
	if x == nil {
		return decodeRecord(b)
	}
	sealed, ok := bytes.CutPrefix(b, []byte(recSealed))
	if !ok {
		return nil, fmt.Errorf("%w: it is not encrypted", ErrRecord)
	}
	plain, err := x.OpenRecord(id, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return decodeRecord(plain)
}

func encodeRecord(r *Record) ([]byte, error) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	body, err := enc.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(body)+recMin > MaxLen {
		return nil, fmt.Errorf("record of %d bytes is too long (%d attachments)", len(body), len(r.Attach))
	}
	b := make([]byte, 0, len(body)+recMin)
	b = append(b, recMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	sum := chunk.Sum(b)
	return append(b, sum[:]...), nil
}

func decodeRecord(b []byte) (*Record, error) {
	if len(b) < recMin || len(b) > MaxLen || string(b[:8]) != recMagic {
		return nil, fmt.Errorf("%w: %d bytes", ErrRecord, len(b))
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if int64(n) != int64(len(b)-recMin) {
		return nil, fmt.Errorf("%w: it is cut", ErrRecord)
	}
	if chunk.Sum(b[:12+n]) != chunk.Hash(b[12+n:]) {
		return nil, fmt.Errorf("%w: checksum", ErrRecord)
	}
	dec, err := recDecMode()
	if err != nil {
		return nil, err
	}
	r := new(Record)
	if err := dec.Unmarshal(b[12:12+n], r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return r, r.check()
}

func (r *Record) check() error {
	if err := CheckName(r.Name); err != nil {
		return err
	}
	if r.Unique < 0 || r.Chunks < 0 {
		return fmt.Errorf("%w: a negative count", ErrRecord)
	}
	if len(r.Host) > maxLabel || len(r.Series) > maxLabel {
		return fmt.Errorf("%w: a host of %d and a series of %d bytes", ErrRecord, len(r.Host), len(r.Series))
	}
	seen := map[string]bool{}
	for i := range r.Attach {
		a := &r.Attach[i]
		if err := CheckName(a.Name); err != nil {
			return err
		}
		if seen[a.Name] || a.Data.Size > MaxAttached {
			return fmt.Errorf("%w: attachment %q", ErrRecord, a.Name)
		}
		seen[a.Name] = true
		if err := checkRoot(&a.Data); err != nil {
			return err
		}
	}
	return checkRoot(&r.Data)
}

// checkRoot checks what a record or a lease says of a tree.
func checkRoot(r *tree.Root) error {
	if r.Size < 0 || r.Size > math.MaxInt64/4 || r.Level < 0 || r.Level > tree.MaxLevel ||
		(r.Size == 0 && *r != tree.Root{}) {
		return fmt.Errorf("%w: size %d, level %d", ErrRecord, r.Size, r.Level)
	}
	return nil
}

// CheckName refuses what cannot be the name of a file in images/.
func CheckName(name string) error {
	// What is no UTF-8 would be written, but not be read again: CBOR refuses it.
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") || !utf8.ValidString(name) {
		return fmt.Errorf("%q cannot name an image: it must be a valid file name in UTF-8: %w", name, fs.ErrInvalid)
	}
	return nil
}

// Label makes s fit for a record.
func Label(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return strings.ToValidUTF8(s[:min(len(s), maxLabel)], "")
}

// SeriesKey tells series apart. No series has the name of an image without one.
func (r *Record) SeriesKey() string {
	if r.Series == "" {
		return "\x00" + r.Name
	}
	return r.Host + "\x00" + r.Series
}
