package store

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/damage"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/record"
)

// sharedRecords reads every record of a bucket again. The list is as new as refreshImages
// made it; what was removed since is no fault.
func (v *verification) sharedRecords() (recs []*record.Record, err error) {
	s := v.s
	s.mu.Lock()
	closed, damaged := s.closed, slices.Clone(s.damaged)
	v.ids = make(map[string]disk.ID, len(s.images))
	for name, im := range s.images {
		recs = append(recs, im.rec)
		v.ids[name] = im.id
	}
	s.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	for _, d := range damaged {
		v.fault("%v", d)
	}
	slices.SortFunc(recs, func(a, b *record.Record) int { return strings.Compare(a.Name, b.Name) })
	errs := make([]error, len(recs))
	bucket.Parallel(len(recs), func(i int) { _, errs[i] = s.readRecord(v.ids[recs[i].Name]) })
	there := recs[:0]
	for i, rec := range recs {
		switch err := errs[i]; {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil && !damage.Is(err):
			return nil, fmt.Errorf("verify: not all could be looked at: %w", err)
		case err != nil:
			v.fault("image %q: record %s: %v", rec.Name, s.recordPath(v.ids[rec.Name]), err)
		}
		there = append(there, rec)
	}
	return there, nil
}

// forgetRemoved forgets chunks that only images needed which were removed meanwhile: GC
// elsewhere may have been there.
func (v *verification) forgetRemoved() error {
	gone := map[string]bool{}
	for h, names := range v.users {
		for _, name := range names {
			if _, asked := gone[name]; asked {
				continue
			}
			err := v.s.sh.StillListed(name, v.ids[name])
			if gone[name] = errors.Is(err, fs.ErrNotExist); err != nil && !gone[name] {
				return err
			}
		}
		v.users[h] = slices.DeleteFunc(names, func(name string) bool { return gone[name] })
		if len(v.users[h]) == 0 {
			delete(v.bad, h)
		}
	}
	return nil
}
