package ckpt

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

// TestCollectFilesFindsSharedDescriptions looks at this process: a file, a dup of it, the
// same file opened twice, and many eventfds, which all have one inode number.
func TestCollectFilesFindsSharedDescriptions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	open := func() int {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	a, b := open(), open()
	dup, err := unix.FcntlInt(uintptr(a), unix.F_DUPFD_CLOEXEC, 500)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(dup) })
	var events []int
	for range 40 {
		fd, err := unix.Eventfd(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		events = append(events, fd)
	}
	set, err := collectFiles(&tables{ids: []int{os.Getpid()}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer set.close()
	ref := map[int32]uint32{}
	cloexec := map[int32]bool{}
	for _, fd := range set.table(os.Getpid()).FDs {
		ref[fd.Num], cloexec[fd.Num] = uint32(fd.File), fd.CloExec
	}
	if ref[int32(a)] == 0 || ref[int32(a)] != ref[int32(dup)] {
		t.Errorf("fd %d has description %d, its dup %d has %d; want the same", a, ref[int32(a)], dup, ref[int32(dup)])
	}
	if ref[int32(a)] == ref[int32(b)] {
		t.Errorf("two opens of one file share description %d", ref[int32(a)])
	}
	if cloexec[int32(a)] || !cloexec[int32(dup)] {
		t.Errorf("close-on-exec of fd %d is %v and of its dup %v, want false and true", a, cloexec[int32(a)], cloexec[int32(dup)])
	}
	seen := map[uint32]bool{}
	for _, fd := range events {
		if seen[ref[int32(fd)]] {
			t.Fatalf("two eventfds share description %d", ref[int32(fd)])
		}
		seen[ref[int32(fd)]] = true
	}
}

func TestCollectFilesReadsOwner(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETOWN, os.Getpid()); err != nil {
		t.Fatal(err)
	}
	o := kind.ReadOwner(p[0])
	if o.PID != int32(os.Getpid()) || o.Type != 1 { // F_OWNER_PID
		t.Errorf("ReadOwner = %+v; want pid %d of type F_OWNER_PID", o, os.Getpid())
	}
	if o := kind.ReadOwner(p[1]); o != (image.FOwner{}) {
		t.Errorf("the other end has the owner %+v", o)
	}
}
