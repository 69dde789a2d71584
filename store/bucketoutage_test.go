package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/s3test"
)

// impatient are options under which an outage is soon an error. No time that the protocol
// needs ends meanwhile.
func impatient(cache string) Options {
	return Options{Cache: cache, Patience: 300 * time.Millisecond, attempt: 10 * time.Second, Grace: 10 * time.Minute, PackSize: 1 << 20}
}

// TestBucketOutage: without the server every call fails with a reason, and works again when
// the server is back.
func TestBucketOutage(t *testing.T) {
	loc, proxy := inBucket(t)
	chunks, more := testImage(1, 60), randomChunks(9, 3<<20)
	ingest(t, open(t, loc, impatient(t.TempDir())), "base", chunks)
	s := open(t, loc, impatient(t.TempDir())) // nothing of it is in this cache
	r, err := s.OpenImage("base")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in, err := s.Begin(context.Background(), "new")
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	p := make([]byte, 1000)
	calls := []struct {
		name string
		call func() error
	}{
		{"Begin", func() error { // what is known is older than packsFresh
			s.sh.Seen.Store(0)
			other, err := s.Begin(ctx, "other")
			if err == nil {
				err = other.Abort()
			}
			return err
		}},
		{"List", func() error { _, err := s.List(); return err }},
		{"Get", func() error { _, err := s.Get("unknown"); return err }},
		{"ReadAt", func() error { _, err := r.ReadAt(p, r.Size()-1000); return err }},
		{"GC", func() error { _, err := s.GC(ctx); return err }},
		{"Verify", func() error { return s.Verify(ctx, true, func(f string) { t.Errorf("called a fault: %s", f) }) }},
		{"Rename", func() error { return s.Rename("base", "was-base") }},
		{"Remove", func() error { return s.Remove("base") }},
		{"Open", func() error {
			o, err := Open(loc, impatient(t.TempDir()))
			if err == nil {
				err = o.Close()
			}
			return err
		}},
		{"Put and Commit", func() (err error) {
			for _, c := range more {
				if err = in.Put(chunk.Sum(c), c); err != nil {
					break
				}
			}
			if err == nil {
				err = in.Commit()
			}
			in.Abort()
			return err
		}},
	}
	time.Sleep(imagesFresh) // so that List asks
	proxy.Outage(true)
	for _, c := range calls {
		err := c.call()
		wantBucketError(t, err)
		if errors.Is(err, ErrDamaged) {
			t.Errorf("%s calls it damage: %v", c.name, err)
		}
		t.Logf("%s: %v", c.name, err)
	}
	proxy.Outage(false)
	wantImage(t, s, "base", chunks)
	if _, err := r.ReadAt(p, r.Size()-1000); err != nil {
		t.Error(err)
	}
	ingest(t, s, "new", more)
	gc(t, s)
	wantClean(t, s)
	other := open(t, loc, impatient(t.TempDir()))
	if list, err := other.List(); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	wantImage(t, other, "new", more)
}

// TestBucketCloseInOutage: Close comes back, whatever hangs, and leaves nothing that a later
// Open would not understand.
func TestBucketCloseInOutage(t *testing.T) {
	loc, proxy := inBucket(t)
	chunks := testImage(1, 60)
	for _, hole := range []bool{false, true} {
		o := impatient(t.TempDir())
		o.Patience, o.attempt = time.Hour, time.Second // only Close itself can end what hangs
		s := open(t, loc, o)
		name := fmt.Sprint("before ", hole)
		ingest(t, s, name, chunks)
		r, err := s.OpenImage(name)
		if err != nil {
			t.Fatal(err)
		}
		in, err := s.Begin(context.Background(), "never")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range randomChunks(3, 3<<20) {
			if err := in.Put(chunk.Sum(c), c); err != nil {
				t.Fatal(err)
			}
		}
		if hole {
			proxy.Add(s3test.Rule{Faults: []s3test.Fault{s3test.BlackHole()}})
		} else {
			proxy.Outage(true)
		}
		committed := make(chan error, 1)
		go func() { committed <- in.Commit() }()
		time.Sleep(200 * time.Millisecond) // most likely it hangs by now; any moment must do
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Errorf("close: %v", err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("Close does not come back")
		}
		if err := <-committed; err == nil {
			t.Error("an image was committed without a server")
		}
		r.Close()
		proxy.Outage(false)
		proxy.Heal()
		s = open(t, loc, o)
		wantImage(t, s, name, chunks)
		wantClean(t, s)
		if _, err := s.Get("never"); err == nil {
			t.Error("what was not committed is listed")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestBucketBadDay mixes all faults, each rare, while images come, go and are read. Its seed
// is printed.
func TestBucketBadDay(t *testing.T) {
	loc, proxy := inBucket(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	o := patient(t.TempDir())
	stores := []*Store{open(t, loc, o)}
	o.Cache = t.TempDir()
	stores = append(stores, open(t, loc, o))
	var rules []*s3test.Active
	for i, f := range []s3test.Fault{s3test.Answer(500, "InternalError"), s3test.Answer(503, "SlowDown"), s3test.CutRequest(100), s3test.CutResponse(100),
		s3test.LoseAnswer(), s3test.Delay(300 * time.Millisecond), s3test.FlipRequest(70), s3test.StallResponse(50), s3test.BlackHole()} {
		rules = append(rules, proxy.Add(s3test.Rule{Prob: 0.02, Seed: seed + uint64(i), Faults: []s3test.Fault{f}}))
	}
	rules = append(rules, proxy.Add(s3test.Rule{Kinds: []s3test.Kind{s3test.Get, s3test.RangeGet}, Prob: 0.02, Seed: seed, Faults: []s3test.Fault{s3test.FlipResponse(70)}}))
	var wg sync.WaitGroup
	for i, s := range stores {
		for j := range 2 {
			wg.Go(func() { badDay(t, s, rand.New(rand.NewPCG(seed, uint64(10*i+j))), fmt.Sprintf("%d-%d", i, j)) })
		}
	}
	wg.Wait()
	hits := 0
	for _, r := range rules {
		hits += r.Hits()
	}
	t.Logf("%d faults in %v", hits, proxy.Counts().Requests)
	if hits == 0 {
		t.Error("it was a good day")
	}
	proxy.Heal()
	fresh := open(t, loc, patient(t.TempDir()))
	list, err := fresh.List()
	if err != nil || len(list) != 16 {
		t.Errorf("%v, %v", list, err)
	}
	for _, im := range list {
		if err := compareMachineImage(fresh, im.Name); err != nil {
			t.Error(err)
		}
	}
	wantClean(t, fresh)
}

// badDay makes six images, removes every third and reads the others.
func badDay(t *testing.T, s *Store, rnd *rand.Rand, who string) {
	for i := range 6 {
		a, b := rnd.Uint64N(8), rnd.Uint64N(8)
		name := fmt.Sprintf("%d.%d-%s-%d", a, b, who, i)
		in, err := s.Begin(context.Background(), name)
		if err != nil {
			t.Error(err)
			return
		}
		for _, c := range machineImage(a, b) {
			if err := in.Put(chunk.Sum(c), c); err != nil {
				t.Error(err)
			}
		}
		if err = in.Commit(); err == nil {
			err = compareMachineImage(s, name)
		}
		if err == nil && i%3 == 1 {
			_, err = s.GC(context.Background())
		}
		if err == nil && i%3 == 2 {
			err = s.Remove(name)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
