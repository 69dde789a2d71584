package fleet

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
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/secret"
	"github.com/ckptfs/ckptfs/store/tree"
	"golang.org/x/sys/unix"
)

// Local is what a machine knows by itself: its table of packs, its images, and what is going on.
// No method asks the bucket but Absorb, which reads footers.
type Local interface {
	// Compare makes packs of what a listing found and the table does not have, by ID and size
	// in bytes, and, if the listing was complete, tells which packs it did not show.
	Compare(found map[disk.ID]int64, all bool) (fresh, missing []*pack.Pack)
	// Absorb enters what is in new packs into the index.
	Absorb(fresh []*pack.Pack) error
	// Gone forgets a pack that another machine removed.
	Gone(*pack.Pack)
	// Has tells whether a pack is in the table.
	Has(disk.ID) bool
	// Doom tells all packs, also those that come later, whether they are about to go.
	Doom(map[disk.ID]bool)
	// Marked tells whether any pack is about to go.
	Marked() bool
	// Roots lists the chunk lists that open readers need.
	Roots() []tree.Root
	// SetImages replaces the list of images.
	SetImages(map[disk.ID]Fetched)
	// KeepUp has running ingests move away from packs that are about to be removed. It is
	// called every quarter of the grace time.
	KeepUp()
}

// Config says whose bucket it is.
type Config struct {
	Location string // s3://BUCKET/PREFIX
	Cache    string // folder for the caches of all buckets; "" means the user's
	Patience time.Duration
	Attempt  time.Duration
	Grace    time.Duration // of a new store
	Sec      *secret.Secrets
	Log      func(string)
}

// Fleet is a machine's part in a store that many share in a bucket.
type Fleet struct {
	Bucket *bucket.Bucket
	Ctx    context.Context // ends with the store
	Grace  time.Duration   // between the wish to remove a pack and its removal
	Dir    string          // cache folder

	Seen  atomic.Int64 // Now of the last refresh
	Holes atomic.Bool  // a pack went since somebody last looked for what the index lost

	c      Config
	local  Local
	cancel context.CancelCauseFunc
	loop   sync.WaitGroup

	leaseMu sync.Mutex
	leased  bool // the bucket has our lease

	mu      sync.Mutex // held by a refresh
	newest  disk.ID    // youngest pack that a listing showed
	markers map[disk.ID]*Marker
	lease   disk.ID
	removed map[disk.ID]bool
	undo    map[disk.ID]bool    // records that must not stay, if they are there at all
	records map[disk.ID]Fetched // images as last listed
	listed  int64               // Now of that
}

// Folders of a bucket beside those of a store folder.
const (
	Markers   = "gc"
	Leases    = "leases"
	markerExt = ".gone"
	leaseExt  = ".lease"
)

// clockSkew is how far the clocks of machines that share a bucket may be apart. Nothing
// is lost if they are further, but a machine may store again what another one has.
const clockSkew = time.Hour

// Now is a clock that also runs while the machine sleeps.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // it exists since Linux 2.6.39
	}
	return ts.Nano()
}

// Ago is the Now of d ago.
func Ago(d time.Duration) int64 { return Now() - int64(d) }

// Since is the time since a Now.
func Since(boot int64) time.Duration { return time.Duration(Now() - boot) }

// PackKey is the key of a pack.
func PackKey(id disk.ID) string { return layout.Packs + "/" + id.String() + disk.PackExt }

// GetPack fills b with bytes of a pack.
func (f *Fleet) GetPack(id disk.ID, b []byte, off int64) error {
	return f.Bucket.Get(f.Ctx, PackKey(id), b, off)
}

// keyID takes the ID out of the key of an object.
func keyID(key, ext string) (disk.ID, bool) { return disk.ParseID(path.Base(key), ext) }

// Refresh learns what other machines did: which packs are about to go, and which are new.
// Everything is listed if all is set or we have not looked for so long that a pack can have
// been removed unseen.
func (f *Fleet) Refresh(ctx context.Context, all bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refreshLocked(ctx, all)
}

// Freshen is a refresh unless one has begun at a Now or later.
func (f *Fleet) Freshen(ctx context.Context, notBefore int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Seen.Load() >= notBefore {
		return nil
	}
	return f.refreshLocked(ctx, false)
}

func (f *Fleet) refreshLocked(ctx context.Context, all bool) error {
	now := Now()
	all = all || time.Duration(now-f.Seen.Load()) > f.Grace/2
	vanished, err := f.readMarkers(ctx)
	if err != nil {
		return err
	}
	if err := f.listNewPacks(ctx, all || vanished); err != nil {
		return err
	}
	f.Seen.Store(now)
	return nil
}

// listNewPacks enters the packs that were not known, and with all those that are gone.
func (f *Fleet) listNewPacks(ctx context.Context, all bool) error {
	after := ""
	if !all && f.newest != (disk.ID{}) {
		after = PackKey(idBefore(f.newest.Time().Add(-clockSkew)))
	}
	found := map[disk.ID]int64{}
	err := f.Bucket.List(ctx, layout.Packs+"/", after, func(o bucket.Object) {
		if id, ok := keyID(o.Key, disk.PackExt); ok {
			found[id] = o.Size
			if id.String() > f.newest.String() {
				f.newest = id
			}
		}
	})
	if err != nil {
		return err
	}
	fresh, missing := f.local.Compare(found, all)
	if err := f.local.Absorb(fresh); err != nil {
		for _, p := range fresh {
			if !p.Sealed.Load() {
				f.local.Gone(p) // the next listing makes a new one of it
			}
		}
		return err
	}
	return f.lookFor(ctx, missing)
}

// idBefore is an ID that is listed before all of a time.
func idBefore(t time.Time) disk.ID {
	id := disk.IDAt(t)
	clear(id[6:])
	return id
}

// lookFor looks at every pack that a listing did not show: listings may be old.
func (f *Fleet) lookFor(ctx context.Context, packs []*pack.Pack) error {
	for _, p := range packs {
		_, err := f.Bucket.Stat(ctx, PackKey(p.ID))
		if errors.Is(err, fs.ErrNotExist) {
			f.local.Gone(p)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Start keeps in touch with the bucket while anything of ours needs it.
func (f *Fleet) Start() {
	for _, round := range []func(){f.keepReading, f.local.KeepUp} { // one does not wait for the other
		f.loop.Go(func() {
			tick := time.NewTicker(f.Grace / 4)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					round()
				case <-f.Ctx.Done():
					return
				}
			}
		})
	}
}

// keepReading is one round for readers: their lease is renewed.
func (f *Fleet) keepReading() {
	f.UndoRecords()
	if err := f.renewLease(); err != nil {
		f.c.Log(fmt.Sprintf("store %s: what is being read here may be removed by other machines: %v", f.Bucket.URL, err))
	}
}

// ErrOutOfTouch is inside what InTouch says.
var ErrOutOfTouch = errors.New("what other machines are about to remove is not known")

// InTouch fails if we may have missed that a pack we refer to is removed.
func (f *Fleet) InTouch() error {
	if d := Since(f.Seen.Load()); d > f.Grace/2 {
		return fmt.Errorf("the bucket %s could not be asked for %s: %w", f.Bucket.URL, d.Round(time.Millisecond), ErrOutOfTouch)
	}
	return nil
}

// Cancel ends all calls to the bucket that are under way, and those to come, with why.
func (f *Fleet) Cancel(why error) { f.cancel(why) }

// Close, after Cancel, ends the loop and takes our lease back.
func (f *Fleet) Close() {
	f.loop.Wait()
	f.UndoRecords()
	if f.leased {
		ctx, cancel := context.WithTimeout(context.Background(), f.Bucket.Attempt)
		defer cancel()
		_ = f.Bucket.Remove(ctx, f.leaseKey()) // GC ignores an old one
	}
}
