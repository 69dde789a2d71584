package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/tree"
)

// A lease names the images that a machine is reading, so that GC keeps what they need even
// if somebody removes them meanwhile.

func (sh *shared) leaseKey() string { return leasesName + "/" + sh.lease.String() + leaseExt }

// roots lists the chunk lists that open readers need.
func (s *Store) readerRoots() (roots []tree.Root) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.readers {
		roots = append(roots, r.rec.Trees()...)
	}
	return roots
}

// renewLease writes our lease, or takes it back when nothing is read any more.
func (sh *shared) renewLease() error {
	sh.leaseMu.Lock()
	defer sh.leaseMu.Unlock()
	roots := sh.s.readerRoots()
	if len(roots) == 0 {
		if !sh.leased {
			return nil
		}
		err := sh.b.Remove(sh.ctx, sh.leaseKey())
		sh.leased = err != nil
		return err
	}
	b, err := record.LeaseFile(sh.s.sec, sh.lease, roots)
	if err != nil {
		return err
	}
	if err := sh.b.PutBytes(sh.ctx, sh.leaseKey(), b, bucket.Always); err != nil {
		return err
	}
	sh.leased = true
	return nil
}

// claim makes sure that what a new reader needs stays there. Where nothing is marked, all
// of it stays for a grace time at least, and our loop writes a lease before that. Else the
// lease is written now; if the image is still listed after that, no GC has missed both.
func (sh *shared) claim(name string, id disk.ID) error {
	sh.s.mu.Lock()
	marked := len(sh.s.doomed) > 0
	sh.s.mu.Unlock()
	if !marked {
		return nil
	}
	if err := sh.renewLease(); err != nil {
		return err
	}
	return sh.stillListed(name, id)
}

// stillListed asks the bucket whether an image is there.
func (sh *shared) stillListed(name string, id disk.ID) error {
	_, err := sh.b.Stat(sh.ctx, recordKey(id))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %q has just been removed: %w", name, fs.ErrNotExist)
	}
	return err
}

// leases returns what other machines are reading. Old leases are those of machines that
// died; they are removed.
func (sh *shared) leases(ctx context.Context, now int64) (roots []tree.Root, err error) {
	var old []string
	var live []disk.ID
	err = sh.b.List(ctx, leasesName+"/", "", func(o bucket.Object) {
		id, ok := keyID(o.Key, leaseExt)
		switch {
		case id == sh.lease:
		case now-o.Modified.UnixNano() > 2*int64(sh.grace): // of what kind ever, see serverTime
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
		if err := sh.b.Remove(ctx, key); err != nil {
			return nil, err
		}
	}
	for _, id := range live {
		key := leasesName + "/" + id.String() + leaseExt
		var more []tree.Root
		err := sh.b.GetParsed(ctx, key, record.MaxLease, func(b []byte) (err error) {
			more, err = record.ParseLease(sh.s.sec, id, b)
			return err
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("what another machine is reading (%s/%s): %w", sh.b.URL, key, err)
		}
		roots = append(roots, more...)
	}
	return roots, nil
}

// rescue stores again what the ingest refers to and only a pack has that is about to be
// removed. Called with putting held.
func (in *Ingest) rescue() error {
	if !in.endangered() {
		return nil
	}
	in.mu.Lock()
	spans, open := in.tree.Spans, in.unlisted()
	in.mu.Unlock()
	in.resetPacks()
	for _, sp := range spans { // only Append and Commit add to them, and we hold putting
		if err := in.rescueNode(sp.Hash); err != nil {
			return err
		}
		refs, err := in.s.leaf(sp)
		if err != nil {
			return err
		}
		if err := in.rescueRefs(refs); err != nil {
			return err
		}
	}
	for _, h := range in.extra {
		if err := in.rescueNode(h); err != nil {
			return err
		}
	}
	return in.rescueRefs(open)
}

func (in *Ingest) rescueRefs(refs []tree.Ref) error {
	for i := range refs {
		if refs[i].Zero {
			continue
		}
		if err := in.rescueChunk(refs[i].Hash, int(refs[i].Size), false); err != nil {
			return err
		}
	}
	return nil
}

// rescueNode is rescueChunk for a chunk whose length only the index knows.
func (in *Ingest) rescueNode(h chunk.Hash) error {
	n, err := in.s.size(&h)
	if err != nil {
		return err
	}
	return in.rescueChunk(h, n, true)
}

func (in *Ingest) rescueChunk(h chunk.Hash, n int, node bool) error {
	known, err := in.s.known(&h, in)
	if known || err != nil {
		return err
	}
	b := in.s.pools.Chunks.Get(n)
	defer b.Release()
	if err := in.s.readChunk(&h, b.Data); err != nil {
		return fmt.Errorf("another machine is removing a pack that this image needs, and it cannot be copied: %w", err)
	}
	return in.storeOne(&h, b, node)
}
