package image

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// Bounds on single values of the manifest, bytes.
const (
	maxText  = 64 << 10
	maxBytes = 16 << 20
)

// The major types of CBOR, and the two simple values that occur.
const (
	majorUint  = 0
	majorInt   = 1
	majorBytes = 2
	majorText  = 3
	majorList  = 4
	majorMap   = 5
	majorOther = 7

	cborFalse = 20
	cborTrue  = 21
	cborNull  = 22
)

// walk checks CBOR against a Go type before anything of it is allocated: that every field is
// known and every field that must be there is, that keys ascend, that numbers are in their
// shortest form and fit, and that no list claims more elements than the bytes that are left
// could hold. What passes takes some thirty times its length of memory at most and decodes.
func walk(b []byte, t reflect.Type) error {
	w := &walker{b: b}
	if err := w.value(newShape(t)); err != nil {
		return err
	}
	if w.off != len(w.b) {
		return bad("manifest", "%d bytes follow its end", len(w.b)-w.off)
	}
	return nil
}

// shape is what walk needs to know of a Go type.
type shape struct {
	kind     reflect.Kind
	raw      bool // cbor.RawMessage: anything well-formed
	bits     int  // of a number
	elem     *shape
	len      int              // of an array
	fields   map[uint64]field // of a struct, by number
	required int              // how many fields must be there
	minimum  int              // bytes of the shortest encoding
}

// field is one field of a struct.
type field struct {
	name     string // as in JSON
	shape    *shape
	required bool
}

// newShape describes a type. The types of the manifest do not contain themselves.
func newShape(t reflect.Type) *shape {
	s := &shape{kind: t.Kind(), minimum: 1}
	switch s.kind {
	case reflect.Uint8, reflect.Uint32, reflect.Uint64, reflect.Int32, reflect.Int64:
		s.bits = t.Bits()
	case reflect.Pointer:
		return newShape(t.Elem())
	case reflect.Slice:
		s.raw = t == reflect.TypeFor[cbor.RawMessage]()
		if t.Elem().Kind() != reflect.Uint8 {
			s.elem = newShape(t.Elem())
		}
	case reflect.Array:
		s.elem, s.len = newShape(t.Elem()), t.Len()
		s.minimum += s.len * s.elem.minimum
	case reflect.Struct:
		s.fields = make(map[uint64]field, t.NumField())
		for i := range t.NumField() {
			s.addField(t.Field(i))
		}
	}
	return s
}

// addField reads the tags of one field: `cbor:"12,keyasint,omitempty" json:"name"`.
func (s *shape) addField(f reflect.StructField) {
	number, options, _ := strings.Cut(f.Tag.Get("cbor"), ",")
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	key, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return // has no number and is not written; a test sees to it that there is none
	}
	n := field{name: name, shape: newShape(f.Type), required: !strings.Contains(options, "omit")}
	s.fields[key] = n
	if n.required {
		s.required++
		s.minimum += 1 + n.shape.minimum
	}
}

// walker is a place in CBOR.
type walker struct {
	b   []byte
	off int
}

// head reads the first bytes of an item: its major type and its number.
func (w *walker) head() (major byte, n uint64, err error) {
	if w.off >= len(w.b) {
		return 0, 0, bad("", "the manifest ends too early")
	}
	first := w.b[w.off]
	w.off++
	major, info := first>>5, first&31
	if info < 24 {
		return major, uint64(info), nil
	}
	size := 1 << (info - 24)
	if info > 27 || major == majorOther || len(w.b)-w.off < size { // no floats among others
		return 0, 0, bad("", "there is no item that begins with byte %#x at byte %d", first, w.off-1)
	}
	var le [8]byte
	for i := range size {
		le[size-1-i] = w.b[w.off+i]
	}
	w.off += size
	n = binary.LittleEndian.Uint64(le[:])
	if n < 24 || size > 1 && n>>(4*size) == 0 {
		return 0, 0, bad("", "the number %d is not in its shortest form", n)
	}
	return major, n, nil
}

// expect reads the head of an item of one major type.
func (w *walker) expect(want byte) (uint64, error) {
	major, n, err := w.head()
	if err == nil && major != want {
		err = bad("", "is of CBOR type %d, not %d", major, want)
	}
	return n, err
}

// value checks one value.
func (w *walker) value(s *shape) error {
	switch s.kind {
	case reflect.Struct:
		return w.record(s)
	case reflect.Slice, reflect.Array:
		return w.sequence(s)
	case reflect.String:
		return w.bytes(maxText)
	case reflect.Bool:
		n, err := w.expect(majorOther)
		if err == nil && n != cborFalse && n != cborTrue {
			err = bad("", "is not true or false")
		}
		return err
	case reflect.Uint8, reflect.Uint32, reflect.Uint64, reflect.Int32, reflect.Int64:
		return w.number(s)
	}
	return bad("", "has a type that the format does not have")
}

// bytes checks a byte string.
func (w *walker) bytes(limit uint64) error {
	n, err := w.expect(majorBytes)
	if err != nil {
		return err
	}
	if left := len(w.b) - w.off; n > limit || n > uint64(left) {
		return bad("", "%d bytes, where at most %d fit", n, min(limit, uint64(left)))
	}
	w.off += int(n)
	return nil
}

// number checks the range of an integer.
func (w *walker) number(s *shape) error {
	major, n, err := w.head()
	if err != nil {
		return err
	}
	signed := s.kind == reflect.Int32 || s.kind == reflect.Int64
	limit := uint64(math.MaxUint64) >> (64 - s.bits)
	if signed {
		limit >>= 1
	}
	switch {
	case major != majorUint && (major != majorInt || !signed):
		return bad("", "is of CBOR type %d, not a number that fits", major)
	case n > limit:
		return bad("", "the number does not fit %d bits", s.bits)
	}
	return nil
}

// sequence checks a list, or the bytes of a []byte.
func (w *walker) sequence(s *shape) error {
	switch {
	case s.raw:
		return w.any(0)
	case s.elem == nil:
		return w.bytes(maxBytes)
	}
	n, err := w.expect(majorList)
	if err != nil {
		return err
	}
	if s.kind == reflect.Array && n != uint64(s.len) {
		return bad("", "has %d elements, not %d", n, s.len)
	}
	if most := uint64((len(w.b) - w.off) / s.elem.minimum); n > most {
		return bad("", "has %d elements, but the manifest has room for %d at most", n, most)
	}
	for i := range n {
		if err := w.value(s.elem); err != nil {
			return at(err, "[%d]", i)
		}
	}
	return nil
}

// record checks the map of a struct.
func (w *walker) record(s *shape) error {
	n, err := w.expect(majorMap)
	if err != nil {
		return err
	}
	required, last := 0, -1
	for range n {
		key, err := w.expect(majorUint)
		if err != nil {
			return at(err, "key after %d", last)
		}
		f, known := s.fields[key]
		switch {
		case !known:
			return &FeatureError{Name: fmt.Sprintf("field %d", key)}
		case int64(key) <= int64(last):
			return bad(f.name, "field %d comes after field %d", key, last)
		}
		last = int(key)
		if f.required {
			required++
		}
		if err := w.value(f.shape); err != nil {
			return at(err, "%s", f.name)
		}
	}
	if required != s.required {
		return bad("", "%d of its fields are missing", s.required-required)
	}
	return nil
}

// any checks that one item of whatever shape is well-formed: a kind's own record.
func (w *walker) any(depth int) error {
	if depth > maxNesting/2 {
		return bad("", "is nested more than %d deep", maxNesting/2)
	}
	major, n, err := w.head()
	if err != nil {
		return err
	}
	left := uint64(len(w.b) - w.off)
	switch major {
	case majorBytes, majorText:
		if n > left || n > maxBytes {
			return bad("", "%d bytes, where at most %d fit", n, min(left, maxBytes))
		}
		w.off += int(n)
		return nil
	case majorMap:
		if n > left/2 {
			return bad("", "has %d pairs in %d bytes", n, left)
		}
		n *= 2
	case majorList:
		if n > left {
			return bad("", "has %d elements in %d bytes", n, left)
		}
	case majorUint, majorInt:
		return nil
	case majorOther:
		if n < cborFalse || n > cborNull {
			return bad("", "has the simple value %d, which the format does not have", n)
		}
		return nil
	default:
		return bad("", "has a CBOR tag, which the format does not have")
	}
	for i := range n {
		if err := w.any(depth + 1); err != nil {
			return at(err, "[%d]", i)
		}
	}
	return nil
}
