package ckpt

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// states is what became of the pages of a range.
type states struct {
	pages   pageSet // that an image holds
	guards  pageSet
	written pageSet // those of pages that were written since they were last protected
}

// append adds the states of what lies behind.
func (s *states) append(t *states) {
	s.pages = append(s.pages, t.pages...).joined()
	s.guards = append(s.guards, t.guards...).joined()
	s.written = append(s.written, t.written...).joined()
}

// scanAll calls f for each of n things on all processors; frozen says that a tree stands still meanwhile.
func scanAll(pid, n int, frozen bool, f func(sc *scanner, i int) error) error {
	var next atomic.Int64
	workers := min(n, runtime.NumCPU())
	errs := make([]error, workers)
	work := func(w int) {
		sc, err := newScanner(pid)
		if err != nil {
			errs[w] = err
			return
		}
		defer sc.close()
		for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
			errs[w] = f(sc, i)
		}
	}
	var wg sync.WaitGroup
	for w := 1; w < workers; w++ {
		wg.Go(func() {
			if frozen {
				ptrace.Hurried(func() { work(w) })
			} else {
				work(w)
			}
		})
	}
	if workers > 0 {
		work(0)
	}
	wg.Wait()
	return errors.Join(errs...)
}

// isTracked reports whether somebody tracks the writes to a page.
func (s *scanner) isTracked(at uint64) (bool, error) {
	err := s.scan(at, at+pageSize, &pmScanArg{flags: pmScanCheckWPAsync, mask: pageIsWritten, returned: pageIsWritten, vecLen: 1}, func(pageRegion) {})
	if errors.Is(err, unix.EPERM) {
		return false, nil
	}
	return err == nil, err
}

// manyWritten is how many pieces of a range are protected one by one: beyond, the range is as a whole.
const manyWritten = 2048

// errHalfway says that a look has protected some pages again before it failed, so that nobody knows any more which were written.
var errHalfway = errors.New("it failed halfway")

// detail reads the state of each page of a tracked range and protects the written ones again: what is
// written from then on will be found by the next scan. It costs some 5 ms for each GiB of small pages.
func (s *scanner) detail(start, end uint64) (st states, err error) {
	arg := pmScanArg{flags: pmScanCheckWPAsync, anyOf: pageIsPresent | pageIsSwapped, inverted: pageIsPfnZero, mask: pageIsPfnZero,
		returned: pageIsPresent | pageIsSwapped | pageIsWritten}
	if s.guards {
		arg.returned |= pageIsGuard
	}
	err = s.scan(start, end, &arg, func(r pageRegion) {
		if r.categories&pageIsGuard != 0 {
			st.guards = st.guards.add(r.start, r.end)
			return
		}
		st.pages = st.pages.add(r.start, r.end)
		if r.categories&pageIsWritten != 0 {
			st.written = st.written.add(r.start, r.end)
		}
	})
	if err != nil {
		return st, err
	}
	where := st.written
	if len(where) > manyWritten {
		where = pageSet{{Start: start, Len: end - start}}
	}
	var also pageSet // written only now
	for _, e := range where {
		if also, err = s.protect(also, e); err != nil {
			return st, fmt.Errorf("%w: %w", errHalfway, err)
		}
	}
	st.written = st.written.union(also)
	return st, nil
}

// protect protects the written pages of a range again and appends them to to. What holds nothing is left
// alone: the kernel would make page tables for it.
func (s *scanner) protect(to pageSet, e image.Extent) (pageSet, error) {
	arg := pmScanArg{flags: pmScanCheckWPAsync | pmScanWPMatching, anyOf: pageIsPresent | pageIsSwapped,
		inverted: pageIsPfnZero, mask: pageIsPfnZero | pageIsWritten, returned: pageIsWritten}
	if s.guards {
		arg.inverted |= pageIsGuard
		arg.mask |= pageIsGuard
	}
	err := s.scan(e.Start, e.Start+e.Len, &arg, func(r pageRegion) { to = to.add(r.start, r.end) })
	return to, err
}

// advance is detail where the pages that there are were known a moment ago: only those are looked at that
// have been written, or are gone. It costs some 1.2 ms for each GiB of small pages.
//
// The one scan that is so fast tells of every entry of the page tables that is not protected, the empty ones
// too: so a known page is still there if it is not told of, and if its page table is. The kernel gives page tables
// back that have become empty, so one known page of each is looked for.
func (s *scanner) advance(start, end uint64, known pageSet) (st states, err error) {
	var open pageSet
	arg := pmScanArg{flags: pmScanCheckWPAsync, mask: pageIsWritten, returned: pageIsWritten}
	if err := s.scan(start, end, &arg, func(r pageRegion) { open = open.add(r.start, r.end) }); err != nil {
		return st, err
	}
	lost, err := s.lostTables(known, open)
	if err != nil {
		return st, err
	}
	open = open.union(lost)
	if len(open) > manyWritten {
		return s.detail(start, end)
	}
	for _, e := range open {
		got, err := s.detail(e.Start, e.Start+e.Len)
		if err != nil {
			return st, err
		}
		st.pages, st.guards, st.written = st.pages.union(got.pages), st.guards.union(got.guards), st.written.union(got.written)
	}
	st.pages = known.without(open).union(st.pages)
	return st, nil
}

// tableSpan is how much memory one page table describes.
const tableSpan = 2 << 20

// lostTables returns the known pages whose page table is no more, leaving out those in open.
func (s *scanner) lostTables(known, open pageSet) (lost pageSet, err error) {
	next := uint64(0) // the first address whose table has not been looked at
	for _, e := range known.without(open) {
		for at := max(e.Start, next); at < e.Start+e.Len; at = next {
			there, err := s.exists(at)
			if err != nil {
				return nil, err
			}
			next = at&^(tableSpan-1) + tableSpan
			if !there {
				lost = lost.union(known.within(at, next))
			}
		}
	}
	return lost, nil
}

// exists reports whether a page holds something.
func (s *scanner) exists(at uint64) (there bool, err error) {
	arg := pmScanArg{anyOf: pageIsPresent | pageIsSwapped, returned: pageIsPresent, vecLen: 1}
	err = s.scan(at, at+pageSize, &arg, func(pageRegion) { there = true })
	return there, err
}
