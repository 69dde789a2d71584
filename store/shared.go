package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
	"golang.org/x/sys/unix"
)

// shared is what a store in a bucket has beyond one in a folder: what other machines did
// is learned by listings, and what they are about to remove from their markers. The rules
// that keep machines out of each other's way are in doc.go, "Bucket".
type shared struct {
	s      *Store
	b      *bucket.Bucket
	ctx    context.Context // ends with the store
	cancel context.CancelCauseFunc
	grace  time.Duration
	loop   sync.WaitGroup

	seen  atomic.Int64 // bootTime of the last refresh
	holes atomic.Bool  // a pack went since the last relearn

	relearning sync.Mutex // held by relearn
	relearned  int64      // bootTime of its last end

	leaseMu sync.Mutex
	leased  bool // the bucket has our lease

	mu      sync.Mutex // held by a refresh
	newest  disk.ID    // youngest pack that a listing showed
	markers map[disk.ID]*marker
	lease   disk.ID
	removed map[disk.ID]bool
	undo    map[disk.ID]bool    // records that must not stay, if they are there at all
	records map[disk.ID]fetched // images as last listed
	listed  int64               // bootTime of that
}

// Folders of a bucket beside those of a store folder.
const (
	markersName = "gc"
	leasesName  = "leases"
	markerExt   = ".gone"
	leaseExt    = ".lease"
)

// Where fresh means that asking again would only cost.
const (
	packsFresh  = 5 * time.Second // before a Begin
	imagesFresh = time.Second     // before a List
)

// clockSkew is how far the clocks of machines that share a bucket may be apart. Nothing
// is lost if they are further, but a machine may store again what another one has.
const clockSkew = time.Hour

// bootTime is a clock that also runs while the machine sleeps.
func bootTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // it exists since Linux 2.6.39
	}
	return ts.Nano()
}

// ago is the bootTime of d ago.
func ago(d time.Duration) int64 { return bootTime() - int64(d) }

func since(boot int64) time.Duration { return time.Duration(bootTime() - boot) }

func newShared(s *Store, b *bucket.Bucket) *shared {
	sh := &shared{s: s, b: b, grace: s.o.Grace, lease: disk.NewID(), markers: map[disk.ID]*marker{},
		removed: map[disk.ID]bool{}, undo: map[disk.ID]bool{}, records: map[disk.ID]fetched{}}
	sh.holes.Store(true) // what the index had when it was written, nobody knows
	sh.ctx, sh.cancel = context.WithCancelCause(context.Background())
	return sh
}

func packKey(id disk.ID) string { return packsName + "/" + id.String() + disk.PackExt }

// getPack fills b with bytes of a pack.
func (sh *shared) getPack(id disk.ID, b []byte, off int64) error {
	return sh.b.Get(sh.ctx, packKey(id), b, off)
}

// keyID takes the ID out of the key of an object.
func keyID(key, ext string) (disk.ID, bool) { return disk.ParseID(path.Base(key), ext) }

// refresh learns what other machines did: which packs are about to go, and which are new.
// Everything is listed if all is set or we have not looked for so long that a pack can have
// been removed unseen.
func (sh *shared) refresh(ctx context.Context, all bool) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.refreshLocked(ctx, all)
}

// freshen is a refresh unless one has begun at a bootTime or later.
func (sh *shared) freshen(ctx context.Context, notBefore int64) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.seen.Load() >= notBefore {
		return nil
	}
	return sh.refreshLocked(ctx, false)
}

func (sh *shared) refreshLocked(ctx context.Context, all bool) error {
	now := bootTime()
	all = all || time.Duration(now-sh.seen.Load()) > sh.grace/2
	vanished, err := sh.readMarkers(ctx)
	if err != nil {
		return err
	}
	if err := sh.listNewPacks(ctx, all || vanished); err != nil {
		return err
	}
	sh.seen.Store(now)
	return nil
}

// listNewPacks enters the packs that were not known, and with all those that are gone.
func (sh *shared) listNewPacks(ctx context.Context, all bool) error {
	after := ""
	if !all && sh.newest != (disk.ID{}) {
		after = packKey(idBefore(sh.newest.Time().Add(-clockSkew)))
	}
	found := map[disk.ID]int64{}
	err := sh.b.List(ctx, packsName+"/", after, func(o bucket.Object) {
		if id, ok := keyID(o.Key, disk.PackExt); ok {
			found[id] = o.Size
			if id.String() > sh.newest.String() {
				sh.newest = id
			}
		}
	})
	if err != nil {
		return err
	}
	fresh, missing := sh.s.compare(found, all)
	if err := sh.s.absorb(fresh, false); err != nil {
		for _, p := range fresh {
			if !p.Sealed.Load() {
				sh.s.packGone(p) // the next listing makes a new one of it
			}
		}
		return err
	}
	sh.s.flushLater(flushAt)
	return sh.lookFor(ctx, missing)
}

// idBefore is an ID that is listed before all of a time.
func idBefore(t time.Time) disk.ID {
	id := disk.IDAt(t)
	clear(id[6:])
	return id
}

// compare makes packs of what a listing found and we do not know, and, if the listing was
// complete, tells which of ours it does not have.
func (s *Store) compare(found map[disk.ID]int64, all bool) (fresh, missing []*pack.Pack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, size := range found {
		// A second *pack for one of ours would not hear of markers.
		if _, ours := s.writing[id]; s.packs[id] == nil && !ours {
			p := &pack.Pack{ID: id, Size: size, Created: id.Time().UnixNano()}
			p.Doomed.Store(s.doomed[id])
			s.packs[id] = p
			fresh = append(fresh, p)
		}
	}
	if !all {
		return fresh, nil
	}
	for id, p := range s.packs {
		if _, ok := found[id]; !ok {
			missing = append(missing, p)
		}
	}
	return fresh, missing
}

// lookFor looks at every pack that a listing did not show: listings may be old.
func (sh *shared) lookFor(ctx context.Context, packs []*pack.Pack) error {
	for _, p := range packs {
		_, err := sh.b.Stat(ctx, packKey(p.ID))
		if errors.Is(err, fs.ErrNotExist) {
			sh.s.packGone(p)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// packGone forgets a pack that another machine removed.
func (s *Store) packGone(p *pack.Pack) {
	s.mu.Lock()
	delete(s.packs, p.ID)
	s.mu.Unlock()
	_ = s.files.Drop(p) // only a cached copy, which Open removes too
	s.sh.holes.Store(true)
}

// start keeps in touch with the bucket while anything of ours needs it.
func (sh *shared) start() {
	for _, round := range []func(){sh.keepReading, sh.keepUp} { // one does not wait for the other
		sh.loop.Go(func() {
			tick := time.NewTicker(sh.grace / 4)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					round()
				case <-sh.ctx.Done():
					return
				}
			}
		})
	}
}

// keepReading is one round for readers: their lease is renewed.
func (sh *shared) keepReading() {
	sh.undoRecords()
	if err := sh.renewLease(); err != nil {
		sh.s.o.Log(fmt.Sprintf("store %s: what is being read here may be removed by other machines: %v", sh.b.URL, err))
	}
}

// keepUp is one round for running ingests: they move away from packs that are about to be
// removed.
func (sh *shared) keepUp() {
	s := sh.s
	live := s.live()
	if len(live) == 0 {
		return
	}
	if err := sh.refresh(sh.ctx, false); err != nil {
		s.o.Log(fmt.Sprintf("store %s: %v", sh.b.URL, err))
		if sh.inTouch() == nil {
			return // the next round may have more luck
		}
	}
	for _, in := range live {
		in.putting.Lock()
		// To get the lock may have taken long, if a Put waited for the bucket.
		err := sh.freshen(sh.ctx, ago(sh.grace/2))
		if err == nil && in.usable() == nil {
			err = in.rescue()
		}
		in.fail(err)
		in.putting.Unlock()
	}
}

// errOutOfTouch is inside what inTouch says.
var errOutOfTouch = errors.New("what other machines are about to remove is not known")

// inTouch fails if we may have missed that a pack we refer to is removed.
func (sh *shared) inTouch() error {
	if d := since(sh.seen.Load()); d > sh.grace/2 {
		return fmt.Errorf("the bucket %s could not be asked for %s: %w", sh.b.URL, d.Round(time.Millisecond), errOutOfTouch)
	}
	return nil
}

// bound makes a context of a caller end with the store: Close does not wait for a bucket that
// does not answer.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.sh == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.sh.ctx, func() { cancel(context.Cause(s.sh.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// close ends the loop and takes our lease back.
func (sh *shared) close() {
	sh.cancel(ErrClosed)
	sh.loop.Wait()
	sh.undoRecords()
	if sh.leased {
		ctx, cancel := context.WithTimeout(context.Background(), sh.b.Attempt)
		defer cancel()
		_ = sh.b.Remove(ctx, sh.leaseKey()) // GC ignores an old one
	}
}
