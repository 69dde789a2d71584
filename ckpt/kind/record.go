package kind

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/fxamacker/cbor/v2"
)

// encMode and decMode are made once: a tree has thousands of records.
var (
	encMode = sync.OnceValues(cbor.CoreDetEncOptions().EncMode)
	decMode = sync.OnceValues(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode)
)

// encodeRec puts a kind's own record into rec. The encoding is deterministic: the same
// state gives the same bytes, so that two images of one tree share their chunks.
func encodeRec(rec *image.File, v any) error {
	mode, err := encMode()
	if err != nil {
		return fmt.Errorf("record of a %s: %w", rec.Kind, err)
	}
	b, err := mode.Marshal(v)
	if err != nil {
		return fmt.Errorf("record of a %s: %w", rec.Kind, err)
	}
	rec.Rec = b
	return nil
}

// lastIdentity is what encodeIdentity encoded last: of many files in a row it is often the same.
var lastIdentity atomic.Pointer[encodedIdentity]

type encodedIdentity struct {
	id  identity
	rec []byte
}

// encodeIdentity is encodeRec of a record that has no more than this.
func encodeIdentity(rec *image.File, id identity) error {
	if last := lastIdentity.Load(); last != nil && last.id == id {
		rec.Rec = slices.Clone(last.rec)
		return nil
	}
	if err := encodeRec(rec, &id); err != nil {
		return err
	}
	lastIdentity.Store(&encodedIdentity{id, slices.Clone(rec.Rec)})
	return nil
}

// decodeRec reads a kind's own record. A field that this version does not know is an
// error: what it says would be lost silently.
func decodeRec(rec *image.File, v any) error {
	mode, err := decMode()
	if err != nil {
		return fmt.Errorf("record of a %s: %w", rec.Kind, err)
	}
	if err := mode.Unmarshal(rec.Rec, v); err != nil {
		return hostile("record of the %s %q in the image is damaged or of a newer version: %w", rec.Kind, rec.Path, err)
	}
	return nil
}

// recordError says that the image is bad, and not the host: it is an image.ErrHostile.
type recordError struct{ err error }

func hostile(format string, a ...any) error { return &recordError{fmt.Errorf(format, a...)} }

func (e *recordError) Error() string { return e.err.Error() }

func (e *recordError) Unwrap() error { return e.err }

func (e *recordError) Is(target error) bool { return target == image.ErrHostile }
