package kind

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ringOutside returns the pid of a process outside the tree that has the ring open too, or 0. All rings
// have the same inode, so Scene.Outside cannot tell: the descriptions are compared (kcmp(2)).
func ringOutside(f *Found, s *Scene) (int, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	self := os.Getpid()
	for _, e := range procs {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == self || s.member(pid) {
			continue
		}
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended, or is part of the kernel
		}
		for _, fd := range fds {
			link, err := os.Readlink(dir + "/" + fd.Name())
			if err != nil || link != RingLink {
				continue
			}
			n, err := strconv.Atoi(fd.Name())
			if err != nil {
				return 0, err
			}
			const kcmpFile = 0 // KCMP_FILE of linux/kcmp.h
			diff, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(self), uintptr(pid), kcmpFile, uintptr(f.FD), uintptr(n), 0)
			if errno == 0 && diff == 0 {
				return pid, nil
			}
		}
	}
	return 0, nil
}
