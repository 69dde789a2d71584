package kind

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func newTimerFD(t *testing.T, clock int, settime int, value, interval time.Duration) int {
	t.Helper()
	fd, err := unix.TimerfdCreate(clock, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	at := int64(value)
	if settime&tfdAbsTime != 0 && value > 0 {
		var now unix.Timespec
		must(t, unix.ClockGettime(int32(clock), &now))
		at += now.Nano()
	}
	must(t, unix.TimerfdSettime(fd, settime, &unix.ItimerSpec{Value: unix.NsecToTimespec(at), Interval: unix.NsecToTimespec(int64(interval))}, nil))
	return fd
}

// ticksOf waits until a timer has expired at least n times, without a read of it, and returns how often.
func ticksOf(t *testing.T, fd int, n uint64) uint64 {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		s := newStage(t)
		if got := s.add(fd)[0].Info.TimerFD.Ticks; got >= n {
			return got
		}
		if time.Now().After(end) {
			t.Fatal("the timer does not expire")
		}
	}
}

// restart takes a timer through Dump, Open and Start.
func restart(t *testing.T, fd int) (*timerFDRec, int) {
	t.Helper()
	s := newStage(t)
	s.add(fd)
	if all := s.check(); len(all) != 0 {
		t.Fatal(all)
	}
	s.dump()
	got, err := s.open()
	must(t, err)
	rec := &s.env.Manifest.Files[0]
	must(t, timerFD{}.Start(rec, got[0], &self{}))
	var r timerFDRec
	must(t, decodeRec(rec, &r))
	return &r, got[0]
}

// aboutLeft fails unless two times left are the same but for the time of the test.
func aboutLeft(t *testing.T, what string, was, is int) {
	t.Helper()
	var a, b unix.ItimerSpec
	must(t, unix.TimerfdGettime(is, &b))
	must(t, unix.TimerfdGettime(was, &a))
	if d := b.Value.Nano() - a.Value.Nano(); d < -int64(time.Minute) || d > int64(time.Minute) || a.Interval != b.Interval {
		t.Errorf("%s: %+v became %+v", what, a, b)
	}
}

func TestTimerFD(t *testing.T) {
	const hour = time.Hour
	for _, c := range []struct {
		what            string
		clock, settime  int
		value, interval time.Duration
	}{
		{"disarmed", unix.CLOCK_MONOTONIC, 0, 0, 0},
		{"disarmed, with an interval", unix.CLOCK_MONOTONIC, 0, 0, hour},
		{"relative", unix.CLOCK_MONOTONIC, 0, hour, 0},
		{"periodic", unix.CLOCK_BOOTTIME, 0, hour, 2 * hour},
		{"absolute", unix.CLOCK_MONOTONIC, tfdAbsTime, 3 * hour, hour},
		{"wall-clock time", unix.CLOCK_REALTIME, tfdAbsTime, 3 * hour, 0},
		{"cancelled when the clock is set", unix.CLOCK_REALTIME, tfdFlags, 3 * hour, hour},
	} {
		t.Run(c.what, func(t *testing.T) {
			fd := newTimerFD(t, c.clock, c.settime, c.value, c.interval)
			r, got := restart(t, fd)
			if int(r.Clock) != c.clock || int(r.Flags) != c.settime || r.Ticks != 0 {
				t.Errorf("the record is %+v", r)
			}
			aboutLeft(t, c.what, fd, got)
			was, is := stableInfo(t, fd), stableInfo(t, got)
			for i := range was {
				if !strings.HasPrefix(was[i], "it_value") && was[i] != is[i] {
					t.Errorf("fdinfo %q became %q", was[i], is[i])
				}
			}
		})
	}
}

// Expirations that nobody has read are there, and a periodic timer goes on in step.
func TestTimerFDTicks(t *testing.T) {
	once := newTimerFD(t, unix.CLOCK_MONOTONIC, 0, time.Nanosecond, 0)
	ticksOf(t, once, 1)
	_, got := restart(t, once)
	buf := make([]byte, 8)
	if _, err := unix.Read(got, buf); err != nil || binary.NativeEndian.Uint64(buf) != 1 {
		t.Errorf("read %v, %v", buf, err)
	}
	if _, err := unix.Read(got, buf); err != unix.EAGAIN {
		t.Errorf("a second read: %v", err)
	}
	if _, err := unix.Read(once, buf); err != nil || binary.NativeEndian.Uint64(buf) != 1 {
		t.Errorf("the live one: read %v, %v", buf, err)
	}

	// The first expiry is at once, the next in an hour.
	periodic := newTimerFD(t, unix.CLOCK_MONOTONIC, 0, time.Nanosecond, time.Hour)
	ticksOf(t, periodic, 1)
	s := newStage(t)
	f := s.add(periodic)[0]
	left, ticks, err := nextExpiry(f)
	if err != nil || ticks != 1 || left < int64(50*time.Minute) || left > int64(time.Hour) {
		t.Errorf("%d ns left, %d ticks, %v", left, ticks, err)
	}
	periodic = newTimerFD(t, unix.CLOCK_MONOTONIC, 0, time.Nanosecond, time.Hour)
	ticksOf(t, periodic, 1)
	s = newStage(t)
	s.add(periodic)
	rec := &image.File{Kind: "timerfd", Flags: s.scene.Files[0].Flags}
	must(t, timerFD{}.Dump(s.scene.Files[0], s.scene, rec)) // it counts the expirations, as any timerfd_gettime(2) does
	fd, err := timerFD{}.Open(rec, s.env)
	must(t, err)
	defer unix.Close(fd)
	must(t, timerFD{}.Start(rec, fd, &self{}))
	aboutLeft(t, "periodic", periodic, fd)
	if _, err := unix.Read(fd, buf); err != nil || binary.NativeEndian.Uint64(buf) != 1 {
		t.Errorf("periodic: read %v, %v", buf, err)
	}
}

func TestTimerFDBad(t *testing.T) {
	s := newStage(t)
	f := s.add(newTimerFD(t, unix.CLOCK_MONOTONIC, 0, time.Hour, 0))[0]
	f.Info.TimerFD = nil
	refused(t, s.check(), "does not tell what it is set to")
	for _, r := range []timerFDRec{{Clock: 1, Value: -1}, {Clock: 1, Interval: -1}, {Clock: 1, Flags: 8}, {Clock: 77}} {
		bad := image.File{Kind: "timerfd"}
		must(t, encodeRec(&bad, &r))
		if fd, err := (timerFD{}).Open(&bad, s.env); err == nil {
			unix.Close(fd)
			t.Errorf("%+v was taken", r)
		}
	}
}
