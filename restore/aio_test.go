package restore

import (
	"errors"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// TestRoomHere compares with the rings that the kernel makes.
func TestRoomHere(t *testing.T) {
	cpus, err := task.PossibleCPUs()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint32{1, 4, 13, 40, 62, 63, 64, 121, 364, 1093, 2000} {
		var ctx uint64
		if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(n), uintptr(unsafe.Pointer(&ctx)), 0); errno != 0 {
			t.Fatal(errno)
		}
		var head [4]uint32 // of struct aio_ring: id, nr, head, tail
		local, remote := unix.Iovec{Base: (*byte)(unsafe.Pointer(&head)), Len: 16}, unix.RemoteIovec{Base: uintptr(ctx), Len: 16}
		if _, err := unix.ProcessVMReadv(unix.Getpid(), []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0); err != nil {
			t.Fatal(err)
		}
		if got := roomHere(n, cpus); got != head[1] {
			t.Errorf("%d requests: room for %d, the kernel has made it for %d", n, got, head[1])
		}
		if _, _, errno := unix.Syscall(unix.SYS_IO_DESTROY, uintptr(ctx), 0, 0); errno != 0 {
			t.Fatal(errno)
		}
	}
}

// TestAIOElsewhere: the ring of a machine with more CPUs.
func TestAIOElsewhere(t *testing.T) {
	ring := func(requests, pages, unread uint32) *image.VMA {
		return &image.VMA{Start: 1 << 30, End: 1<<30 + uint64(pages)*pageSize, Kind: image.VMAAIO, AIO: &image.AIO{MaxReqs: requests, Tail: unread}}
	}
	for _, c := range []struct {
		name string
		ring *image.VMA
		cpus int
		ok   bool
	}{
		{"as many", ring(10, 1, 120), 2, true},
		{"eight CPUs need no more", ring(10, 1, 0), 8, true},
		{"sixty-four do", ring(10, 1, 0), 64, false},
		{"made where there were sixty-four", ring(10, 5, 0), 2, false},
		{"fuller than two CPUs leave it", ring(10, 1, 126), 2, false},
		{"which four would", ring(10, 1, 126), 4, true},
	} {
		err := fitsHere(c.ring, c.cpus)
		var host *HostError
		if c.ok != (err == nil) || err != nil && !errors.As(err, &host) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
