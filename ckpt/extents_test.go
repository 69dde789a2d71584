package ckpt

import (
	"bytes"
	"errors"
	"testing"
)

// model is a pageSet as a map, and back.
func model(s pageSet) map[uint64]bool {
	m := map[uint64]bool{}
	for _, e := range s {
		for at := e.Start; at < e.Start+e.Len; at += pageSize {
			m[at] = true
		}
	}
	return m
}

// setOf makes a set of the bits of b.
func setOf(b []byte) (s pageSet) {
	for i := range len(b) * 8 {
		if b[i/8]>>(i%8)&1 != 0 {
			s = s.add(uint64(i)*pageSize, uint64(i+1)*pageSize)
		}
	}
	return s
}

// checkSet compares a set with what should be in it, and its form.
func checkSet(t *testing.T, what string, s pageSet, want func(at uint64) bool, pages int) {
	t.Helper()
	m := model(s)
	for i := range pages {
		if at := uint64(i) * pageSize; m[at] != want(at) {
			t.Fatalf("%s: page %d is %v", what, i, m[at])
		}
	}
	for i := 1; i < len(s); i++ {
		if s[i-1].Start+s[i-1].Len >= s[i].Start {
			t.Fatalf("%s: %v and %v touch", what, s[i-1], s[i])
		}
	}
}

func FuzzPageSet(f *testing.F) {
	f.Add([]byte{0xf0, 0x0f, 1}, []byte{0xff, 0, 3}, uint8(3), uint8(17))
	f.Add([]byte{}, []byte{1}, uint8(0), uint8(8))
	f.Fuzz(func(t *testing.T, a, b []byte, from, to uint8) {
		if len(a) > 64 || len(b) > 64 {
			return
		}
		s, u := setOf(a), setOf(b)
		ms, mu := model(s), model(u)
		pages := 8*max(len(a), len(b)) + 300
		checkSet(t, "union", s.union(u), func(at uint64) bool { return ms[at] || mu[at] }, pages)
		checkSet(t, "without", s.without(u), func(at uint64) bool { return ms[at] && !mu[at] }, pages)
		start, end := uint64(min(from, to))*pageSize, uint64(max(from, to))*pageSize
		inside := func(at uint64) bool { return at >= start && at < end }
		checkSet(t, "within", s.within(start, end), func(at uint64) bool { return ms[at] && inside(at) }, pages)
		all, some := true, false
		for at := start; at < end; at += pageSize {
			all, some = all && ms[at], some || ms[at]
		}
		if start < end && (s.contains(start, end) != all || s.touches(start, end) != some) {
			t.Fatalf("%v of [%#x, %#x): contains %v, touches %v", s, start, end, s.contains(start, end), s.touches(start, end))
		}
		if s.bytes() != uint64(len(ms))*pageSize {
			t.Fatalf("%v: %d bytes", s, s.bytes())
		}
	})
}

// pagesAt is memory whose pages hold their number, and some of which cannot be read.
type pagesAt map[uint64]bool

func (m pagesAt) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		at := (uint64(off) + uint64(i)) &^ (pageSize - 1)
		if m[at] {
			return i, errors.New("unreadable")
		}
		p[i] = byte(at / pageSize)
	}
	return len(p), nil
}

func TestOverlay(t *testing.T) {
	o, err := newOverlay()
	if err != nil {
		t.Fatal(err)
	}
	defer o.free()
	set := setOf([]byte{0b01110110, 0xff})
	unread, err := o.put(pagesAt{5 * pageSize: true}, set)
	if err != nil || len(unread) != 1 || unread[0].Start != 5*pageSize || unread[0].Len != pageSize {
		t.Fatalf("unread: %v, %v", unread, err)
	}
	if unread, err = o.put(pagesAt{9 * pageSize: true}, set.within(8*pageSize, 11*pageSize)); err != nil || len(unread) != 1 {
		t.Fatalf("unread: %v, %v", unread, err)
	}
	for i := range uint64(16) {
		got := o.page(i * pageSize)
		there := i != 0 && i != 3 && i != 5 && i != 7 && i != 9
		if (got != nil) != there || there && !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, int(pageSize))) {
			t.Errorf("page %d: %.8x", i, got)
		}
	}
	big := pageSet{{Start: 1 << 30, Len: overlayMax}}
	if _, err := o.put(pagesAt{}, big); err == nil {
		t.Error("it takes more than fits")
	}
}
