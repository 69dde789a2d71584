package kind

import (
	"slices"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func newEpoll(t *testing.T) int {
	t.Helper()
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func newEventFD(t *testing.T, count uint) int {
	t.Helper()
	fd, err := unix.Eventfd(count, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func watch(t *testing.T, ep, fd int, events uint32, data uint64) {
	t.Helper()
	must(t, unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(data), Pad: int32(data >> 32)}))
}

// entries are the tfd lines of an epoll, which name number, events, data and inode.
func entries(t *testing.T, fd int) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(string(fdinfo(t, fd))) {
		if strings.HasPrefix(line, "tfd:") {
			all = append(all, line)
		}
	}
	slices.Sort(all)
	return all
}

// epollTrip restores the epoll ep in a tree that holds fds too. What it watches stays as it
// is, so that its entries must come out the same.
func epollTrip(t *testing.T, ep int, fds ...int) (*stage, int) {
	t.Helper()
	s := newStage(t)
	s.add(append([]int{ep}, fds...)...)
	must(t, image.Refusals(s.check()))
	s.dump()
	return s, s.finish(0)
}

// finish opens and finishes the epoll record i.
func (s *stage) finish(i int) int {
	s.t.Helper()
	rec := &s.env.Manifest.Files[i]
	fd, err := epoll{}.Open(rec, s.env)
	must(s.t, err)
	s.t.Cleanup(func() { unix.Close(fd) })
	pids, err := epoll{}.FinishPIDs(rec)
	must(s.t, err)
	for _, pid := range pids {
		must(s.t, epoll{}.Finish(rec, fd, &self{pid: pid}))
	}
	return fd
}

func TestEpoll(t *testing.T) {
	ep := newEpoll(t)
	r, w := newPipe(t, unix.O_NONBLOCK, 65536, []byte("x"))
	ev := newEventFD(t, 0)
	watch(t, ep, r, unix.EPOLLIN, 0x0123456789abcdef)
	watch(t, ep, w, unix.EPOLLOUT|unix.EPOLLET, ^uint64(0))
	watch(t, ep, ev, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, 3)
	before := entries(t, ep)
	_, got := epollTrip(t, ep, r, w, ev)
	if now := entries(t, got); !slices.Equal(now, before) {
		t.Errorf("entries\n%s, were\n%s", now, before)
	}
	if now := entries(t, ep); !slices.Equal(now, before) {
		t.Errorf("the old epoll was disturbed: %s", now)
	}
	events := make([]unix.EpollEvent, 9)
	n, err := unix.EpollWait(got, events, 0)
	must(t, err)
	var data []int32
	for _, e := range events[:n] {
		data = append(data, e.Fd)
	}
	slices.Sort(data)
	if data89 := uint32(0x89abcdef); !slices.Equal(data, []int32{int32(data89), -1}) {
		t.Errorf("ready: %x", data)
	}
	// The number is the right one: it can be taken out under it.
	must(t, unix.EpollCtl(got, unix.EPOLL_CTL_DEL, r, nil))
}

func TestEpollNested(t *testing.T) {
	inner, outer := newEpoll(t), newEpoll(t)
	ev := newEventFD(t, 1)
	watch(t, inner, ev, unix.EPOLLIN, 1)
	watch(t, outer, inner, unix.EPOLLIN, 2)
	s, got := epollTrip(t, outer, inner, ev)
	if len(entries(t, got)) != 1 {
		t.Error(entries(t, got))
	}
	events := make([]unix.EpollEvent, 2)
	if n, err := unix.EpollWait(got, events, 0); err != nil || n != 1 || events[0].Fd != 2 {
		t.Errorf("%d %v %v", n, err, events)
	}
	if in := s.finish(1); len(entries(t, in)) != 1 {
		t.Error(entries(t, in))
	}
}

// TestEpollMany has more entries than one chunk.
func TestEpollMany(t *testing.T) {
	ep := newEpoll(t)
	var fds []int
	for i := range 600 {
		fd := newEventFD(t, 0)
		watch(t, ep, fd, unix.EPOLLIN, uint64(i)<<32|7)
		fds = append(fds, fd)
	}
	before := entries(t, ep)
	_, got := epollTrip(t, ep, fds...)
	if now := entries(t, got); !slices.Equal(now, before) {
		t.Errorf("%d entries, were %d", len(now), len(before))
	}
}

// TestEpollOneShot: an entry that has fired must not fire again before it is armed.
func TestEpollOneShot(t *testing.T) {
	ep := newEpoll(t)
	ev, armed := newEventFD(t, 1), newEventFD(t, 0)
	watch(t, ep, ev, unix.EPOLLIN|unix.EPOLLONESHOT, 5)
	watch(t, ep, armed, unix.EPOLLIN|unix.EPOLLONESHOT, 6)
	events := make([]unix.EpollEvent, 2)
	if n, err := unix.EpollWait(ep, events, 0); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	before := entries(t, ep)
	_, got := epollTrip(t, ep, ev, armed)
	if now := entries(t, got); !slices.Equal(now, before) {
		t.Errorf("entries\n%s, were\n%s", now, before)
	}
	if n, err := unix.EpollWait(got, events, 0); err != nil || n != 0 {
		t.Errorf("it fired again: %d %v %v", n, err, events)
	}

	r, w := newPipe(t, unix.O_NONBLOCK, 4096, []byte("x"))
	ep = newEpoll(t)
	watch(t, ep, r, unix.EPOLLIN|unix.EPOLLONESHOT, 5)
	if n, err := unix.EpollWait(ep, events, 0); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	_, err := unix.Read(r, make([]byte, 9))
	must(t, err)
	s := newStage(t)
	s.add(ep, r, w)
	refused(t, s.check(), "fd "+itoa(r)+" has fired (EPOLLONESHOT)", "the file is not ready")
}

func TestEpollRefusals(t *testing.T) {
	// The number was closed, and is another file of the same inode now.
	ep := newEpoll(t)
	ev := newEventFD(t, 0)
	keep, err := dup(ev)
	must(t, err)
	defer unix.Close(keep)
	watch(t, ep, ev, unix.EPOLLIN, 1)
	must(t, unix.Dup3(newEventFD(t, 0), ev, unix.O_CLOEXEC))
	s := newStage(t)
	must(t, image.Refusals(func() []image.Finding { s.add(ep, ev, keep); return s.check() }()))
	s = newStage(t)
	s.add(ep, ev, keep)[2].Slots[0].PID = 1 // only another process has the file
	refused(t, s.check(), "its entry for fd "+itoa(ev)+" watches a file (inode ", ") that no process with this epoll has open any more", "EPOLL_CTL_DEL")

	// The new file under that number is watched too: one entry is right, one is not.
	watch(t, ep, ev, unix.EPOLLIN, 2)
	s = newStage(t)
	s.add(ep, ev, keep)[2].Slots[0].PID = 1
	refused(t, s.check(), "its entry for fd "+itoa(ev))
	watched, errs := epollWatched(s.scene.Files[0], s.scene)
	good := 0
	for i := range errs {
		if errs[i] == nil {
			good++
			if watched[i].entry.Data != 2 {
				t.Errorf("the entry with data %d was taken for the good one", watched[i].entry.Data)
			}
		}
	}
	if good != 1 {
		t.Errorf("%d good entries", good)
	}
}

// TestEpollRunning: an entry that is taken out while we look is no reason to refuse.
func TestEpollRunning(t *testing.T) {
	ep, ev := newEpoll(t), newEventFD(t, 0)
	watch(t, ep, ev, unix.EPOLLIN, 1)
	s := newStage(t)
	s.add(ep, ev)
	must(t, unix.EpollCtl(ep, unix.EPOLL_CTL_DEL, ev, nil))
	if all := s.check(); len(all) != 0 {
		t.Error(all)
	}
	if err := (epoll{}).Dump(s.scene.Files[0], s.scene, &image.File{}); err == nil {
		t.Error("an entry that is gone was dumped")
	}
}

// TestEpollTwoProcesses: each process adds the entries that it has the files of.
func TestEpollTwoProcesses(t *testing.T) {
	ep := newEpoll(t)
	a, b := newEventFD(t, 0), newEventFD(t, 0)
	watch(t, ep, a, unix.EPOLLIN, 1)
	watch(t, ep, b, unix.EPOLLIN, 2)
	s := newStage(t)
	s.add(ep, a, b)
	me := s.scene.Files[0].Slots[0].PID
	s.scene.Files[0].Slots = append(s.scene.Files[0].Slots, Slot{PID: 5, Num: 9})
	s.scene.Files[2].Slots = []Slot{{PID: 5, Num: int32(b)}}
	must(t, image.Refusals(s.check()))
	s.dump()
	pids, err := epoll{}.FinishPIDs(&s.env.Manifest.Files[0])
	must(t, err)
	slices.Sort(pids)
	if !slices.Equal(pids, []int32{5, me}) {
		t.Errorf("pids %v", pids)
	}
	rec := &s.env.Manifest.Files[0]
	got := newEpoll(t)
	must(t, epoll{}.Finish(rec, got, &self{pid: me}))
	if now := entries(t, got); len(now) != 1 || !strings.Contains(now[0], itoa(a)+" events") {
		t.Errorf("added by this process: %s", now)
	}
	must(t, epoll{}.Finish(rec, got, &self{pid: 5}))
	if err := (epoll{}).Finish(rec, got, &self{pid: 6}); err == nil {
		t.Error("a process without entries finished it")
	}
	if now := entries(t, got); len(now) != 2 {
		t.Errorf("added by both: %s", now)
	}
}

func TestEpollParams(t *testing.T) {
	ep := newEpoll(t)
	p := epollParams{usecs: 77, budget: 8, prefer: 1}
	if err := epollIoctl(ep, epiocSetParams, &p); err != nil {
		t.Logf("no busy polling parameters on this kernel: %v", err)
		return
	}
	_, got := epollTrip(t, ep)
	var now epollParams
	must(t, epollIoctl(got, epiocGetParams, &now))
	if now != p {
		t.Errorf("%+v, were %+v", now, p)
	}
}

// TestEpollLost: what it watches becomes NAME.out, which cannot be watched.
func TestEpollLost(t *testing.T) {
	ep := newEpoll(t)
	_, w := newPipe(t, 0, 65536, nil)
	watch(t, ep, w, unix.EPOLLOUT, 1)
	s := newStage(t)
	s.add(ep, w)
	s.outside[unix.O_RDONLY] = 88
	s.scene.Files[1].Slots[0].PID = s.scene.Files[0].Slots[0].PID
	all := slices.DeleteFunc(s.check(), func(f image.Finding) bool { return !strings.Contains(f.Kind, "eventpoll") })
	wantFinding(t, all, image.Lose, "it watches fd "+itoa(w), "goes to NAME.out")
	s.dump()
	out, err := s.env.Out()
	must(t, err)
	defer unix.Close(out)
	must(t, unix.Dup3(out, w, unix.O_CLOEXEC))
	if got := s.finish(0); len(entries(t, got)) != 0 {
		t.Errorf("entries %s", entries(t, got))
	}
}
