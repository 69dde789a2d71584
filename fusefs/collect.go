package fusefs

import "time"

// collectDelay is how long removed images stay in the store: rm -r of many comes one by one.
const collectDelay = 2 * time.Second

// garbage says that the store holds something that nobody needs any more.
func (f *filesystem) garbage() {
	select {
	case f.dirty <- struct{}{}:
	default: // the collector knows already
	}
}

// collect frees what is no longer needed, in the background, until the mount ends.
func (f *filesystem) collect() {
	for {
		select {
		case <-f.dirty:
		case <-f.ctx.Done():
			return
		}
		select {
		case <-time.After(collectDelay):
		case <-f.ctx.Done():
			return
		}
		rep, err := f.store.GC(f.ctx)
		switch {
		case f.ctx.Err() != nil:
			return
		case err != nil:
			f.logf("freeing space in the store: %v", err)
		case rep.Freed > 0:
			f.logf("freed %d bytes in the store", rep.Freed)
		}
	}
}
