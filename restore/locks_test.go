package restore

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
	"golang.org/x/sys/unix"
)

// TestLockers: a lock needs a living process that has the file open.
func TestLockers(t *testing.T) {
	for pid, ok := range map[int32]bool{1000: true, 1001: true, 1002: false, 1003: false, 7: false} {
		m := imagetest.Manifest()
		m.Files[0].Locks = []image.Lock{{Type: image.LockPOSIX, End: 1, PID: pid}}
		err := (&job{m: m}).checkLockers()
		var wrong *ImageError
		if ok != (err == nil) || err != nil && (!errors.As(err, &wrong) || wrong.PID != int(pid)) {
			t.Errorf("pid %d: %v", pid, err)
		}
	}
	m := imagetest.Manifest()
	m.FDTables = append(m.FDTables, image.FDTable{})
	m.Tasks[1].Threads[0].FDTable = 2
	m.Files[0].Locks = []image.Lock{{Type: image.LockFlock, End: 1<<63 - 1, PID: 1001}}
	if err := (&job{m: m}).checkLockers(); err == nil {
		t.Error("a process has a lock of a file that it does not have")
	}
}

// TestLockedBy: what our own description holds is in nobody's way, here.
func TestLockedBy(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	for _, l := range []image.Lock{
		{Type: image.LockFlock, Write: true, End: 1<<63 - 1}, {Type: image.LockOFD, Write: true, Start: 3, End: 9},
		{Type: image.LockPOSIX, End: 1<<63 - 1}, {Type: image.LockLease, Write: true, End: 1<<63 - 1},
	} {
		if who, err := lockedBy(fd, &l, findLockers); err != nil || who != "" {
			t.Errorf("%s: %q, %v", lockText(&l), who, err)
		}
	}
	other, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 9, Len: 1}); err != nil {
		t.Fatal(err)
	}
	if who, err := lockedBy(fd, &image.Lock{Type: image.LockOFD, Write: true, Start: 3, End: 9}, findLockers); err != nil || !strings.Contains(who, "another process") {
		t.Errorf("%q, %v", who, err)
	}
	if who, err := lockedBy(fd, &image.Lock{Type: image.LockOFD, Write: true, Start: 3, End: 8}, findLockers); err != nil || who != "" {
		t.Errorf("%q, %v", who, err)
	}
}

// TestFlockBytes compares struct flock with what package unix makes of it.
func TestFlockBytes(t *testing.T) {
	for _, l := range []image.Lock{{Write: true, Start: 5, End: 5}, {Start: 7, End: 1<<63 - 1}, {Write: true, End: 1<<63 - 2}} {
		f, err := os.CreateTemp(t.TempDir(), "f")
		if err != nil {
			t.Fatal(err)
		}
		l.Type = image.LockOFD
		want := unix.Flock_t{Type: int16(lockMode(&l)), Start: l.Start, Len: lockLen(&l)}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &want); err != nil {
			t.Fatalf("%+v: %v", l, err)
		}
		held := heldLocks(os.Getpid(), strconv.Itoa(int(f.Fd())))
		if len(held) != 1 || !sameLock(&l, &held[0]) {
			t.Errorf("%+v came out as %+v", l, held)
		}
		if b := flockBytes(&l); le.Uint16(b) != uint16(want.Type) || le.Uint64(b[8:]) != uint64(want.Start) || le.Uint64(b[16:]) != uint64(want.Len) {
			t.Errorf("%+v is % x", l, b)
		}
		f.Close()
	}
}
