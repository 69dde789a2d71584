package record

import (
	"errors"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/secret"
	"github.com/ckptfs/ckptfs/store/tree"
	"github.com/fxamacker/cbor/v2"
)

// MaxLease bounds a lease, in bytes.
const MaxLease = 16 << 20

// LeaseFile is the content of a lease: the trees that a machine reads, sealed if there is a key, and
// their BLAKE3.
func LeaseFile(sec *secret.Secrets, id disk.ID, roots []tree.Root) ([]byte, error) {
	b, err := cbor.Marshal(roots)
	if err != nil {
		return nil, err
	}
	if sec != nil {
		b = sec.SealRecord(id, b)
	}
	sum := chunk.Sum(b)
	return append(b, sum[:]...), nil
}

// ParseLease is the way back from LeaseFile.
func ParseLease(sec *secret.Secrets, id disk.ID, b []byte) (roots []tree.Root, err error) {
	n := len(b) - len(chunk.Hash{})
	if n < 0 || chunk.Sum(b[:n]) != chunk.Hash(b[n:]) {
		return nil, errors.New("the lease is damaged")
	}
	b = b[:n]
	if sec != nil {
		if b, err = sec.OpenRecord(id, b); err != nil {
			return nil, err
		}
	}
	dec, err := recDecMode()
	if err != nil {
		return nil, err
	}
	if err := dec.Unmarshal(b, &roots); err != nil {
		return nil, err
	}
	for i := range roots {
		if err := checkRoot(&roots[i]); err != nil {
			return nil, err
		}
	}
	return roots, nil
}
