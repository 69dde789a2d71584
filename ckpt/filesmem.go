package ckpt

import (
	"fmt"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// Of each descriptor a freeze wants to know flags, offset and close-on-exec, which stand in a file of /proc, and whether it shares its
// open file description with another, for which kcmp(2) has to sort all of them. The kernel's memory
// tells that of thousands at once.

// fewestFDs is for how many descriptors the kernel's memory is read: that costs a millisecond.
const fewestFDs = 48

// readTables reads the descriptor tables of a frozen tree in the kernel's memory; all of them or none.
func (s *fileSet) readTables() {
	if len(s.tables.own) > 0 || s.count() < fewestFDs {
		return // the memory of a process leads to the table of its first thread
	}
	m, err := kmem.Open()
	if err != nil {
		return
	}
	all := map[int][]kmem.Descriptor{}
	for _, id := range s.tables.ids {
		if all[id], err = m.Descriptors(id); err != nil {
			return
		}
	}
	s.mem = all
}

// count is how many descriptors there are to be read.
func (s *fileSet) count() (n int) {
	for _, id := range s.tables.ids {
		n += openCount(id)
	}
	return n
}

// prepareMemory makes ready in the look for what readTables does in the freeze.
func (s *fileSet) prepareMemory() {
	n := 0
	for _, slots := range s.slots {
		n += len(slots)
	}
	if n < fewestFDs {
		return
	}
	if m, err := kmem.Open(); err == nil {
		m.Prepare()
	}
}

// openCount is how many descriptors a process has, which the size of the directory tells since Linux 6.2; 0: not known.
func openCount(pid int) int {
	var st unix.Stat_t
	if unix.Stat(procPath(pid, "fd"), &st) != nil {
		return 0
	}
	return int(st.Size)
}

// numbers lists the descriptors of a table.
func (s *fileSet) numbers(id int) ([]int, error) {
	table, ok := s.mem[id]
	if !ok {
		return quickread.Numbers(procPath(id, "fd"))
	}
	var out []int
	for n := range table {
		if table[n].File != 0 {
			out = append(out, n)
		}
	}
	return out, nil
}

// descriptor is what the kernel's memory tells of a descriptor; nil: it was not read.
func (s *fileSet) descriptor(id, num int) *kmem.Descriptor {
	if t := s.mem[id]; num < len(t) {
		return &t[num]
	}
	return nil
}

// info is fdinfo of a file that has no other lines than every file, and ok says whether it is such a one.
func info(f *kind.Found, d *kmem.Descriptor) (i procfs.FDInfo, ok bool) {
	if d == nil || !d.Plain {
		return i, false
	}
	i = procfs.FDInfo{Pos: d.Pos, Flags: fdFlags(d), MntID: d.MntID, Ino: f.Stat.Ino}
	if f.Stat.Mode&unix.S_IFMT == unix.S_IFSOCK && d.Flags&unix.O_PATH == 0 {
		i.SCMFDs, ok = f.FilesUnderWay()
		return i, ok
	}
	return i, true
}

// fdFlags are flags as fdinfo has them.
func fdFlags(d *kmem.Descriptor) uint32 {
	if d.CloExec {
		return d.Flags | unix.O_CLOEXEC
	}
	return d.Flags &^ unix.O_CLOEXEC
}

// bareDevs are the devices of the filesystems of sockets and pipes, which have no names.
var bareDevs = sync.OnceValue(func() (devs struct{ sock, pipe uint64 }) {
	var st unix.Stat_t
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if unix.Fstat(fd, &st) == nil {
			devs.sock = st.Dev
		}
		unix.Close(fd)
	}
	var p [2]int
	if unix.Pipe2(p[:], unix.O_CLOEXEC) == nil {
		if unix.Fstat(p[0], &st) == nil {
			devs.pipe = st.Dev
		}
		unix.Close(p[0])
		unix.Close(p[1])
	}
	return devs
})

// bareLink is what /proc/PID/fd shows of a file without a name, "" if it may have one.
func bareLink(st *unix.Stat_t) string {
	devs := bareDevs()
	switch {
	case st.Dev == devs.sock && st.Mode&unix.S_IFMT == unix.S_IFSOCK:
		return fmt.Sprintf("socket:[%d]", st.Ino)
	case st.Dev == devs.pipe && st.Mode&unix.S_IFMT == unix.S_IFIFO:
		return fmt.Sprintf("pipe:[%d]", st.Ino)
	}
	return ""
}
