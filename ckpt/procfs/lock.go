package procfs

import (
	"math"
	"strings"
)

// Lock is one line of /proc/locks, or behind "lock:" in an fdinfo: see proc_locks(5).
type Lock struct {
	Type     string // FLOCK, POSIX, OFDLCK, LEASE, DELEG; another one is unknown to us
	State    string // ADVISORY; of leases ACTIVE, BREAKING or BREAKER
	Mode     string // READ, WRITE; UNLCK: a lease that has to be given up altogether
	Blocked  bool   // it is only waited for
	PID      int    // who took it: -1 of an OFDLCK, 0 of somebody who cannot be seen from here
	Dev, Ino uint64 // of the inode; the device is that of the filesystem, see mountinfo
	Start    int64  // first byte
	End      int64  // last byte; math.MaxInt64: to the end of the file, wherever that is
}

// ParseLock parses such a line, with or without the label.
func ParseLock(line string) (Lock, bool) {
	var l Lock
	w := strings.Fields(strings.TrimPrefix(line, "lock:"))
	if len(w) > 1 && w[1] == "->" {
		l.Blocked = true
		w = append(w[:1:1], w[2:]...)
	}
	if len(w) != 8 || !strings.HasSuffix(w[0], ":") {
		return l, false
	}
	l.Type, l.State, l.Mode = w[1], w[2], w[3]
	var ok [4]bool
	var pid int64
	pid, ok[0] = integer([]byte(w[4]))
	l.PID = int(pid)
	id := []byte(w[5])
	dev, n := device(id, 16)
	if n == 0 || n >= len(id) || id[n] != ':' {
		return l, false
	}
	l.Dev = dev
	l.Ino, ok[1] = whole(id[n+1:], 10)
	l.Start, ok[2] = integer([]byte(w[6]))
	l.End, ok[3] = math.MaxInt64, true
	if w[7] != "EOF" {
		l.End, ok[3] = integer([]byte(w[7]))
	}
	return l, ok == [4]bool{true, true, true, true} && pid >= -1 && pid <= math.MaxInt32 && l.Start >= 0 && l.End >= l.Start
}
