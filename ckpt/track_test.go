package ckpt

import (
	"bytes"
	"os"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/uffd"
	"golang.org/x/sys/unix"
)

// anonymous maps memory for a test, all of it touched.
func anonymous(t *testing.T, pages int) (b []byte, start uint64) {
	t.Helper()
	b, err := unix.Mmap(-1, 0, pages*int(pageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err == nil {
		err = unix.Madvise(b, unix.MADV_NOHUGEPAGE)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) }) // mapped above
	for i := 0; i < len(b); i += int(pageSize) {
		b[i] = 1
	}
	return b, uint64(uintptr(unsafe.Pointer(&b[0])))
}

// ownTracking tracks memory of this process, all of whose pages are written.
func ownTracking(t *testing.T, start, pages uint64) *tracking {
	t.Helper()
	fd, err := uffd.New(unix.O_CLOEXEC | unix.O_NONBLOCK | uffd.UserModeOnly)
	if err != nil {
		t.Fatal(err)
	}
	wp, err := newWriteTracking(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(wp.close)
	if err := wp.register(start, start+pages*pageSize); err != nil {
		t.Fatal(err)
	}
	sc, err := newScanner(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer sc.close()
	st, err := sc.detail(start, start+pages*pageSize)
	if err != nil || st.written.bytes() != pages*pageSize {
		t.Fatalf("%d bytes are written (%v)", st.written.bytes(), err)
	}
	here := pageSet{}.add(start, start+pages*pageSize)
	return &tracking{t: &tracked{wp: wp, owned: here}, old: []window{{start: start}}, covered: here, pages: st.pages, dirty: st.written, uncopied: st.written}
}

// TestCopyAhead copies what is written, and begins anew with all of it after the copies were given up.
func TestCopyAhead(t *testing.T) {
	const pages = 64
	b, start := anonymous(t, pages)
	k := ownTracking(t, start, pages)
	l := &looked{pid: os.Getpid()}
	for range 2 {
		if err := k.copyAhead(t.Context(), l, nil); err != nil {
			t.Fatal(err)
		}
		b[5*int(pageSize)] = 2
		if _, err := k.advance(l.pid, k.covered, false); err != nil {
			t.Fatal(err)
		}
		if !k.uncopied.contains(start+5*pageSize, start+6*pageSize) {
			t.Errorf("what was written since is not due: %v", k.uncopied)
		}
		for at := start; at < start+pages*pageSize; at += pageSize {
			if k.overlay.page(at) == nil && !k.uncopied.touches(at, at+pageSize) {
				t.Fatalf("the page at %#x is written and neither copied nor due", at)
			}
		}
		k.leaveToSnapshot()
	}
}

// TestCopyAheadFails has a look fail halfway, over a mapping that is not tracked: what it has protected again nobody knows, so
// nothing may be taken from the base.
func TestCopyAheadFails(t *testing.T) {
	const pages = 64
	_, start := anonymous(t, pages)
	_, other := anonymous(t, pages)
	k := ownTracking(t, start, pages)
	defer k.leaveToSnapshot()
	k.covered = k.covered.union(pageSet{}.add(other, other+pages*pageSize))
	if err := k.copyAhead(t.Context(), &looked{pid: os.Getpid()}, nil); err == nil {
		t.Fatal("a look at memory that is not tracked succeeds")
	}
	k.forget()
	if k.old != nil || k.covered != nil || k.overlay != nil {
		t.Errorf("it is still known: %+v", k)
	}
}

// TestChangedReader reads what is copied, and of the base what is not written: nothing else.
func TestChangedReader(t *testing.T) {
	o, err := newOverlay()
	if err != nil {
		t.Fatal(err)
	}
	defer o.free()
	if _, err := o.put(pagesAt{}, setOf([]byte{0b0010})); err != nil {
		t.Fatal(err)
	}
	base := bytes.Repeat([]byte("base"), 3*int(pageSize)/4)
	r := &changedReader{o, setOf([]byte{0b0110}), []window{{start: 0, pages: 0b1011}}, bytes.NewReader(base)}
	got := make([]byte, pageSize)
	for page, want := range map[int64]string{0: "base", 1: "\x01\x01", 3: "base"} {
		if _, err := r.ReadAt(got, page*int64(pageSize)); err != nil || !bytes.HasPrefix(got, []byte(want)) {
			t.Errorf("page %d: %.4q, %v", page, got, err)
		}
	}
	for page, why := range map[int64]string{2: "written and not copied", 4: "in no window"} {
		if _, err := r.ReadAt(got, page*int64(pageSize)); err == nil {
			t.Errorf("page %d, which is %s, can be read", page, why)
		}
	}
}
