package kind

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// epoll is an epoll(7) instance. Its entries are keyed by the watched open file description
// and the number under which it was added, so they have to be added by a process that holds
// the file under that very number: in Finish. An entry outlives its number while the file is
// open somewhere: then the file gets the number for the time, see epollaway.go.
//
// The kernel's list of what is ready is not kept: every entry that is ready is reported after
// a restore. An edge-triggered one that was reported before is so once more, which its users
// must expect in any case.
type epoll struct{}

type epollRec struct {
	Entries []epollEntry `cbor:"1,keyasint,omitempty"`
	// EPIOCGPARAMS; all 0: not set.
	BusyUsecs  uint32 `cbor:"2,keyasint,omitempty"`
	BusyBudget uint16 `cbor:"3,keyasint,omitempty"`
	PreferBusy bool   `cbor:"4,keyasint,omitempty"`
}

// epollEntry is one EPOLL_CTL_ADD.
type epollEntry struct {
	PID     int32        `cbor:"1,keyasint"` // process that adds it: it holds both files
	Num     int32        `cbor:"2,keyasint"` // number of the watched file there
	Events  uint32       `cbor:"3,keyasint"`
	Data    uint64       `cbor:"4,keyasint"`
	File    image.ObjRef `cbor:"5,keyasint"`           // the watched file, for people
	MayLose bool         `cbor:"6,keyasint,omitempty"` // it may be NAME.out afterwards, which cannot be watched
	Away    bool         `cbor:"7,keyasint,omitempty"` // the process has the file under another number now:
	At      int32        `cbor:"8,keyasint,omitempty"` // this one
}

const (
	// epollPrivate are the event bits that stay when an EPOLLONESHOT entry has fired. An
	// entry has EPOLLERR and EPOLLHUP beside them exactly while it is armed.
	epollPrivate = unix.EPOLLWAKEUP | unix.EPOLLONESHOT | unix.EPOLLET | unix.EPOLLEXCLUSIVE
	epollAny     = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLPRI | unix.EPOLLRDHUP
	pollAny      = unix.POLLIN | unix.POLLOUT | unix.POLLPRI | unix.POLLRDHUP

	epiocSetParams = 0x40088a01 // EPIOCSPARAMS, linux/eventpoll.h
	epiocGetParams = 0x80088a02 // EPIOCGPARAMS
	kcmpEpollTFD   = 7          // KCMP_EPOLL_TFD, linux/kcmp.h
)

func (en *epollEntry) disarmed() bool {
	return en.Events&unix.EPOLLONESHOT != 0 && en.Events&^epollPrivate == 0
}

// epollParams is struct epoll_params.
type epollParams struct {
	usecs  uint32
	budget uint16
	prefer uint8
	_      uint8
}

func epollIoctl(fd int, req uintptr, p *epollParams) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(p))); errno != 0 {
		return errno
	}
	return nil
}

func (epoll) Name() string { return "epoll" }

func (epoll) Match(f *Found) bool { return f.Link == "anon_inode:[eventpoll]" }

func (epoll) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	watched, errs := epollWatched(f, s)
	disarmed, pids := int32(-1), map[int32]bool{}
	for i, w := range watched {
		num := f.Info.Epoll[i].FD
		if errors.Is(errs[i], unix.ENOENT) {
			continue // taken out since fdinfo was read, by a process that runs
		}
		if errs[i] != nil {
			all = append(all, f.refuse(errs[i].Error(), "take the entry out with EPOLL_CTL_DEL before the number is closed"))
			continue
		}
		en := w.entry
		pids[en.PID] = true
		if en.MayLose {
			all = append(all, f.lose(fmt.Sprintf("it watches fd %d, whose output goes to NAME.out if its other end is gone: a file, which cannot be watched", num), "send the output to a file yourself"))
		}
		if !en.disarmed() {
			continue
		}
		disarmed = num
		if !ready(w.found.FD) {
			all = append(all, f.refuse(fmt.Sprintf("its entry for fd %d has fired (EPOLLONESHOT) and waits to be armed again, and the file is not ready: no call can make such an entry", num),
				"checkpoint when no handler of such an event is at work"))
		}
	}
	if disarmed >= 0 && len(pids) > 1 {
		all = append(all, f.refuse(fmt.Sprintf("its entry for fd %d has fired (EPOLLONESHOT), and several processes have added entries", disarmed),
			"checkpoint when no handler of such an event is at work"))
	}
	return all
}

// ready tells whether a file has any event that epoll could report.
func ready(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: pollAny}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

func (epoll) Dump(f *Found, s *Scene, rec *image.File) error {
	var r epollRec
	watched, errs := epollWatched(f, s)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	for _, w := range watched {
		r.Entries = append(r.Entries, w.entry)
	}
	var p epollParams
	switch err := epollIoctl(f.FD, epiocGetParams, &p); err {
	case nil:
		r.BusyUsecs, r.BusyBudget, r.PreferBusy = p.usecs, p.budget, p.prefer != 0
	case unix.ENOTTY, unix.EINVAL, unix.EOPNOTSUPP: // before 6.9, or without network busy polling
	default:
		return fmt.Errorf("epoll: EPIOCGPARAMS: %w", err)
	}
	return encodeRec(rec, &r)
}

// watchedFile is an entry with what it watches.
type watchedFile struct {
	entry epollEntry
	found *Found
}

// epollWatched finds for each entry of f.Info.Epoll a process that holds the watched file under
// the entry's number, and the epoll instance too. errs[i] says why there is none.
func epollWatched(f *Found, s *Scene) (all []watchedFile, errs []error) {
	held := map[Slot]*Found{}
	for _, g := range s.Files {
		for _, sl := range g.Slots {
			held[sl] = g
		}
	}
	seen := map[int32]int{}
	for _, e := range f.Info.Epoll {
		nth := seen[e.FD] // one number may have been added several times, for several files
		seen[e.FD]++
		w := watchedFile{entry: epollEntry{Num: e.FD, Events: e.Events, Data: e.Data}}
		err := fmt.Errorf("its entry for fd %d watches a file (inode %d) that no process with this epoll has open any more", e.FD, e.Ino)
		for _, sl := range f.Slots {
			g := held[Slot{PID: sl.PID, Num: e.FD}]
			if g == nil {
				continue
			}
			same, kerr := watches(f.FD, e.FD, nth, g.FD)
			if kerr != nil {
				err = fmt.Errorf("its entry for fd %d cannot be compared with the file there (it needs CONFIG_KCMP in the kernel): kcmp: %w", e.FD, kerr)
			}
			if same {
				w.entry.PID, w.entry.File, w.entry.MayLose = sl.PID, g.Ref, mayBecomeOut(g, s)
				w.found, err = g, nil
				break
			}
		}
		if w.found == nil {
			if g, sl := s.away(f, e.FD, nth); g != nil {
				w.entry.PID, w.entry.File, w.entry.MayLose, w.entry.Away, w.entry.At = sl.PID, g.Ref, mayBecomeOut(g, s), true, sl.Num
				w.found, err = g, nil
			}
		}
		all, errs = append(all, w), append(errs, err)
	}
	return all, errs
}

// watches tells whether the nth entry of the epoll ep for number num watches the file behind
// our descriptor fd; ENOENT: there is no such entry. Inode numbers would not tell: all
// anonymous files share one.
func watches(ep int, num int32, nth, fd int) (bool, error) {
	slot := struct{ efd, tfd, toff uint32 }{uint32(ep), uint32(num), uint32(nth)}
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpEpollTFD, uintptr(fd), uintptr(unsafe.Pointer(&slot)), 0)
	if errno != 0 {
		return false, errno
	}
	return r == 0, nil
}

// mayBecomeOut tells whether a restore may put NAME.out in the place of g.
func mayBecomeOut(g *Found, s *Scene) bool {
	if !writable(g.Flags) {
		return false
	}
	if (terminal{}).Match(g) {
		return true
	}
	return ((pipe{}).Match(g) || (fifo{}).Match(g)) && !endsOf(g, s).read && s.Outside(g.Stat.Dev, g.Stat.Ino, unix.O_RDONLY) != 0
}

func (epoll) Open(rec *image.File, e *Env) (int, error) {
	var r epollRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("epoll_create1: %w", err)
	}
	if r.BusyUsecs != 0 || r.BusyBudget != 0 || r.PreferBusy {
		p := epollParams{usecs: r.BusyUsecs, budget: r.BusyBudget}
		if r.PreferBusy {
			p.prefer = 1
		}
		if err := epollIoctl(fd, epiocSetParams, &p); err != nil {
			unix.Close(fd) // never used
			return -1, fmt.Errorf("epoll: busy polling (EPIOCSPARAMS) cannot be set as it was: %w", err)
		}
	}
	fd, err = finished(fd, rec.Flags, 0, 0)
	if err != nil {
		return -1, fmt.Errorf("epoll: %w", err)
	}
	return fd, nil
}

// FinishPIDs is Finisher.FinishPIDs.
func (epoll) FinishPIDs(rec *image.File) ([]int32, error) {
	var r epollRec
	if err := decodeRec(rec, &r); err != nil {
		return nil, err
	}
	var pids []int32
	for _, en := range r.Entries {
		if !slices.Contains(pids, en.PID) {
			pids = append(pids, en.PID)
		}
	}
	return pids, nil
}

// Finish is Finisher.Finish: it adds the entries that p knows the files of. Those that have
// fired come first, each added armed and made to fire while nothing else can be reported.
func (epoll) Finish(rec *image.File, fd int, p Process) error {
	var r epollRec
	if err := decodeRec(rec, &r); err != nil {
		return err
	}
	var fired, armed, away []epollEntry
	if pids, err := (epoll{}).FinishPIDs(rec); err != nil || len(pids) > 0 && !slices.Contains(pids, int32(p.PID())) {
		return fmt.Errorf("epoll fd %d: its entries belong to the pids %v, not to %d", fd, pids, p.PID())
	}
	for _, en := range r.Entries {
		switch {
		case int(en.PID) != p.PID():
		case en.Away:
			away = append(away, en)
		case en.disarmed():
			fired = append(fired, en)
		default:
			armed = append(armed, en)
		}
	}
	for i := range away { // those that have fired before others
		if err := addAway(fd, &away[i], p); err != nil {
			return fmt.Errorf("epoll fd %d: %w", fd, err)
		}
	}
	for i := range fired {
		if err := addFired(fd, &fired[i], p); err != nil {
			return fmt.Errorf("epoll fd %d: %w", fd, err)
		}
	}
	const chunk = 256 // entries whose arguments go over at once
	for len(armed) > 0 {
		n := min(chunk, len(armed))
		if err := addArmed(fd, armed[:n], p); err != nil {
			return fmt.Errorf("epoll fd %d: %w", fd, err)
		}
		armed = armed[n:]
	}
	return nil
}

// addArmed adds entries to the epoll fd of p.
func addArmed(fd int, entries []epollEntry, p Process) error {
	args := make([]unix.EpollEvent, len(entries))
	for i := range entries {
		args[i] = entries[i].event(entries[i].Events)
	}
	addr, err := p.Put(eventBytes(args))
	if err != nil {
		return err
	}
	for i := range entries {
		en := &entries[i]
		_, err := p.Syscall(unix.SYS_EPOLL_CTL, uint64(fd), unix.EPOLL_CTL_ADD, uint64(en.Num), addr+uint64(i)*uint64(unsafe.Sizeof(args[0])))
		if errors.Is(err, unix.EPERM) && en.MayLose {
			continue // it is NAME.out now; the image's list of losses says so
		}
		if err != nil {
			return fmt.Errorf("watching fd %d again: %w", en.Num, err)
		}
	}
	return nil
}

// addFired adds an EPOLLONESHOT entry and lets it fire.
func addFired(fd int, en *epollEntry, p Process) error {
	args := []unix.EpollEvent{en.event(en.Events | epollAny), {}}
	addr, err := p.Put(eventBytes(args))
	if err != nil {
		return err
	}
	_, err = p.Syscall(unix.SYS_EPOLL_CTL, uint64(fd), unix.EPOLL_CTL_ADD, uint64(en.Num), addr)
	if errors.Is(err, unix.EPERM) && en.MayLose {
		return nil // as above
	}
	if err != nil {
		return fmt.Errorf("watching fd %d again: %w", en.Num, err)
	}
	out := addr + uint64(unsafe.Sizeof(args[0]))
	n, err := p.Syscall(unix.SYS_EPOLL_PWAIT, uint64(fd), out, 1, 0, 0, 8)
	if err != nil {
		return fmt.Errorf("letting the entry for fd %d fire: %w", en.Num, err)
	}
	if n != 1 {
		return fmt.Errorf("the entry for fd %d had fired (EPOLLONESHOT), and cannot be made so since the file is not ready now", en.Num)
	}
	return nil
}

// event is the kernel's struct epoll_event for the entry.
func (en *epollEntry) event(events uint32) unix.EpollEvent {
	return unix.EpollEvent{Events: events, Fd: int32(uint32(en.Data)), Pad: int32(uint32(en.Data >> 32))}
}

// eventBytes is the memory of args, in the layout of this machine.
func eventBytes(args []unix.EpollEvent) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&args[0])), len(args)*int(unsafe.Sizeof(args[0])))
}
