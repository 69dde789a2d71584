package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
)

// MarkerMagic is the first line of a marker.
const MarkerMagic = "ckptfs gc 1"

// MaxMarker bounds a marker, in bytes, that is in packs: half a million.
const MaxMarker = 16 << 20

// EncodeMarker is the content of a marker that names packs.
func EncodeMarker(ids []disk.ID) []byte {
	b := append([]byte(MarkerMagic), '\n')
	for _, id := range ids {
		b = append(hex.AppendEncode(b, id[:]), '\n')
	}
	return fmt.Appendf(b, "%s\n", chunk.Sum(b))
}

// DecodeMarker is the way back.
func DecodeMarker(b []byte) ([]disk.ID, error) {
	lines := bytes.Split(bytes.TrimSuffix(b, []byte{'\n'}), []byte{'\n'})
	sum := lines[len(lines)-1]
	if lines = lines[:len(lines)-1]; len(lines) == 0 || string(lines[0]) != MarkerMagic {
		return nil, errors.New("not a GC marker")
	}
	if chunk.Sum(b[:len(b)-len(sum)-1]).String() != string(sum) {
		return nil, errors.New("a GC marker is damaged")
	}
	var ids []disk.ID
	for _, l := range lines[1:] {
		id, ok := disk.ParseID(string(l), "")
		if !ok {
			return nil, fmt.Errorf("%q in a GC marker is no pack", l)
		}
		ids = append(ids, id)
	}
	return ids, nil
}
