package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/record"
)

// aged puts an image into the store as if it were so old.
func aged(t *testing.T, s *Store, name, series string, age time.Duration, chunks [][]byte, change func(*record.Record)) {
	t.Helper()
	in, err := s.Begin(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	in.SetSeries(series)
	in.created = pruneNow.Add(-age)
	for _, c := range chunks {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		change(s.images[name].rec)
	}
}

// pruneNow is when the tests prune.
var pruneNow = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func names(s *Store) (list []string) {
	all, err := s.List()
	if err != nil {
		return []string{err.Error()}
	}
	for _, im := range all {
		list = append(list, im.Name)
	}
	slices.Sort(list)
	return list
}

// TestPruneAge has the rules as a table. An image is written NAME/SERIES/AGE in hours, with
// k for one that was renamed and h for one of another host behind it.
func TestPruneAge(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name   string
		images string
		p      Policy
		gone   string
		why    string // of the first that is gone
	}{
		{"no rule", "a/x/1 b/x/2 c/x/9999", Policy{}, "", ""},
		{"expire alone is no rule", "a/x/1 b/x/2 c/x/9999", Policy{Expire: time.Hour}, "", ""},
		{"last", "a/x/1 b/x/2 c/x/3 d/y/9 e/y/10", Policy{KeepLast: 2}, "c", "not among the newest 2 of x"},
		{"last, in another order", "c/x/3 e/y/10 b/x/2 d/y/9 a/x/1", Policy{KeepLast: 1}, "b c e", "not among the newest 1 of x"},
		{"within", "a/x/1 b/x/23 c/x/24 d/y/25", Policy{KeepWithin: day}, "c d", "older than 24h"},
		{"both, an image that one of them keeps stays", "a/x/1 b/x/2 c/x/30 d/x/31 e/y/40", Policy{KeepLast: 3, KeepWithin: day}, "d",
			"not among the newest 3 of x, older than 24h"},
		{"renamed ones stay and do not count", "a/x/1/k b/x/2 c/x/3/k d/x/4", Policy{KeepLast: 1}, "d", "not among the newest 1 of x"},
		{"other hosts", "a/x/1 b/x/2/h c/x/3 d/x/4/h", Policy{KeepLast: 1}, "c", "not among the newest 1 of x"},
		{"all hosts", "a/x/1 b/x/2/h c/x/3 d/x/4/h", Policy{KeepLast: 1, AllHosts: true}, "c d", "not among the newest 1 of x"},
		{"no series", "a//1 b//2 c//3", Policy{KeepLast: 1}, "", ""},
		{"a series that is over", "a/x/720 b/x/800 c/y/719 d/y/2000", Policy{KeepLast: 10, Expire: 30 * day}, "a b", "nothing new of x for 720h"},
		{"its renamed images show that a series goes on", "a/x/1/k b/x/800", Policy{KeepLast: 1, Expire: 30 * day}, "", ""},
		{"no series and over", "a//1 b//800", Policy{KeepLast: 1, Expire: 30 * day}, "b", "nothing new of b for 720h"},
		{"from the future", "a/x/-5 b/x/1", Policy{KeepWithin: time.Hour}, "b", "older than 1h"},
		{"minutes", "a/x/2", Policy{KeepWithin: 90 * time.Minute}, "a", "older than 1h30m"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, t.TempDir(), Options{Host: "here"})
			for spec := range strings.FieldsSeq(tc.images) {
				f := strings.Split(spec+"/", "/")
				var age int
				if _, err := fmt.Sscan(f[2], &age); err != nil {
					t.Fatal(err)
				}
				aged(t, s, f[0], f[1], time.Duration(age)*time.Hour, nil, func(r *record.Record) {
					r.Kept = f[3] == "k"
					if f[3] == "h" {
						r.Host = "there"
					}
				})
			}
			before := names(s)
			rep, err := s.prune(t.Context(), tc.p, pruneNow)
			if err != nil {
				t.Fatal(err)
			}
			var gone []string
			for _, r := range rep.Removed {
				gone = append(gone, r.Name)
			}
			slices.Sort(gone)
			if got := strings.Join(gone, " "); got != tc.gone {
				t.Errorf("gone: %q, want %q", got, tc.gone)
			}
			if len(rep.Removed) > 0 && rep.Removed[0].Why != tc.why {
				t.Errorf("why: %q, want %q", rep.Removed[0].Why, tc.why)
			}
			if want := len(before) - len(gone); len(names(s)) != want {
				t.Errorf("%q are left, want %d", names(s), want)
			}
		})
	}
}

// noise returns chunks that do not compress, 64 KiB each.
func noise(seed uint64, n int) [][]byte {
	rnd := rand.New(rand.NewPCG(seed, 5))
	list := make([][]byte, n)
	for i := range list {
		list[i] = make([]byte, 64<<10)
		fillRandom(rnd, list[i])
	}
	return list
}

// TestPruneSize bounds the store. a is the oldest; each image has 1 MiB of its own and
// another that all share, which goes with none but the last.
func TestPruneSize(t *testing.T) {
	shared := noise(100, 16)
	for _, tc := range []struct {
		name string
		kept string
		max  int64 // KiB
		left string
		over bool
	}{
		{"it fits", "", 6000, "a b c d", false},
		{"one too many", "", 4300, "b c d", false},
		{"two too many", "", 3300, "c d", false},
		{"the newest stays", "", 10, "d", true},
		{"renamed ones stay", "ab", 4300, "a b d", false},
		{"renamed ones are too large", "ab", 2000, "a b d", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
			for i, name := range []string{"a", "b", "c", "d"} {
				chunks := slices.Concat(noise(uint64(i), 16), shared)
				aged(t, s, name, "x", time.Duration(10-i)*time.Hour, chunks, func(r *record.Record) { r.Kept = strings.Contains(tc.kept, name) })
			}
			rep, err := s.Prune(t.Context(), Policy{MaxSize: tc.max << 10})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(names(s), " "); got != tc.left || (rep.Over > 0) != tc.over {
				t.Errorf("left: %q, want %q; %d bytes too many", got, tc.left, rep.Over)
			}
			for _, r := range rep.Removed {
				if !strings.Contains(r.Why, fmt.Sprintf("more than %d bytes", tc.max<<10)) {
					t.Errorf("%s: %s", r.Name, r.Why)
				}
			}
			gc(t, s)
			if n := packBytes(t, s); !tc.over && n > tc.max<<10*4/3 {
				t.Errorf("%d bytes are left in packs", n)
			}
			if rep, err = s.Prune(t.Context(), Policy{MaxSize: tc.max << 10}); err != nil || len(rep.Removed) > 0 {
				t.Errorf("once more: %v, %v", rep.Removed, err)
			}
			wantClean(t, s)
		})
	}
}

// TestPruneSizeOldestIsWhole: the first image brought nearly everything into the store, but
// the others need it; it goes, and so must others until something is really freed.
func TestPruneSizeOldestIsWhole(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	all := noise(1, 64)
	for i := range 4 { // each shares all but i MiB of the first
		chunks := slices.Concat(all[16*i:], noise(uint64(10+i), 2))
		aged(t, s, string(rune('a'+i)), "x", time.Duration(10-i)*time.Hour, chunks, nil)
	}
	if _, err := s.Prune(t.Context(), Policy{MaxSize: 2400 << 10}); err != nil {
		t.Fatal(err)
	}
	if got := names(s); !slices.Equal(got, []string{"c", "d"}) {
		t.Errorf("left: %q", got)
	}
	gc(t, s)
	if n := packBytes(t, s); n > 2400<<10*4/3 { // see Policy.MaxSize
		t.Errorf("%d bytes are left", n)
	}
	wantImage(t, s, "c", slices.Concat(all[32:], noise(12, 2)))
}

// TestPruneWhileUsed removes an image that is read, and spares one whose reader is coming.
func TestPruneWhileUsed(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 20})
	for i, name := range []string{"read", "coming", "new"} {
		aged(t, s, name, "x", time.Duration(10-i)*time.Hour, testImage(uint64(i), 30), nil)
	}
	r, err := s.OpenImage("read")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := Policy{KeepLast: 1, Spare: func(name string) bool { return name == "coming" }}
	if _, err := s.Prune(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if got := names(s); !slices.Equal(got, []string{"coming", "new"}) {
		t.Errorf("left: %q", got)
	}
	gc(t, s)
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(got, bytes.Join(testImage(0, 30), nil)) {
		t.Errorf("the open reader lost its image: %v", err)
	}
	wantImage(t, s, "coming", testImage(1, 30))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Prune(ctx, Policy{KeepLast: 1}); !errors.Is(err, context.Canceled) || len(names(s)) != 2 {
		t.Errorf("cancelled: %v, left %q", err, names(s))
	}
}

// TestKept renames an image: from then on no rule touches it, also after the store was
// closed, and its record still says who took it.
func TestKept(t *testing.T) {
	s := open(t, t.TempDir(), Options{Host: "here\xff"})
	for i, name := range []string{"a", "b", "c"} {
		aged(t, s, name, "x\xff", time.Duration(10-i)*time.Hour, noise(uint64(i), 4), nil)
	}
	if err := s.Rename("a", "mine"); err != nil {
		t.Fatal(err)
	}
	if err := s.Rename("b", "x\xff"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a name that is no UTF-8: %v", err)
	}
	s.Close()
	s = open(t, s.dir, Options{Host: "here\xff"})
	if _, err := s.Prune(t.Context(), Policy{KeepLast: 1, KeepWithin: time.Second, MaxSize: 1}); err != nil {
		t.Fatal(err)
	}
	if got := names(s); !slices.Equal(got, []string{"c", "mine"}) {
		t.Errorf("left: %q", got)
	}
	im, err := s.Get("mine")
	if err != nil || !im.Kept || im.Host != "here?" || im.Series != "x?" || im.Unique < 4*64<<10 || im.Ratio() <= 0 {
		t.Errorf("%+v, %v", im, err)
	}
	if st, err := s.Stats(); err != nil || st.Kept != 1 || st.Unique <= im.Unique {
		t.Errorf("%+v, %v", st, err)
	}
	gc(t, s)
	wantImage(t, s, "mine", noise(0, 4))
}

// TestPruneCron takes an image a minute, each of a process of its own or all
// of one: the store does not grow for ever.
func TestPruneCron(t *testing.T) {
	for _, tc := range []struct {
		name string
		pid  func(i int) int
		most int
	}{
		{"one process", func(int) int { return 1 }, 20},
		{"another process each time", func(i int) int { return i }, 40},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, t.TempDir(), Options{})
			p := Policy{KeepLast: 10, Expire: 40 * time.Minute, KeepWithin: 20 * time.Minute}
			for i := range 90 {
				age := time.Duration(90-i) * time.Minute
				aged(t, s, fmt.Sprint(i), fmt.Sprint("x-", tc.pid(i)), age, nil, nil)
				if _, err := s.prune(t.Context(), p, pruneNow.Add(-age)); err != nil {
					t.Fatal(err)
				}
				if n := len(names(s)); n > tc.most {
					t.Fatalf("after %d minutes %d images", i, n)
				}
			}
			if n := len(names(s)); n != tc.most {
				t.Errorf("%d images are left, want %d", n, tc.most)
			}
		})
	}
}

// TestGCLeavesTinyChunks: the footer is no garbage, however large a part of a pack it is.
func TestGCLeavesTinyChunks(t *testing.T) {
	s := open(t, t.TempDir(), Options{PackSize: 1 << 16})
	var chunks [][]byte
	for i := range 4000 {
		chunks = append(chunks, fmt.Appendf(nil, "chunk %d", i))
	}
	ingest(t, s, "a", chunks)
	if r := gc(t, s); r.Packs != 0 || r.Live == 0 {
		t.Errorf("nothing was dead: %+v", r)
	}
	wantImage(t, s, "a", chunks)
}
