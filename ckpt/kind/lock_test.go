package kind

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

const toEnd = 1<<63 - 1

// TestLockRecords: what a description and this process hold is found and recorded, once.
func TestLockRecords(t *testing.T) {
	fd := open(t, file(t, filepath.Join(t.TempDir(), "f"), "x"), unix.O_RDWR)
	must(t, unix.Flock(fd, unix.LOCK_EX))
	must(t, unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 5, Len: 10}))
	must(t, unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 100}))
	must(t, unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 40, Len: 1}))
	s := newStage(t)
	f := s.add(fd)[0]
	f.AddLocks(int32(os.Getpid()), &f.Info) // as of a second descriptor
	if all := s.check(); len(all) > 0 {
		t.Errorf("refused: %v", all)
	}
	asked := map[int32]bool{}
	got := f.Records(func(_ *Found, by, holder int32) int32 {
		asked[holder] = true
		return by
	})
	pid := int32(os.Getpid())
	want := []image.Lock{
		{Type: image.LockFlock, Write: true, End: toEnd, PID: pid},
		{Type: image.LockPOSIX, Write: true, Start: 5, End: 14, PID: pid},
		{Type: image.LockPOSIX, Start: 100, End: toEnd, PID: pid},
		{Type: image.LockOFD, Start: 40, End: 40, PID: -1},
	}
	if !reflect.DeepEqual(got, want) || !asked[pid] || !asked[0] {
		t.Errorf("records %+v, holders %v", got, asked)
	}
	// The same lines in another process: only the lock of F_SETLK can be another one.
	f.AddLocks(pid+1, &f.Info)
	if len(f.Locks) != len(want)+2 {
		t.Errorf("%d locks of two processes", len(f.Locks))
	}
}

// TestHeldRefused: what cannot be taken again is refused.
func TestHeldRefused(t *testing.T) {
	lease := func(t *testing.T, fd, how int) {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, how)
		must(t, err)
		t.Cleanup(func() { unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK) })
	}
	for _, c := range []struct {
		name string
		make func(t *testing.T, path string) int
		more func(s *stage, f *Found)
		want string
	}{
		{"lease", func(t *testing.T, path string) int {
			fd := open(t, path, unix.O_RDWR)
			lease(t, fd, unix.F_WRLCK)
			return fd
		}, nil, ""},
		{"two numbers", func(t *testing.T, path string) int {
			fd := open(t, path, unix.O_RDWR)
			lease(t, fd, unix.F_WRLCK)
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETSIG, int(unix.SIGUSR2))
			must(t, err)
			return fd
		}, func(s *stage, f *Found) { f.Slots = append(f.Slots, Slot{f.Slots[0].PID, 999}) }, "open under 2 numbers"},
		{"mapped", func(t *testing.T, path string) int {
			fd := open(t, path, unix.O_RDWR)
			lease(t, fd, unix.F_WRLCK)
			return fd
		}, func(s *stage, f *Found) { s.scene.Maps = func(_, ino uint64) bool { return ino == f.Stat.Ino } }, "also mapped"},
		{"mapped, for reading", func(t *testing.T, path string) int {
			fd := open(t, path, unix.O_RDONLY)
			lease(t, fd, unix.F_RDLCK)
			return fd
		}, func(s *stage, f *Found) { s.scene.Maps = func(_, ino uint64) bool { return true } }, ""},
		{"deleted", func(t *testing.T, path string) int {
			fd := open(t, path, unix.O_RDWR)
			lease(t, fd, unix.F_WRLCK)
			must(t, os.Remove(path))
			return fd
		}, nil, "a file that has no name"},
		{"memfd", func(t *testing.T, path string) int {
			fd, err := unix.MemfdCreate("m", 0)
			must(t, err)
			t.Cleanup(func() { unix.Close(fd) })
			lease(t, fd, unix.F_RDLCK)
			return fd
		}, nil, "a file that has no name"},
		{"unknown", func(t *testing.T, path string) int { return open(t, path, unix.O_RDONLY) }, func(s *stage, f *Found) {
			f.AddLocks(1, &procfs.FDInfo{Locks: []string{"lock:\t1: NEWLOCK"}})
		}, "does not know"},
		{"directory", func(t *testing.T, path string) int {
			fd := open(t, filepath.Dir(path), unix.O_RDONLY)
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETOWN, os.Getpid())
			must(t, err)
			return fd
		}, nil, "F_NOTIFY"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t)
			fd := c.make(t, file(t, filepath.Join(t.TempDir(), "f"), "x"))
			f := s.add(fd)[0]
			if c.more != nil {
				c.more(s, f)
			}
			held, _ := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
			all := s.check()
			if len(all) == 1 && all[0].Severity == image.Lose {
				all[0].Severity = image.Refuse // for refused
			}
			if c.want != "" {
				refused(t, all, c.want)
			} else if len(all) > 0 {
				t.Errorf("refused: %v", all)
			}
			if now, _ := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0); now != held {
				t.Errorf("the check has changed the lease from %d to %d", held, now)
			}
		})
	}
}

// TestLockedPipe: a pipe whose other end is elsewhere may come back as something else.
func TestLockedPipe(t *testing.T) {
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	must(t, unix.Flock(p[1], unix.LOCK_EX))
	s := newStage(t)
	s.add(p[1])
	if all := s.check(); len(all) > 0 {
		t.Errorf("refused: %v", all)
	}
	s.outside[unix.O_RDONLY] = 4711
	all := s.check()
	for i, f := range all {
		if f.Severity == image.Refuse {
			refused(t, all[i:i+1], "it holds a lock, and pid 4711 outside the tree has it open too")
			return
		}
	}
	t.Errorf("not refused: %v", all)
}
