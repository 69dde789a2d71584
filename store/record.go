package store

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
	"github.com/fxamacker/cbor/v2"
)

// An image record: magic 8, length 4, CBOR, BLAKE3 32 of all before.
const (
	recMagic  = "ckptimg1"
	recSealed = "ckptimgs" // a record with a key: salt 16, then the same encrypted, tag 16
	recMin    = 8 + 4 + 32
	maxRecord = 1 << 20 // bytes, sealed or not
	maxLabel  = 255     // bytes of a host or series
)

// record is everything the store knows of one image but its bytes.
type record struct {
	Name    string    `cbor:"1,keyasint"`
	Created int64     `cbor:"2,keyasint"` // Unix ns
	Unique  int64     `cbor:"3,keyasint"` // bytes in packs that were new with this image
	Chunks  int64     `cbor:"4,keyasint"`
	Data    root      `cbor:"5,keyasint"`
	Attach  []sideRec `cbor:"6,keyasint,omitempty"`
	Kept    bool      `cbor:"7,keyasint,omitempty"` // the user gave it a name: only he removes it
	Host    string    `cbor:"8,keyasint,omitempty"` // Options.Host of who took it
	Series  string    `cbor:"9,keyasint,omitempty"` // Ingest.SetSeries
}

// trees lists the chunk lists of the image and its attachments; an empty one has no size.
func (r *record) trees() []root {
	list := append(make([]root, 0, 1+len(r.Attach)), r.Data)
	for i := range r.Attach {
		list = append(list, r.Attach[i].Data)
	}
	return list
}

// sideRec is one attachment.
type sideRec struct {
	Name string `cbor:"1,keyasint"`
	Data root   `cbor:"2,keyasint"`
}

func recDecMode() (cbor.DecMode, error) {
	return cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels: 8, MaxArrayElements: 1 << 16, MaxMapPairs: 64}.DecMode()
}

var errRecord = errors.New("not an image record")

// recordFile is the content of a record's file.
func recordFile(x *secret.Secrets, id disk.ID, r *record) ([]byte, error) {
	b, err := encodeRecord(r)
	if err != nil || x == nil {
		return b, err
	}
	return append([]byte(recSealed), x.SealRecord(id, b)...), nil
}

// parseRecord is the way back.
func parseRecord(x *secret.Secrets, id disk.ID, b []byte) (*record, error) {
	if x == nil {
		return decodeRecord(b)
	}
	sealed, ok := bytes.CutPrefix(b, []byte(recSealed))
	if !ok {
		return nil, fmt.Errorf("%w: it is not encrypted", errRecord)
	}
	plain, err := x.OpenRecord(id, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRecord, err)
	}
	return decodeRecord(plain)
}

func encodeRecord(r *record) ([]byte, error) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	body, err := enc.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(body)+recMin > maxRecord {
		return nil, fmt.Errorf("record of %d bytes is too long (%d attachments)", len(body), len(r.Attach))
	}
	b := make([]byte, 0, len(body)+recMin)
	b = append(b, recMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	sum := chunk.Sum(b)
	return append(b, sum[:]...), nil
}

func decodeRecord(b []byte) (*record, error) {
	if len(b) < recMin || len(b) > maxRecord || string(b[:8]) != recMagic {
		return nil, fmt.Errorf("%w: %d bytes", errRecord, len(b))
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if int64(n) != int64(len(b)-recMin) {
		return nil, fmt.Errorf("%w: it is cut", errRecord)
	}
	if chunk.Sum(b[:12+n]) != chunk.Hash(b[12+n:]) {
		return nil, fmt.Errorf("%w: checksum", errRecord)
	}
	dec, err := recDecMode()
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := dec.Unmarshal(b[12:12+n], r); err != nil {
		return nil, fmt.Errorf("%w: %w", errRecord, err)
	}
	return r, r.check()
}

func (r *record) check() error {
	if err := checkName(r.Name); err != nil {
		return err
	}
	if r.Unique < 0 || r.Chunks < 0 {
		return fmt.Errorf("%w: a negative count", errRecord)
	}
	if len(r.Host) > maxLabel || len(r.Series) > maxLabel {
		return fmt.Errorf("%w: a host of %d and a series of %d bytes", errRecord, len(r.Host), len(r.Series))
	}
	seen := map[string]bool{}
	for i := range r.Attach {
		a := &r.Attach[i]
		if err := checkName(a.Name); err != nil {
			return err
		}
		if seen[a.Name] || a.Data.Size > maxAttached {
			return fmt.Errorf("%w: attachment %q", errRecord, a.Name)
		}
		seen[a.Name] = true
		if err := a.Data.check(); err != nil {
			return err
		}
	}
	return r.Data.check()
}

func (r *root) check() error {
	if r.Size < 0 || r.Size > math.MaxInt64/4 || r.Level < 0 || r.Level > maxLevel ||
		(r.Size == 0 && *r != root{}) {
		return fmt.Errorf("%w: size %d, level %d", errRecord, r.Size, r.Level)
	}
	return nil
}

// checkName refuses what cannot be the name of a file in images/.
func checkName(name string) error {
	// What is no UTF-8 would be written, but not be read again: CBOR refuses it.
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") || !utf8.ValidString(name) {
		return fmt.Errorf("%q cannot name an image: it must be a valid file name in UTF-8: %w", name, fs.ErrInvalid)
	}
	return nil
}
