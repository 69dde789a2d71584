package ckpt

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

const kcmpFile = 0 // KCMP_FILE of linux/kcmp.h

// slot is one descriptor of the tree while its open file description is being found out.
type slot struct {
	pid, num int
	cloexec  bool
	fd       int              // our duplicate; -1 once it is known to be the same as another
	same     *slot            // that other
	mem      *kmem.Descriptor // nil: not read
	stat     unix.Stat_t
	found    *kind.Found
}

// fileSet is every open file description of a tree, each once.
type fileSet struct {
	found        []*kind.Found
	tables       *tables
	slots        map[int][]*slot           // by the id of the table, ascending numbers
	held         int                       // duplicates that are open
	foldAt       int                       // how many of them are too many; -1: that cannot be helped
	mem          map[int][]kmem.Descriptor // by the id of the table; nil: not read
	byFile       map[uint64]*slot          // the first with each open file description, if mem is read
	known, socks int                       // sockets that are as the look found them, of how many
}

// collectFiles fetches the descriptors of the tables and finds out which of them share an
// open file description. tracers are those of our threads that keep the tree still; without
// any it runs, and descriptors and processes that vanish meanwhile are left out. The caller closes the set.
func collectFiles(t *tables, tracers []int, memo *kind.SockMemo) (*fileSet, error) {
	frozen := len(tracers) > 0
	s := &fileSet{tables: t, foldAt: roomForFiles(), slots: map[int][]*slot{}, byFile: map[uint64]*slot{}}
	s.readTables() // of a tree that runs this may be wrong: whatever is refused for that, the next look does not find
	if !frozen {
		kind.GrowTable(s.count()) // the freeze finds it so
	}
	var all []*slot
	for _, pid := range t.ids {
		got, err := s.fetchFDs(pid, frozen, all)
		s.slots[pid] = got
		all = append(all, got...)
		if err != nil {
			for _, sl := range all {
				closeFD(sl.fd)
			}
			return nil, err
		}
	}
	if err := s.share(all); err != nil {
		s.close()
		return nil, err
	}
	s.known, s.socks = memo.Recall(s.found)
	if err := s.describe(frozen); err != nil {
		s.close()
		return nil, err
	}
	if !frozen {
		return s, nil
	}
	if err := s.addInFlight(tracers); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd) // our duplicate: nothing of the target depends on it
	}
}

// close gives our duplicates back. It may be called twice.
func (s *fileSet) close() {
	for _, f := range s.found {
		closeFD(f.FD)
		f.FD = -1
	}
}

// fetchFDs duplicates every descriptor of a process into this one. When there are
// very many, those of descriptions that are here already, also through others, are closed again.
func (s *fileSet) fetchFDs(pid int, frozen bool, others []*slot) ([]*slot, error) {
	nums, err := s.numbers(pid)
	if gone(err) && !frozen {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pid %d: list its descriptors: %w", pid, err)
	}
	pidfd, err := s.tables.pidfd(pid)
	if s.tables.own[pid] != 0 && !frozen && err != nil || errors.Is(err, unix.ESRCH) && !frozen {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pid %d: pidfd_open: %w", pid, err)
	}
	defer unix.Close(pidfd)
	out := make([]*slot, 0, len(nums))
	for _, n := range nums {
		mem := s.descriptor(pid, n)
		if mem != nil {
			if first := s.byFile[mem.File]; first != nil {
				out = append(out, &slot{pid: pid, num: n, fd: -1, same: first, stat: first.stat, mem: mem})
				continue
			}
		}
		if s.held == s.foldAt {
			if err := s.makeRoom(slices.Concat(others, out)); err != nil {
				return out, err
			}
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if gone(err) && !frozen {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("pid %d fd %d: pidfd_getfd: %w; %s", pid, n, err, getfdRemedy(err))
		}
		sl := &slot{pid: pid, num: n, fd: fd, mem: mem}
		if mem != nil {
			s.byFile[mem.File] = sl
		}
		s.held++
		out = append(out, sl)
		err = unix.Fstat(fd, &sl.stat)
		if errors.Is(err, unix.ENOENT) && onProc(fd) { // a directory such as /proc/PID/fd of a process that was reaped
			sl.stat = unix.Stat_t{}
			err = nil
		}
		if err != nil {
			return out, fmt.Errorf("pid %d fd %d: fstat: %w", pid, n, err)
		}
	}
	return out, nil
}

// onProc reports whether a file is one of procfs.
func onProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

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

func getfdRemedy(err error) string {
	if errors.Is(err, unix.EMFILE) {
		return "raise the limit of open files (ulimit -n) of ckptfs"
	}
	return "run ckptfs as root"
}

// share finds out which slots share an open file description, and keeps one duplicate of each.
func (s *fileSet) share(all []*slot) error {
	_, err := fold(all)
	names := map[[2]uint64]*kind.Found{}
	for _, sl := range all { // in tree order, so that Slots[0] is where a reader would look first
		kept := sl
		for kept.same != nil {
			kept = kept.same
		}
		if kept.found == nil {
			kept.found = &kind.Found{FD: kept.fd, Stat: kept.stat}
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
	sorted := slices.DeleteFunc(slices.Clone(all), func(sl *slot) bool { return sl.same != nil })
	slices.SortStableFunc(sorted, func(a, b *slot) int {
		if c := cmp.Or(cmp.Compare(a.stat.Dev, b.stat.Dev), cmp.Compare(a.stat.Ino, b.stat.Ino), cmp.Compare(a.stat.Mode, b.stat.Mode)); c != 0 {
			return c
		}
		if a.mem != nil && b.mem != nil { // of all or of none
			return cmp.Compare(a.mem.File, b.mem.File)
		}
		c, kerr := kcmp(a.fd, b.fd)
		if kerr != nil && err == nil {
			err = fmt.Errorf("compare pid %d fd %d with pid %d fd %d: kcmp: %w; it needs CONFIG_KCMP in the kernel", a.pid, a.num, b.pid, b.num, kerr)
		}
		return c
	})
	for i, sl := range sorted {
		if i == 0 || err != nil || sl.mem != nil || !sameStat(&sl.stat, &sorted[i-1].stat) {
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

// describe reads what /proc and fcntl(2) tell of each open file description.
func (s *fileSet) describe(frozen bool) error {
	errs := make([]error, len(s.found))
	for _, twins := range []bool{false, true} { // their links are those of the others
		parallel(len(s.found), frozen, func(i int) {
			if f := s.found[i]; (f.Twin != nil) == twins {
				errs[i] = describeOne(f, s.descriptor(int(f.Slots[0].PID), int(f.Slots[0].Num)))
			}
		})
	}
	kept := s.found[:0]
	for i, f := range s.found {
		err := errs[i]
		if gone(err) && !frozen {
			closeFD(f.FD)
			continue
		}
		if err != nil {
			return err
		}
		kept = append(kept, f)
		f.Ref = image.ObjRef(len(kept))
	}
	s.found = kept
	for pid, slots := range s.slots {
		if err := readCloexec(pid, slots, frozen); err != nil {
			return err
		}
	}
	return nil
}

// describeOne reads what /proc and fcntl(2) tell of one, and who gets its SIGIO.
func describeOne(f *kind.Found, mem *kmem.Descriptor) error {
	at := f.Slots[0]
	num := strconv.Itoa(int(at.Num))
	fail := func(what string, err error) error {
		return fmt.Errorf("pid %d fd %d: %s: %w", at.PID, at.Num, what, err)
	}
	link := bareLink(&f.Stat)
	if link == "" && f.Twin != nil {
		link = f.Twin.Link
	}
	if link == "" {
		var err error
		if link, err = os.Readlink(procPath(int(at.PID), "fd/"+num)); err != nil {
			return fail("read its link", err)
		}
	}
	var ok bool
	if f.Info, ok = info(f, mem); !ok {
		b, err := quickread.File(procPath(int(at.PID), "fdinfo/"+num))
		if err != nil {
			return fail("read fdinfo", err)
		}
		if f.Info, err = procfs.ParseFDInfo(b); err != nil {
			return fail("read fdinfo", err)
		}
	}
	f.Link = link
	if mem != nil && mem.Plain && mem.Unowned {
		f.Flags = mem.Flags
	} else {
		flags, err := unix.FcntlInt(uintptr(f.FD), unix.F_GETFL, 0)
		if err != nil {
			return fail("F_GETFL", err)
		}
		f.Flags, f.Owner = uint32(flags), kind.ReadOwner(f.FD)
	}
	f.AddLocks(at.PID, &f.Info)
	return nil
}

// closing tells whether a descriptor is closed by exec, given the flags of its fdinfo. Of a terminal that was opened by
// TIOCGPTPEER with O_CLOEXEC these always say so; then standard input, output and error are taken for what they are.
func closing(sl *slot, flags uint32) bool {
	const standard = 3
	return flags&unix.O_CLOEXEC != 0 && (sl.found.Flags&unix.O_CLOEXEC == 0 || sl.num >= standard)
}

// readCloexec reads the close-on-exec flag of every slot. It belongs to the slot, so it is
// in that slot's own fdinfo and nowhere else. Locks of another process (F_SETLK) stand there, too.
func readCloexec(pid int, slots []*slot, frozen bool) error {
	for _, sl := range slots {
		at := sl.found.Slots[0]
		if at.PID == int32(pid) && at.Num == int32(sl.num) {
			sl.cloexec = closing(sl, sl.found.Info.Flags)
			continue
		}
		if sl.mem != nil && sl.mem.Plain {
			sl.cloexec = closing(sl, fdFlags(sl.mem))
			continue
		}
		b, err := quickread.File(procPath(pid, "fdinfo/"+strconv.Itoa(sl.num)))
		if gone(err) && !frozen {
			continue
		}
		if err != nil {
			return fmt.Errorf("pid %d fd %d: %w", pid, sl.num, err)
		}
		info, err := procfs.ParseFDInfo(b)
		if err != nil {
			return fmt.Errorf("pid %d fd %d: fdinfo: %w", pid, sl.num, err)
		}
		sl.cloexec = closing(sl, info.Flags)
		sl.found.AddLocks(int32(pid), &info)
	}
	return nil
}

// table is the descriptor table that goes by an id.
func (s *fileSet) table(id int) image.FDTable {
	var t image.FDTable
	for _, sl := range s.slots[id] {
		t.FDs = append(t.FDs, image.FD{Num: int32(sl.num), File: sl.found.Ref, CloExec: sl.cloexec})
	}
	return t
}

// check asks the kinds what of the files cannot be kept.
func (s *fileSet) check(sc *kind.Scene) []image.Finding {
	var out []image.Finding
	for _, f := range s.found {
		out = append(append(out, kind.Check(f, sc)...), s.tables.checkFile(f)...)
	}
	return s.tables.byThread(out)
}

// dump turns the descriptions into records. check must have refused nothing.
func (s *fileSet) dump(sc *kind.Scene, h *holders) ([]image.File, error) {
	out := make([]image.File, 0, len(s.found))
	for _, f := range s.found {
		at := f.Place()
		k := kind.Find(f)
		if k == nil {
			return nil, &image.RefusedError{Findings: []image.Finding{kind.Unsupported(f)}}
		}
		rec := image.File{Kind: k.Name(), Flags: f.Flags, Pos: f.Info.Pos, Path: f.Link}
		h.describe(f, &rec)
		if err := k.Dump(f, sc, &rec); err != nil {
			return nil, fmt.Errorf("pid %d fd %d (%s): %w", at.PID, at.Num, f.Link, err)
		}
		out = append(out, rec)
	}
	return out, nil
}
