package kind

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// uring is an io_uring(7) without requests in flight.
//
// What the program sees of it is memory that it shares with the kernel: the entries, and where each side is. How it was
// made and what is registered with it nobody tells, so that is read from the kernel's memory (package kmem). A restore
// makes a ring in the process (uringmake.go) and brings it to where the old one was: heads and tails count from 0 and
// only go on by requests, and programs remember them, so as many requests that do nothing are made as there were
// (uringadvance.go).
//
// That nothing is in flight is known exactly: the kernel counts the requests that it has allocated for a ring, and
// those that are not in use hang on a list. It has to be so before any memory of the tree is copied (QuietRings): a read
// that ends in between would have its completion in the image and not its data.
type uring struct{}

type uringRec struct {
	Thread    int32      `cbor:"1,keyasint"` // that makes it, and the only one that may use it with SINGLE_ISSUER
	Flags     uint32     `cbor:"2,keyasint"` // IORING_SETUP_*
	SQEntries uint32     `cbor:"3,keyasint"`
	CQEntries uint32     `cbor:"4,keyasint"`
	SQHead    uint32     `cbor:"5,keyasint"`
	SQTail    uint32     `cbor:"6,keyasint"`
	CQHead    uint32     `cbor:"7,keyasint"`
	CQTail    uint32     `cbor:"8,keyasint"`
	Dropped   uint32     `cbor:"9,keyasint"`
	Overflow  uint32     `cbor:"10,keyasint"`
	CQFlags   uint32     `cbor:"11,keyasint"`
	Idle      uint32     `cbor:"12,keyasint"` // SQPOLL: milliseconds
	CPU       uint32     `cbor:"13,keyasint"` // SQ_AFF
	Maps      []ringMap  `cbor:"14,keyasint"`
	Files     []int32    `cbor:"15,keyasint"` // registered: the number of each in the process of Thread, or -1
	Buffers   [][]uint64 `cbor:"16,keyasint"` // registered: address and length
	EventFD   int32      `cbor:"17,keyasint"` // registered: its number there, or -1
	Async     bool       `cbor:"18,keyasint"` // with IORING_REGISTER_EVENTFD_ASYNC
	Clock     uint32     `cbor:"19,keyasint"` // that of timeouts of io_uring_enter(2)
	PID       int32      `cbor:"20,keyasint"` // the process of Thread
}

// ringMap is a mapping of a ring.
type ringMap struct {
	PID   int32  `cbor:"1,keyasint"`
	Start uint64 `cbor:"2,keyasint"`
	Len   uint64 `cbor:"3,keyasint"`
	Off   uint64 `cbor:"4,keyasint"` // ringOffSQ, ringOffCQ, ringOffSQEs
	Prot  uint32 `cbor:"5,keyasint"`
}

// RingLink is what the kernel calls a ring, also among mappings.
const RingLink = "anon_inode:[io_uring]"

func (uring) Name() string { return "uring" }

func (uring) Match(f *Found) bool { return f.Link == RingLink }

func (uring) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	add := func(what, remedy string) { all = append(all, f.refuse(what, remedy)) }
	const closeIt = "let the program close it, or run it without io_uring"
	if f.Flags&^(unix.O_ACCMODE|meaningless) != 0 {
		add(fmt.Sprintf("it has status flags %#o, which this version does not know", f.Flags), closeIt)
	}
	r, err := readRing(f, s)
	if err != nil {
		add(fmt.Sprintf("what the kernel holds for it cannot be read: %v", err), "use a kernel with BTF (CONFIG_DEBUG_INFO_BTF) and BPF, Linux 6.16 or newer, or run the program without io_uring")
		return all
	}
	if !s.Still && s.Rings != nil {
		s.Rings[r.ctx] = false
	}
	const again = "try again in a moment; a program that always waits for something by its io_uring has to be run without (nodejs: UV_USE_IO_URING=0, others: their setting for it)"
	switch {
	case r.busy != 0:
		add(fmt.Sprintf("it has requests in flight (%d), which cannot be read", r.busy), again)
	case s.Still && !s.Rings[r.ctx]:
		add("it had requests in flight, or was made, when the tree had just been stopped", again)
	case r.overflow:
		add("completions wait that have no room in its ring", "let the program read them: "+again)
	case r.rec.Flags&ringSQPoll != 0 && r.rec.SQHead != r.rec.SQTail:
		add("its kernel thread has not taken all requests yet", again)
	}
	for _, w := range r.wrong {
		add(w, closeIt)
	}
	if s.Still {
		return all
	}
	if err := r.rec.affordable(); err != nil {
		add(err.Error(), closeIt)
	}
	switch pid, err := ringOutside(f, s); {
	case err != nil:
		add(err.Error(), closeIt)
	case pid != 0:
		add(fmt.Sprintf("%s, which is outside the tree, has it open too", processName(pid)), "close it there, or checkpoint a tree that holds that process too")
	}
	return all
}

// QuietRings marks those of the rings that have no requests in flight; their keys are what Check has put there. The tree
// stands still: nobody makes new requests, but a kernel thread of IORING_SETUP_SQPOLL may still end some.
func QuietRings(rings map[uint64]bool) {
	if len(rings) == 0 {
		return
	}
	m, err := kmem.Open()
	if err != nil {
		return // Check says so
	}
	for ctx := range rings {
		n, err := inFlight(m, ctx)
		rings[ctx] = err == nil && n == 0
	}
}

func (uring) Dump(f *Found, s *Scene, rec *image.File) error {
	r, err := readRing(f, s)
	if err != nil {
		return err
	}
	if r.busy != 0 {
		return fmt.Errorf("requests are in flight: %d", r.busy)
	}
	if r.rec.Maps, err = ringMaps(f, &r.rec); err != nil {
		return err
	}
	if err := r.rec.check(); err != nil {
		return err
	}
	b, err := r.content()
	if err != nil {
		return err
	}
	rec.Blob = s.Blob(b)
	return encodeRec(rec, &r.rec)
}

// ringMaps finds the mappings of a ring in the processes that have it open. All rings have the same inode, so it is the
// memory itself that is compared: the numbers of its page frames.
func ringMaps(f *Found, r *uringRec) ([]ringMap, error) {
	var out []ringMap
	var pids []int32
	own := map[uint64]uint64{}
	rings, sqes := r.mapLens()
	for off, n := range map[uint64]uint64{ringOffSQ: rings, ringOffCQ: rings, ringOffSQEs: sqes} {
		frame, err := ringFrame(f.FD, off, n)
		if err != nil {
			return nil, err
		}
		own[off] = frame
	}
	for _, at := range f.Slots {
		if slices.Contains(pids, at.PID) {
			continue
		}
		pids = append(pids, at.PID)
		smaps, err := mapsOf(int(at.PID))
		if err != nil {
			return nil, err
		}
		for _, m := range smaps {
			if m.Path != RingLink {
				continue
			}
			frame, err := frameAt(strconv.Itoa(int(at.PID)), m.Start)
			if err != nil {
				return nil, err
			}
			want, known := own[m.Offset]
			if !known || frame != want {
				continue // of another ring; that every one has its ring is checked for the whole tree
			}
			n := ringMap{PID: at.PID, Start: m.Start, Len: m.End - m.Start, Off: m.Offset}
			if m.Read {
				n.Prot |= unix.PROT_READ
			}
			if m.Write {
				n.Prot |= unix.PROT_WRITE
			}
			out = append(out, n)
		}
	}
	return out, nil
}

// ringFrame is the page frame where a part of a ring of n bytes begins; the kernel maps only whole ones.
func ringFrame(fd int, off, n uint64) (uint64, error) {
	b, err := unix.Mmap(fd, int64(off), int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return 0, fmt.Errorf("map it: %w", err)
	}
	defer unix.Munmap(b)
	return frameAt("self", addressOf(b))
}

// RingMapped reports whether one of the records of rings has the mapping of a process.
func RingMapped(files []image.File, pid int32, start uint64) bool {
	for i := range files {
		var r uringRec
		if files[i].Kind != (uring{}).Name() || decodeRec(&files[i], &r) != nil {
			continue
		}
		if slices.ContainsFunc(r.Maps, func(m ringMap) bool { return m.PID == pid && m.Start == start }) {
			return true
		}
	}
	return false
}

// sqThread is the kernel thread of IORING_SETUP_SQPOLL, or 0.
func sqThread(f *Found) int {
	for _, line := range f.Info.Other {
		if v, ok := strings.CutPrefix(line, "SqThread:"); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(v)); err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

// processOf is the process of a thread.
func processOf(tid int) (int32, error) {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Tgid:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			return int32(n), err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status tells no process", tid)
}
