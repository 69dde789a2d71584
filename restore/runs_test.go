package restore

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// TestAtOnce wants each file once, and the error of the first one that has one.
func TestAtOnce(t *testing.T) {
	j := newJob(&image.Reader{Manifest: &image.Manifest{}}, Options{})
	u := &fileUser{creds: &image.Creds{Eff: ^uint64(0)}}
	for _, n := range []int{0, 1, 31, 500} {
		calls := make([]atomic.Int32, n)
		if err := j.atOnce(u, n, func(i int) error { calls[i].Add(1); return nil }); err != nil {
			t.Fatal(err)
		}
		for i := range calls {
			if c := calls[i].Load(); c != 1 {
				t.Fatalf("%d of %d was called %d times", i, n, c)
			}
		}
	}
	for range 20 {
		err := j.atOnce(u, 400, func(i int) error {
			if i%100 == 77 {
				return fmt.Errorf("file %d", i)
			}
			return nil
		})
		if err == nil || err.Error() != "file 77" {
			t.Fatalf("the error is %v", err)
		}
	}
	if err := j.atOnce(u, 1, func(int) error { return errors.New("x") }); err == nil {
		t.Error("an error is lost")
	}
}
