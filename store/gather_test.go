package store

import (
	"bytes"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// TestGather reads an image in parts that stay what they are when more is read and the image
// is closed, and looks whether what was read ahead was indeed not copied.
func TestGather(t *testing.T) {
	s := open(t, t.TempDir(), Options{ReadAhead: 2 << 20})
	chunks := append(testImage(5, 300), make([]byte, chunk.MaxLen), []byte("end"))
	want := bytes.Join(chunks, nil)
	ingest(t, s, "x", chunks)
	r, err := s.OpenImage("x")
	if err != nil {
		t.Fatal(err)
	}
	const step = 100_000
	var all []*Gathered
	own := 0
	for off := 0; off < len(want); off += step {
		room := make([]byte, min(step, len(want)-off))
		g := new(Gathered)
		for _, busy := r.ahead.Held(); busy > 0; _, busy = r.ahead.Held() {
			time.Sleep(50 * time.Microsecond) // what is on its way arrives
		}
		if n, err := r.Gather(g, room, int64(off)); n != len(room) || err != nil {
			t.Fatalf("Gather(%d, %d) = %d, %v", len(room), off, n, err)
		}
		if g.Held() == 0 && len(g.Slices) > 0 && &g.Slices[0][0] != &chunk.Zeros[0] {
			own++
		}
		all = append(all, g)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	ingest(t, s, "y", testImage(6, 300)) // which takes buffers that are free
	var got []byte
	for _, g := range all {
		for _, p := range g.Slices {
			got = append(got, p...)
		}
		g.Release()
		if len(g.Slices)+g.Held() > 0 {
			t.Error("something is left after Release")
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the parts are not the image")
	}
	if own > len(all)/4 {
		t.Errorf("%d of %d reads were copied", own, len(all))
	}
	var g Gathered
	if n, err := r.Gather(&g, make([]byte, 10), 0); n != 0 || err == nil {
		t.Errorf("after Close: %d, %v", n, err)
	}
}
