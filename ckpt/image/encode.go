package image

import (
	"fmt"
	"reflect"
)

// Encode makes the head of the image, header and manifest, and says where all its data has to
// stand. The manifest is validated first, and what was encoded is decoded again and compared:
// a fault in the format shows now and not when somebody needs the image.
func Encode(m *Manifest) (head []byte, l *Layout, err error) {
	head, l, check, err := EncodeAhead(m)
	if err == nil {
		err = check()
	}
	if err != nil {
		return nil, nil, err
	}
	return head, l, nil
}

// EncodeAhead is Encode that leaves the comparison, half of the work, to check. An image is whole only
// after check has returned nil; it may be called beside the writing, as long as nobody changes the manifest.
func EncodeAhead(m *Manifest) (head []byte, l *Layout, check func() error, err error) {
	if err := m.Validate(); err != nil {
		return nil, nil, nil, fmt.Errorf("cannot write the image: %w", err)
	}
	body, err := marshal(m)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("cannot write the manifest of the image: %w", err)
	}
	if len(body) > MaxManifest {
		return nil, nil, nil, fmt.Errorf("cannot write the image: its manifest has %d bytes, the limit is %d; the memory of the tree is in too many pieces", len(body), MaxManifest)
	}
	if l, err = newLayout(m, len(body), Version); err != nil {
		return nil, nil, nil, fmt.Errorf("cannot write the image: %w", err)
	}
	l.cut(m)
	return newHead(l, body), l, func() error { return decodesTo(body, m) }, nil
}

// decodesTo compares a manifest with what its bytes decode to.
func decodesTo(body []byte, m *Manifest) error {
	again, err := decodeManifest(body)
	if err != nil {
		return fmt.Errorf("cannot write the image: its manifest does not decode again: %w", err)
	}
	if !same(reflect.ValueOf(m).Elem(), reflect.ValueOf(again).Elem()) {
		return fmt.Errorf("cannot write the image: its manifest decodes to something else")
	}
	return nil
}

// newHead puts header and manifest together.
func newHead(l *Layout, body []byte) []byte {
	head := make([]byte, l.HeadLen)
	h := newHeader(l, len(body))
	h.put(head)
	copy(head[headerLen:], body)
	sum := headHash(head)
	copy(head[headHashOff:], sum[:])
	return head
}
