package procfs

import (
	"bytes"
	"math"
	"time"
)

// TimerFD is the timerfd_create(2) part of an fdinfo.
type TimerFD struct {
	Clock    int
	Ticks    uint64 // expirations that were not read yet
	Flags    uint32 // of timerfd_settime(2)
	Value    int64  // ns left; 0: disarmed, or periodic and expired
	Interval int64  // ns
}

// parse takes one of the timerfd lines: "it_value: (6, 999894699)" is in seconds and nanoseconds,
// the flags are octal.
func (t *TimerFD) parse(key string, value []byte) (ok bool) {
	switch key {
	case "clockid":
		t.Clock, ok = smallInt(value)
	case "ticks":
		t.Ticks, ok = whole(value, 10)
	case "settime flags":
		v, good := whole(value, 8)
		t.Flags, ok = uint32(v), good && v <= math.MaxUint32
	case "it_value":
		t.Value, ok = timespec(value)
	case "it_interval":
		t.Interval, ok = timespec(value)
	}
	return ok
}

// timespec reads "(seconds, nanoseconds)" and returns nanoseconds.
func timespec(b []byte) (int64, bool) {
	b, ok1 := bytes.CutPrefix(b, []byte("("))
	b, ok2 := bytes.CutSuffix(b, []byte(")"))
	sec, nsec, ok3 := bytes.Cut(b, []byte(", "))
	s, ok4 := whole(sec, 10)
	n, ok5 := whole(nsec, 10)
	const most = math.MaxInt64/int64(time.Second) - 1
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || s > uint64(most) || n >= uint64(time.Second) {
		return 0, false
	}
	return int64(s)*int64(time.Second) + int64(n), true
}
