package ckpt

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

const kcmpFile = 0 // KCMP_FILE of linux/kcmp.h

// makeRoom closes the duplicates of what is here already. If they are few it is not worth
// comparing all of them again.
func (s *fileSet) makeRoom(all []*slot) error {
	closed, err := fold(all)
	s.held -= closed
	if closed < s.foldAt/8 {
		s.foldAt = -1
	}
	return err
}

// roomForFiles is how many duplicates may be held before those are looked for that are
// not needed: the rest of the checkpoint, and other work of this process, opens files meanwhile.
func roomForFiles() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return -1
	}
	return int(min(l.Cur/4*3, math.MaxInt32))
}

// share finds out which slots share an open file description, and keeps one duplicate of each.
func (s *fileSet) share(all []*slot) error {
	_, err := fold(all)
	names := map[[2]uint64]*kind.Found{}
	room := make([]kind.Found, len(all)) // in one piece: there may be very many
	slots := make([]kind.Slot, len(all))
	for _, sl := range all { // in tree order, so that Slots[0] is where a reader would look first
		kept := sl
		for kept.same != nil {
			kept = kept.same
		}
		if kept.found == nil {
			kept.found, room = &room[0], room[1:]
			kept.found.FD, kept.found.Stat, kept.found.Slots = kept.fd, kept.stat, slots[:0:1]
			slots = slots[1:]
			s.found = append(s.found, kept.found)
			if m := kept.mem; m != nil && m.Name != 0 {
				if twin := names[[2]uint64{m.Mount, m.Name}]; twin == nil {
					names[[2]uint64{m.Mount, m.Name}] = kept.found
				} else if sameStat(&twin.Stat, &kept.stat) {
					kept.found.Twin = twin
				}
			}
			kept.found.Ref = image.ObjRef(len(s.found))
		}
		sl.found = kept.found
		sl.found.Slots = append(sl.found.Slots, kind.Slot{PID: int32(sl.pid), Num: int32(sl.num)})
	}
	return err
}

// fold sorts the slots so that those of one open file description come together, closes all
// duplicates but one of each, and returns how many it closed. kcmp(2) orders struct files, which
// makes it n log n comparisons.
func fold(all []*slot) (closed int, err error) {
	if len(all) == 0 || all[0].mem != nil { // of all or of none: then the kernel's memory has told
		return 0, nil
	}
	sorted := slices.DeleteFunc(slices.Clone(all), func(sl *slot) bool { return sl.same != nil })
	slices.SortStableFunc(sorted, func(a, b *slot) int {
		if c := cmp.Or(cmp.Compare(a.stat.Dev, b.stat.Dev), cmp.Compare(a.stat.Ino, b.stat.Ino), cmp.Compare(a.stat.Mode, b.stat.Mode)); c != 0 {
			return c
		}
		c, kerr := kcmp(a.fd, b.fd)
		if kerr != nil && err == nil {
			err = fmt.Errorf("compare pid %d fd %d with pid %d fd %d: kcmp: %w; it needs CONFIG_KCMP in the kernel", a.pid, a.num, b.pid, b.num, kerr)
		}
		return c
	})
	for i, sl := range sorted {
		if i == 0 || err != nil || !sameStat(&sl.stat, &sorted[i-1].stat) {
			continue
		}
		kept := sorted[i-1]
		for kept.same != nil {
			kept = kept.same
		}
		if c, err := kcmp(kept.fd, sl.fd); err == nil && c == 0 {
			closeFD(sl.fd)
			sl.fd, sl.same = -1, kept
			closed++
		}
	}
	return closed, err
}

func sameStat(a, b *unix.Stat_t) bool { return a.Dev == b.Dev && a.Ino == b.Ino && a.Mode == b.Mode }

// kcmp orders two of our own descriptors by the struct file behind them: -1, 0 or 1.
func kcmp(a, b int) (int, error) {
	pid := uintptr(os.Getpid())
	r, _, errno := unix.RawSyscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	if errno != 0 {
		return 0, errno
	}
	return [4]int{0, -1, 1, 1}[r&3], nil
}
