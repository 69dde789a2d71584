package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// A lease names the images that a machine is reading, so that GC keeps what they need even
// if somebody removes them meanwhile.

func (f *Fleet) leaseKey() string { return Leases + "/" + f.lease.String() + leaseExt }

// renewLease writes our lease, or takes it back when nothing is read any more.
func (f *Fleet) renewLease() error {
	f.leaseMu.Lock()
	defer f.leaseMu.Unlock()
	roots := f.local.Roots()
	if len(roots) == 0 {
		if !f.leased {
			return nil
		}
		err := f.Bucket.Remove(f.Ctx, f.leaseKey())
		f.leased = err != nil
		return err
	}
	b, err := record.LeaseFile(f.c.Sec, f.lease, roots)
	if err != nil {
		return err
	}
	if err := f.Bucket.PutBytes(f.Ctx, f.leaseKey(), b, bucket.Always); err != nil {
		return err
	}
	f.leased = true
	return nil
}

// Claim makes sure that what a new reader needs stays there. Where nothing is marked, all
// of it stays for a grace time at least, and our loop writes a lease before that. Else the
// lease is written now; if the image is still listed after that, no GC has missed both.
func (f *Fleet) Claim(name string, id disk.ID) error {
	if !f.local.Marked() {
		return nil
	}
	if err := f.renewLease(); err != nil {
		return err
	}
	return f.StillListed(name, id)
}

// StillListed asks the bucket whether an image is there.
func (f *Fleet) StillListed(name string, id disk.ID) error {
	_, err := f.Bucket.Stat(f.Ctx, RecordKey(id))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %q has just been removed: %w", name, fs.ErrNotExist)
	}
	return err
}

// Leases returns what other machines are reading. Old leases are those of machines that
// died; they are removed.
func (f *Fleet) Leases(ctx context.Context, now int64) (roots []tree.Root, err error) {
	var old []string
	var live []disk.ID
	err = f.Bucket.List(ctx, Leases+"/", "", func(o bucket.Object) {
		id, ok := keyID(o.Key, leaseExt)
		switch {
		case id == f.lease:
		case now-o.Modified.UnixNano() > 2*int64(f.Grace): // of what kind ever, see serverTime
			old = append(old, o.Key)
		case !ok:
		default:
			live = append(live, id)
		}
	})
	if err != nil {
		return nil, err
	}
	for _, key := range old {
		if err := f.Bucket.Remove(ctx, key); err != nil {
			return nil, err
		}
	}
	for _, id := range live {
		key := Leases + "/" + id.String() + leaseExt
		var more []tree.Root
		err := f.Bucket.GetParsed(ctx, key, record.MaxLease, func(b []byte) (err error) {
			more, err = record.ParseLease(f.c.Sec, id, b)
			return err
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("what another machine is reading (%s/%s): %w", f.Bucket.URL, key, err)
		}
		roots = append(roots, more...)
	}
	return roots, nil
}
