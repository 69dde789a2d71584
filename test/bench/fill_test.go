package bench

import (
	"os"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UFFDIO_COPY and what comes before it, see userfaultfd(2).
const (
	uffdAPI      = 0xaa
	uffdioAPI    = 0xc018aa3f
	uffdioReg    = 0xc020aa00
	uffdioCopy   = 0xc028aa03
	uffdMissing  = 1
	uffdUserMode = 1 // UFFD_USER_MODE_ONLY
)

// fillMemory measures in milliseconds how long two threads take to fill n bytes of new memory with UFFDIO_COPY, which is
// the least that a restore of as much memory can take.
func fillMemory(b *testing.B, n int) float64 {
	b.Helper()
	const step = 1 << 20
	n = (n + step - 1) / step * step
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|uffdUserMode, 0, 0)
	check(b, e)
	defer unix.Close(int(fd))
	api := [3]uint64{uffdAPI}
	_, _, e = unix.Syscall(unix.SYS_IOCTL, fd, uffdioAPI, uintptr(unsafe.Pointer(&api)))
	check(b, e)
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(mem)
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil {
		b.Fatal(err)
	}
	base := uint64(uintptr(unsafe.Pointer(&mem[0])))
	reg := [4]uint64{base, uint64(n), uffdMissing}
	_, _, e = unix.Syscall(unix.SYS_IOCTL, fd, uffdioReg, uintptr(unsafe.Pointer(&reg)))
	check(b, e)
	var failed [2]error
	ms := 1000 * seconds(func() {
		var both sync.WaitGroup
		for k := range failed {
			both.Go(func() { failed[k] = copyPages(fd, base, n, k*step, len(failed)*step, step) })
		}
		both.Wait()
	})
	for _, err := range failed {
		if err != nil {
			b.Fatal(err)
		}
	}
	return ms
}

// copyPages fills each every-th step of memory.
func copyPages(fd uintptr, base uint64, n, from, every, step int) error {
	src := make([]byte, step)
	for i := range src {
		src[i] = byte(i)
	}
	for off := from; off < n; off += every {
		c := [5]uint64{base + uint64(off), uint64(uintptr(unsafe.Pointer(&src[0]))), uint64(step)}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, uffdioCopy, uintptr(unsafe.Pointer(&c))); e != 0 {
			return os.NewSyscallError("UFFDIO_COPY", e)
		}
	}
	return nil
}

func check(b *testing.B, e unix.Errno) {
	b.Helper()
	if e != 0 {
		b.Fatalf("userfaultfd: %v", e)
	}
}

func fileSize(b *testing.B, path string) int64 {
	b.Helper()
	st, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return st.Size()
}
