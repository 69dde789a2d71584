package lazy

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// badAt is a reader that fails for what lies behind an offset.
type badAt struct {
	*bytes.Reader
	from int64
}

func (r badAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > r.from {
		return 0, errors.New("the disk is on fire")
	}
	return r.Reader.ReadAt(p, off)
}

func TestFeed(t *testing.T) {
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>9)
	}
	src := badAt{bytes.NewReader(data), 2 << 20}
	var conns []io.ReadWriter
	for range feeds {
		ours, theirs, err := feedPair()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { theirs.Close() })
		go func() {
			defer ours.Close()
			feed(ours, src)
		}()
		conns = append(conns, theirs)
	}
	f := newFed(conns)
	var group sync.WaitGroup
	for seed := range uint64(8) {
		group.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 2))
			for range 200 {
				off := rnd.Int64N(2 << 20)
				p := make([]byte, 1+rnd.IntN(1<<20))
				n, err := f.ReadAt(p, off)
				if off+int64(len(p)) > src.from {
					if err == nil || !strings.Contains(err.Error(), "on fire") {
						t.Errorf("%d bytes at %d: %v", len(p), off, err)
					}
				} else if err != nil || n != len(p) || !bytes.Equal(p, data[off:off+int64(n)]) {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
			}
		})
	}
	group.Wait()
	testBrokenFeed(t)
	for _, c := range conns {
		c.(io.Closer).Close()
	}
	if _, err := f.ReadAt(make([]byte, 10), 0); err == nil {
		t.Error("it reads from nobody")
	}
}

// testBrokenFeed: a feed that has given a wrong answer is not asked again, as what it says next may be about something else.
func testBrokenFeed(t *testing.T) {
	ours, theirs, err := feedPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	for range 2 {
		if _, err := ours.Write([]byte{3, 0, 0, 0, 0, 'a', 'b', 'c'}); err != nil {
			t.Fatal(err)
		}
	}
	f := newFed([]io.ReadWriter{theirs})
	for _, n := range []int{10, 3} {
		if _, err := f.ReadAt(make([]byte, n), 0); !errors.Is(err, errNoFeed) {
			t.Errorf("after an answer of 3 bytes to a question for 10: %v", err)
		}
	}
}
