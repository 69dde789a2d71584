package image

import (
	"fmt"
	"reflect"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// maxNesting bounds how deep lists and maps nest in each other; the types need 7 and a
// kind's record what is left.
const maxNesting = 24

// encMode is the one way in which CBOR is written: the same manifest is the same bytes.
var encMode = sync.OnceValues(func() (cbor.EncMode, error) {
	o := cbor.CoreDetEncOptions()
	o.String = cbor.StringToByteString // paths are bytes, which need not be UTF-8
	o.NilContainers = cbor.NilContainerAsEmpty
	o.TagsMd = cbor.TagsForbidden
	return o.EncMode()
})

// decMode reads what encMode writes.
var decMode = sync.OnceValues(func() (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey:          cbor.DupMapKeyEnforcedAPF,
		IndefLength:        cbor.IndefLengthForbidden,
		TagsMd:             cbor.TagsForbidden,
		UTF8:               cbor.UTF8DecodeInvalid,
		ByteStringToString: cbor.ByteStringToStringAllowed,
		ExtraReturnErrors:  cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:    maxNesting,
		MaxArrayElements:   MaxManifest, // the walker has bounded every list by the bytes there are
		MaxMapPairs:        1 << 20,
	}.DecMode()
})

// marshal encodes v.
func marshal(v any) ([]byte, error) {
	mode, err := encMode()
	if err != nil {
		return nil, fmt.Errorf("CBOR options: %w", err)
	}
	return mode.Marshal(v)
}

// unmarshal decodes b into v.
func unmarshal(b []byte, v any) error {
	mode, err := decMode()
	if err != nil {
		return fmt.Errorf("CBOR options: %w", err)
	}
	return mode.Unmarshal(b, v)
}

// decodeManifest walks, decodes and validates.
func decodeManifest(b []byte) (*Manifest, error) {
	if err := walk(b, reflect.TypeFor[Manifest]()); err != nil {
		return nil, err
	}
	m := new(Manifest)
	if err := unmarshal(b, m); err != nil {
		return nil, bad("manifest", "%v", err)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, nil
}

// same reports whether two values are equal, where a list that is nil equals an empty one:
// CBOR does not tell them apart.
func same(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Slice:
		if a.Len() != b.Len() {
			return false
		}
		if a.Type().Elem().Kind() == reflect.Uint8 {
			return string(a.Bytes()) == string(b.Bytes())
		}
		fallthrough
	case reflect.Array:
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Struct:
		for i := range a.NumField() {
			if !same(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Pointer:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		return same(a.Elem(), b.Elem())
	}
	return a.Equal(b)
}
