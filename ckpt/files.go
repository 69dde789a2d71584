package ckpt

import (
	"errors"
	"fmt"
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

// close gives our duplicates back, those with neighbouring numbers by one call. It may be called twice.
func (s *fileSet) close() {
	var fds []int
	for _, f := range s.found {
		if f.FD >= 0 {
			fds = append(fds, f.FD)
		}
		f.FD = -1
	}
	slices.Sort(fds)
	for len(fds) > 0 {
		n := 1
		for n < len(fds) && fds[n] == fds[0]+n {
			n++
		}
		if unix.CloseRange(uint(fds[0]), uint(fds[n-1]), 0) != nil { // a seccomp filter over us
			for _, fd := range fds[:n] {
				closeFD(fd)
			}
		}
		fds = fds[n:]
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
	out, room := make([]*slot, 0, len(nums)), make([]slot, len(nums))
	for i, n := range nums {
		sl := &room[i]
		*sl = slot{pid: pid, num: n, fd: -1, mem: s.descriptor(pid, n)}
		if sl.mem != nil {
			if sl.same = s.byFile[sl.mem.File]; sl.same == nil {
				s.byFile[sl.mem.File] = sl
			}
		}
		out = append(out, sl)
	}
	if s.held+len(out) < s.foldAt || s.foldAt < 0 {
		return s.fetchAll(pidfd, out, frozen)
	}
	for i, sl := range out {
		if sl.same != nil {
			continue
		}
		if s.held == s.foldAt {
			if err := s.makeRoom(slices.Concat(others, out[:i])); err != nil {
				return out, err
			}
		}
		if err := sl.fetch(pidfd); err != nil && (frozen || !gone(err)) {
			return out, err
		}
		s.held++
	}
	return there(out), nil
}

// fetchAll fetches descriptors on all processors.
func (s *fileSet) fetchAll(pidfd int, all []*slot, frozen bool) ([]*slot, error) {
	const share = 64 // what a processor takes at once
	errs := make([]error, (len(all)+share-1)/share)
	parallel(len(errs), frozen, func(i int) {
		for _, sl := range all[i*share : min((i+1)*share, len(all))] {
			if sl.same != nil {
				continue
			}
			if err := sl.fetch(pidfd); err != nil && (frozen || !gone(err)) {
				errs[i] = err
				return
			}
		}
	})
	s.held += len(all)
	if err := errors.Join(errs...); err != nil {
		return all, err
	}
	return there(all), nil
}

// there leaves out what vanished before it was fetched, and what shares a file with that: it is a moment old.
func there(all []*slot) []*slot {
	all = slices.DeleteFunc(all, func(sl *slot) bool {
		first := sl
		if sl.same != nil {
			first = sl.same
		}
		return first.fd < 0
	})
	for _, sl := range all {
		if sl.same != nil {
			sl.stat = sl.same.stat
		}
	}
	return all
}

// fetch duplicates the descriptor into this process.
func (sl *slot) fetch(pidfd int) (err error) {
	if sl.fd, err = unix.PidfdGetfd(pidfd, sl.num, 0); err != nil {
		sl.fd = -1
		return fmt.Errorf("pid %d fd %d: pidfd_getfd: %w; %s", sl.pid, sl.num, err, getfdRemedy(err))
	}
	err = unix.Fstat(sl.fd, &sl.stat)
	if errors.Is(err, unix.ENOENT) && onProc(sl.fd) { // a directory such as /proc/PID/fd of a process that was reaped
		sl.stat = unix.Stat_t{}
		err = nil
	}
	if err != nil {
		closeFD(sl.fd)
		sl.fd = -1
		return fmt.Errorf("pid %d fd %d: fstat: %w", sl.pid, sl.num, err)
	}
	return nil
}

// onProc reports whether a file is one of procfs.
func onProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

func getfdRemedy(err error) string {
	if errors.Is(err, unix.EMFILE) {
		return "raise the limit of open files (ulimit -n) of ckptfs"
	}
	return "run ckptfs as root"
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
