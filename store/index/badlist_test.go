package index

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ckptfs/ckptfs/store/disk"
)

// TestBadList: a list that is damaged is none.
func TestBadList(t *testing.T) {
	whole := encodeBad(nil, []badPlace{{disk.NewID(), 40}, {disk.NewID(), footerOff}})
	if list, err := decodeBad(nil, whole); err != nil || len(list) != 2 || list[0].off != 40 {
		t.Errorf("%v, %v", list, err)
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		for _, b := range [][]byte{b, whole[:i]} {
			if list, err := decodeBad(nil, b); !errors.Is(err, errBadList) || list != nil {
				t.Fatalf("byte %d: %v, %v", i, list, err)
			}
		}
	}
}
