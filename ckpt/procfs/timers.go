package procfs

import "bytes"

// Timer is one record of /proc/PID/timers: a timer of timer_create(2). What is left of it is
// not there; only the process itself can ask that.
type Timer struct {
	ID       int
	Signal   int
	SigValue uint64
	Notify   int // sigev_notify: SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2, each |SIGEV_THREAD_ID
	TID      int // the thread that gets the signal, with SIGEV_THREAD_ID; else 0
	Clock    int // negative: a CPU-time clock
}

// SIGEV_THREAD_ID of sigevent(7) as a bit of Timer.Notify.
const sigevThreadID = 4

// ParseTimers parses /proc/PID/timers, which lists the newest timer first.
func ParseTimers(b []byte) ([]Timer, error) {
	var all []Timer
	for len(b) > 0 {
		var t Timer
		for _, name := range [...]string{"ID", "signal", "notify", "ClockID"} {
			var line []byte
			line, b = cutLine(b)
			key, value, ok := cutKey(line)
			if !ok || string(key) != name || !t.parseLine(name, value) {
				return nil, textError("timers", name, line)
			}
		}
		all = append(all, t)
	}
	return all, nil
}

// parseLine takes one of the four lines of a record.
func (t *Timer) parseLine(key string, v []byte) (ok bool) {
	switch key {
	case "ID":
		t.ID, ok = smallInt(v)
	case "signal":
		sig, value, found := bytes.Cut(v, []byte{'/'})
		var ok1, ok2 bool
		t.Signal, ok1 = smallInt(sig)
		t.SigValue, ok2 = whole(value, 16)
		ok = found && ok1 && ok2
	case "notify":
		ok = t.parseNotify(v)
	case "ClockID":
		t.Clock, ok = smallInt(v)
	}
	return ok
}

// parseNotify reads "signal/tid.6056".
func (t *Timer) parseNotify(b []byte) bool {
	how, rest, found := bytes.Cut(b, []byte{'/'})
	whom, number, found2 := bytes.Cut(rest, []byte{'.'})
	id, ok := smallInt(number)
	if !found || !found2 || !ok {
		return false
	}
	switch string(how) {
	case "signal":
		t.Notify = 0
	case "none":
		t.Notify = 1
	case "thread":
		t.Notify = 2
	default:
		return false
	}
	switch string(whom) {
	case "tid":
		t.Notify |= sigevThreadID
		t.TID = id
	case "pid":
	default:
		return false
	}
	return true
}

// HRTimer is one active high-resolution timer of /proc/timer_list.
type HRTimer struct {
	Function       string // "hrtimer_wakeup": a sleeping thread
	SoftNS, HardNS int64  // earliest and latest expiry, ns on the clock
	Clock          int    // number of the clock base: 0 and 4 monotonic, 1 and 5 realtime, 2 and 6 boottime, 3 and 7 TAI
}

// ParseTimerList parses the active timers out of /proc/timer_list; the rest is skipped.
func ParseTimerList(b []byte) ([]HRTimer, error) {
	var all []HRTimer
	clock := 0
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		switch {
		case bytes.HasPrefix(line, []byte(" clock ")):
			n, ok := smallInt(bytes.TrimSuffix(line[len(" clock "):], []byte{':'}))
			if !ok {
				return nil, textError("timer_list", "clock", line)
			}
			clock = n
		case bytes.HasPrefix(line, []byte(" #")):
			t := HRTimer{Clock: clock}
			if !t.parseName(line) {
				return nil, textError("timer_list", "function", line)
			}
			line, b = cutLine(b)
			if !t.parseExpiry(line) {
				return nil, textError("timer_list", "expiry", line)
			}
			all = append(all, t)
		}
	}
	return all, nil
}

// parseName reads " #0: <00000000cf746b14>, hrtimer_wakeup, S:01".
func (t *HRTimer) parseName(line []byte) bool {
	_, rest, found := bytes.Cut(line, []byte(">, "))
	end := bytes.LastIndex(rest, []byte(", S:"))
	if !found || end < 0 {
		return false
	}
	t.Function = string(rest[:end])
	return true
}

// parseExpiry reads " # expires at SOFT-HARD nsecs [in …]".
func (t *HRTimer) parseExpiry(line []byte) bool {
	rest, found := bytes.CutPrefix(line, []byte(" # expires at "))
	span, _ := cutField(rest)
	soft, hard, cut := bytes.Cut(span, []byte{'-'})
	var ok1, ok2 bool
	t.SoftNS, ok1 = integer(soft)
	t.HardNS, ok2 = integer(hard)
	return found && cut && ok1 && ok2
}
