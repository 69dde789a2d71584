package procfs

import (
	"bytes"
	"math"

	"golang.org/x/sys/unix"
)

// FDInfo is what /proc/PID/fdinfo/N tells of one open file description, see proc(5).
type FDInfo struct {
	Pos   int64
	Flags uint32 // octal in the file; O_CLOEXEC is the descriptor's, the rest the description's
	MntID int
	Ino   uint64

	EventFD *EventFD     // eventfd only
	TimerFD *TimerFD     // timerfd only
	SigMask *uint64      // signalfd only: bit n-1 is signal n
	Epoll   []EpollEntry // epoll only
	SCMFDs  uint32       // unix sockets only: files that are under way in it, or in those that it has yet to accept
	Locks   []string     // "lock:" lines, raw
	Other   []string     // every other line, raw
}

// EventFD is the eventfd(2) part of an fdinfo.
type EventFD struct {
	Count        uint64
	ID           int
	Semaphore    bool
	HasSemaphore bool // the kernel printed the eventfd-semaphore line
}

// EpollEntry is one "tfd:" line: a file that the epoll instance watches.
type EpollEntry struct {
	FD       int32 // number under which it was added
	Events   uint32
	Data     uint64
	Pos      int64
	Ino, Dev uint64
}

// ParseFDInfo parses /proc/PID/fdinfo/N. It wants pos, flags, mnt_id and ino, which every file
// has; lines of kinds that have no place in FDInfo stand raw in Other.
func ParseFDInfo(b []byte) (FDInfo, error) {
	var f FDInfo
	seen := 0
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		if len(line) == 0 {
			continue
		}
		common, ok := f.parseLine(line)
		if !ok {
			return f, textError("fdinfo", "number", line)
		}
		if common {
			seen++
		}
	}
	if seen != 4 {
		return f, textError("fdinfo", "pos, flags, mnt_id and ino", b)
	}
	return f, nil
}

// parseLine takes one line; common says that it is one that every file has.
func (f *FDInfo) parseLine(line []byte) (common, ok bool) {
	key, value, _ := cutKey(line)
	switch string(key) {
	case "pos":
		f.Pos, ok = integer(value)
		return true, ok
	case "flags":
		v, ok := whole(value, 8)
		f.Flags = uint32(v)
		return true, ok && v <= math.MaxUint32
	case "mnt_id":
		f.MntID, ok = smallInt(value)
		return true, ok
	case "ino":
		f.Ino, ok = whole(value, 10)
		return true, ok
	case "tfd":
		e, ok := parseEpollEntry(value)
		f.Epoll = append(f.Epoll, e)
		return false, ok
	case "eventfd-count", "eventfd-id", "eventfd-semaphore":
		if f.EventFD == nil {
			f.EventFD = new(EventFD)
		}
		return false, f.EventFD.parse(string(key), value)
	case "clockid", "ticks", "settime flags", "it_value", "it_interval":
		if f.TimerFD == nil {
			f.TimerFD = new(TimerFD)
		}
		return false, f.TimerFD.parse(string(key), value)
	case "sigmask":
		mask, ok := whole(value, 16)
		f.SigMask = &mask
		return false, ok
	case "scm_fds":
		n, ok := whole(value, 10)
		f.SCMFDs = uint32(n)
		return false, ok && n <= math.MaxUint32
	case "lock":
		f.Locks = append(f.Locks, string(line))
		return false, true
	}
	f.Other = append(f.Other, string(line))
	return false, true
}

// parse takes one of the eventfd lines. The count is hexadecimal, the id decimal.
func (e *EventFD) parse(key string, value []byte) (ok bool) {
	switch key {
	case "eventfd-count":
		e.Count, ok = whole(value, 16)
	case "eventfd-id":
		e.ID, ok = smallInt(value)
	default:
		e.HasSemaphore = true
		e.Semaphore = string(value) == "1"
		ok = e.Semaphore || string(value) == "0"
	}
	return ok
}

// parseEpollEntry reads "5 events: 19 data: 7f4400000005  pos:0 ino:26b9 sdev:f", where all
// but the descriptor and the position is hexadecimal.
func parseEpollEntry(b []byte) (e EpollEntry, ok bool) {
	w, b := nextWord(b)
	fd, ok := smallInt(w)
	if !ok {
		return e, false
	}
	e.FD = int32(fd)
	var raw [5][]byte
	for i, name := range [...]string{"events:", "data:", "pos:", "ino:", "sdev:"} {
		b = skipBlanks(b)
		if !bytes.HasPrefix(b, []byte(name)) {
			return e, false
		}
		raw[i], b = nextWord(b[len(name):])
	}
	events, ok1 := whole(raw[0], 16)
	data, ok2 := whole(raw[1], 16)
	pos, ok3 := integer(raw[2])
	ino, ok4 := whole(raw[3], 16)
	sdev, ok5 := whole(raw[4], 16)
	e.Events, e.Data, e.Pos, e.Ino = uint32(events), data, pos, ino
	// The kernel prints its own dev_t here: 12 bits of major above 20 bits of minor.
	e.Dev = unix.Mkdev(uint32(sdev>>20), uint32(sdev&(1<<20-1)))
	return e, ok1 && ok2 && ok3 && ok4 && ok5 && events <= math.MaxUint32 && sdev <= math.MaxUint32
}
