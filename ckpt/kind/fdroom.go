package kind

import (
	"math"

	"golang.org/x/sys/unix"
)

// firstTable is how many descriptors a table of the kernel has room for without growing often.
const firstTable = 256

// GrowTable makes room for n more descriptors of this process at once. The kernel's table doubles when it is full, and
// as other threads use it waits each time for all processors (synchronize_rcu in fs/file.c), some 5 to 25 ms.
func GrowTable(n int) {
	var l unix.Rlimit
	if n < firstTable || unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return
	}
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // it grows by itself
	}
	defer unix.Close(fd)
	last := min(uint64(n)+firstTable, l.Cur, math.MaxInt32) - 1
	if top, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, int(last)); err == nil {
		unix.Close(top) // only to have the table that large
	}
}
