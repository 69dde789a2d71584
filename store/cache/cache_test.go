package cache

import (
	"context"
	"maps"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// TestCacheShared: who asks for what is being fetched gets the same, and a value that is in
// use stays.
func TestCacheShared(t *testing.T) {
	dropped := map[int]int{}
	c := New(2, func(v int) { dropped[v]++ })
	var wg sync.WaitGroup
	var mu sync.Mutex
	fetches := map[int]int{}
	for k := range 8 {
		wg.Go(func() {
			for i := range 200 {
				v := (i + k) % 4
				e, err := c.Get(&chunk.Hash{byte(v)}, func() (int, error) {
					mu.Lock()
					defer mu.Unlock()
					if fetches[v]++; fetches[v]%5 == 0 {
						return 0, context.Canceled
					}
					return v, nil
				})
				if err != nil {
					continue
				}
				if e.Val != v {
					t.Errorf("%d instead of %d", e.Val, v)
				}
				c.Done(e)
			}
		})
	}
	wg.Wait()
	c.Close()
	good := map[int]int{}
	for v, n := range fetches {
		good[v] = n - n/5
	}
	if !maps.Equal(dropped, good) {
		t.Errorf("fetched %v, dropped %v", good, dropped)
	}
}
