package store

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptfs/ckptfs/store/ahead"
	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/codec"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/fleet"
	"github.com/ckptfs/ckptfs/store/index"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/record"
	"github.com/ckptfs/ckptfs/store/secret"
)

// Options are the knobs of a store. The zero value is fine.
type Options struct {
	// Window is how many bytes of a running ingest stay in memory, uncompressed, for a
	// reader that follows it closely; 0 means 16 MiB.
	Window int64
	// ReadAhead is how many bytes an image that is read in order is decoded ahead, for each
	// Reader; 0 means 8 MiB, less than 0 that nothing is.
	ReadAhead int64
	// PackSize is where a pack is full, in bytes; 0 means 64 MiB.
	PackSize int64
	// Cache is the folder for what is kept here of a bucket, and CacheSize its limit in bytes,
	// for packs; 0 means 10 GiB. Only one process can use a cache at a time.
	Cache     string
	CacheSize int64
	// Patience is how long a call to a bucket is tried again; 0 means 90 s.
	Patience time.Duration
	// Grace is the time that passes between a GC's wish to remove a pack of a bucket and its
	// removal; 0 means 15 min. All machines that use a bucket must have the same.
	Grace   time.Duration
	attempt time.Duration // how long one try may take
	young   time.Duration // how old a pack must be for GC to look at it; 0 means 4 * Grace
	// Key encrypts what is stored and is needed to open an encrypted store; nil means none.
	Key    *Key
	atOnce bool // what is new is written as Settle would leave it; for tests
	// CheckHashes makes Store compute the hash of every chunk and refuse a wrong one. For tests.
	CheckHashes bool
	// Host names this machine. It stands in the record of every image taken here.
	Host string
	// Log is told what was found and put in order; nil means nobody.
	Log func(string)
}

func (o *Options) defaults() {
	if o.Window <= 0 {
		o.Window = 16 << 20
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = 8 << 20
	}
	if o.PackSize <= 0 {
		o.PackSize = 64 << 20
	}
	if o.CacheSize <= 0 {
		o.CacheSize = 10 << 30
	}
	if o.Patience <= 0 {
		o.Patience = bucket.DefaultPatience
	}
	if o.Grace <= 0 {
		o.Grace = 15 * time.Minute
	}
	if o.attempt <= 0 {
		o.attempt = min(bucket.DefaultAttempt, o.Patience)
	}
	o.PackSize = min(o.PackSize, pack.MaxLen/2)
	o.Host = record.Label(o.Host)
	if o.Log == nil {
		o.Log = func(string) {}
	}
}

// Store is an open store folder. All methods may be called by any number of goroutines.
type Store struct {
	dir      string
	o        Options
	sec      *secret.Secrets // nil: not encrypted
	lock     *os.File
	files    *pack.Files
	sh       *fleet.Fleet // nil in a folder
	ix       *index.Index
	queue    queue
	w        *pack.Writers
	dec      *codec.Decoder
	pools    *ahead.Pools
	enc      encoders
	jobs     sync.Pool
	blocks   sync.Pool
	back     sync.WaitGroup // index flushes in the background
	flushing atomic.Bool
	dead     atomic.Int64 // bytes in packs that the last GC found dead and left

	relearn relearning

	// maint is held by whoever replaces index runs or removes packs.
	maint sync.Mutex

	mu      sync.Mutex
	closed  bool
	images  map[string]*imageRec
	damaged []*RecordError
	packs   map[disk.ID]*pack.Pack // every sealed pack
	writing map[disk.ID]struct{}   // packs of ours that are not sealed, but may be in the bucket already
	doomed  map[disk.ID]bool       // of a bucket, see pack.doomed
	running map[*Ingest]struct{}
	readers map[*Reader]struct{}
	session session
}

// imageRec is a listed image and the file its record is in.
type imageRec struct {
	id  disk.ID
	rec *record.Record
}

// session spans the time in which at least one ingest runs. If none of them commits,
// nobody can refer to the packs written in it.
type session struct {
	packs     []*pack.Pack
	committed bool
}

// Open opens the store in the folder dir and creates it if there is none. Only one
// process at a time can have it open: the second gets a *LockedError. A dir of the form
// s3://BUCKET/PREFIX is a bucket that many machines share, see Options.Cache. A folder that a
// newer ckptfs wrote is refused with a *VersionError, one that holds something else with
// ErrNotStore. What a process that died left unfinished is removed.
func Open(dir string, o Options) (*Store, error) {
	o.defaults()
	s := &Store{dir: dir, o: o, images: map[string]*imageRec{}, packs: map[disk.ID]*pack.Pack{}, writing: map[disk.ID]struct{}{},
		running: map[*Ingest]struct{}{}, readers: map[*Reader]struct{}{}, pools: ahead.NewPools(runtime.GOMAXPROCS(0))}
	s.queue.m = map[chunk.Hash]*job{}
	s.jobs.New = func() any { return new(job) }
	s.blocks.New = func() any { return new(Block) }
	if err := s.open(dir); err != nil {
		if s.sh != nil {
			s.sh.Cancel(ErrClosed)
			s.sh.Close()
		}
		if s.ix != nil {
			s.ix.Close() // read only
		}
		if s.files != nil {
			s.files.Close()
		}
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, atStore(dir, err)
	}
	return s, nil
}

// atStore says which store an error is about, unless it does so itself.
func atStore(dir string, err error) error {
	var locked *LockedError
	var version *VersionError
	var key *KeyError
	if errors.As(err, &locked) || errors.As(err, &version) || errors.As(err, &key) {
		return err
	}
	return fmt.Errorf("store %s: %w", dir, err)
}

// fast reports whether what is new is stored with a fast codec at first. In a bucket the network is the
// limit, and rewriting costs requests.
func (s *Store) fast() bool { return s.sh == nil && !s.o.atOnce }

// openFolder claims a store folder, or makes one.
func (s *Store) openFolder() (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	_ = disk.SyncDir(filepath.Dir(filepath.Clean(s.dir))) // we may not be allowed to read it
	if s.lock, err = layout.Lock(s.dir); err != nil {
		return err
	}
	return layout.Check(s.dir, s.sec)
}

func (s *Store) open(location string) (err error) {
	s.sec = secret.New(s.o.Key)
	if IsBucket(location) {
		err = s.openShared(location)
	} else {
		err = s.openFolder()
	}
	if err != nil {
		return err
	}
	s.ix = index.New(filepath.Join(s.dir, layout.Index))
	if err := layout.MakeDirs(s.dir); err != nil {
		return err
	}
	for _, n := range []string{layout.Packs, layout.Index, layout.Images} {
		n, err := disk.RemoveTemps(filepath.Join(s.dir, n))
		if err != nil {
			return err
		}
		if n > 0 {
			s.o.Log(fmt.Sprintf("store %s: removed %d unfinished files", s.dir, n))
		}
	}
	if s.dec, err = codec.NewDecoder(s.sec); err != nil {
		return err
	}
	s.files = pack.NewFiles(filepath.Join(s.dir, layout.Packs))
	if s.sh != nil {
		s.files.UseCache(s.o.CacheSize, s.sh.GetPack, func() { s.sh.Holes.Store(true) })
	}
	kind := byte(0)
	if s.fast() {
		kind = disk.Fast
	}
	s.w = s.packWriters((*ingestSink)(s), kind)
	if err := s.loadImages(); err != nil {
		return err
	}
	if err := s.loadIndex(); err != nil {
		return err
	}
	s.loadBad()
	if s.sh != nil {
		s.sh.Start()
	}
	s.enc.start(s)
	s.keepReserve()
	return nil
}

// loadImages reads every record. A damaged one does not keep the others from being used.
func (s *Store) loadImages() error {
	if s.sh != nil {
		return s.sh.RefreshImages(s.sh.Ctx, fleet.Now())
	}
	dir := filepath.Join(s.dir, layout.Images)
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		id, ok := disk.ParseID(e.Name(), disk.ImgExt)
		if !ok {
			s.o.Log(fmt.Sprintf("store %s: %s/%s is not ours; left alone", s.dir, layout.Images, e.Name()))
			continue
		}
		path := filepath.Join(dir, e.Name())
		rec, err := s.readRecord(id)
		if err == nil && s.images[rec.Name] != nil {
			err = fmt.Errorf("another record has the same name, %q", rec.Name)
		}
		if err != nil {
			re := &RecordError{Path: path, Err: err}
			s.damaged = append(s.damaged, re)
			s.o.Log(re.Error())
			continue
		}
		s.images[rec.Name] = &imageRec{id: id, rec: rec}
	}
	return nil
}

func (s *Store) readRecord(id disk.ID) (*record.Record, error) {
	if s.sh != nil {
		return s.sh.ReadRecord(s.sh.Ctx, id)
	}
	path := s.recordPath(id)
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > record.MaxLen {
		return nil, fmt.Errorf("%w: %d bytes", record.ErrRecord, st.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return record.Parse(s.sec, id, b)
}

func (s *Store) recordPath(id disk.ID) string {
	if s.sh != nil {
		return s.sh.Bucket.URL + "/" + fleet.RecordKey(id)
	}
	return filepath.Join(s.dir, layout.Images, id.String()+disk.ImgExt)
}

func (s *Store) writeRecord(id disk.ID, rec *record.Record) error {
	b, err := record.File(s.sec, id, rec)
	if err != nil {
		return err
	}
	return disk.WriteFile(s.recordPath(id), b)
}

// Close ends running ingests with ErrClosed, writes the index and gives the lock back.
// Images stay as they are.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var live []*Ingest
	for in := range s.running {
		live = append(live, in)
	}
	readers := slices.Collect(maps.Keys(s.readers))
	s.mu.Unlock()
	for _, r := range readers {
		r.ahead.Close()
	}
	for _, in := range live {
		in.fail(ErrClosed)
	}
	if s.sh != nil {
		s.sh.Cancel(ErrClosed) // a Commit that waits for the bucket must not make us wait
	}
	for _, in := range live {
		in.quiesce()
	}
	if s.sh != nil {
		s.sh.Close() // what is still being sent belongs to no image
	}
	for _, in := range live {
		in.Abort()
	}
	s.enc.stop()
	s.w.Flush()
	s.back.Wait()
	s.maint.Lock()
	defer s.maint.Unlock()
	err := s.flushIndex(false)
	s.saveBad()
	err = errors.Join(err, s.ix.Close())
	s.files.Close()
	if s.sh != nil {
		s.files.Cache.Close()
	}
	s.dec.Close()
	return errors.Join(err, s.lock.Close())
}
