package kind

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// timerFD is a timerfd_create(2). A timer counts on from what was left, as soon as its process
// runs: that is Start's affair. One that was set to a wall-clock time (CLOCK_REALTIME with
// TFD_TIMER_ABSTIME) expires at that time, which may have passed.
//
// Whether the clock was set since the last read of one with TFD_TIMER_CANCEL_ON_SET, so that the
// next gives ECANCELED, is nowhere to be read.
type timerFD struct{}

type timerFDRec struct {
	Clock    int32  `cbor:"1,keyasint"`
	Flags    uint32 `cbor:"2,keyasint,omitempty"` // of timerfd_settime(2)
	Ticks    uint64 `cbor:"3,keyasint,omitempty"` // expirations that were not read yet
	Value    int64  `cbor:"4,keyasint,omitempty"` // ns left, or with a wall-clock time ns since 1970; 0: disarmed
	Interval int64  `cbor:"5,keyasint,omitempty"` // ns
}

const (
	tfdAbsTime     = 1          // TFD_TIMER_ABSTIME of linux/timerfd.h
	tfdFlags       = 3          // and TFD_TIMER_CANCEL_ON_SET
	tfdIOCSetTicks = 0x40085400 // TFD_IOC_SET_TICKS
)

// wall reports whether the value is a wall-clock time.
func (r *timerFDRec) wall() bool {
	return r.Flags&tfdAbsTime != 0 && (r.Clock == unix.CLOCK_REALTIME || r.Clock == unix.CLOCK_REALTIME_ALARM)
}

func (timerFD) Name() string { return "timerfd" }

func (timerFD) Match(f *Found) bool { return f.Link == "anon_inode:[timerfd]" }

func (timerFD) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	if f.Info.TimerFD == nil {
		all = append(all, f.refuse("this kernel does not tell what it is set to", "use timer_create(2), or close it before the checkpoint"))
	}
	return all
}

// Dump reads fdinfo. Only of a periodic timer that has expired since the last read does that
// not tell when it expires next: then the kernel is asked, as by any timerfd_gettime(2) of the
// program itself.
func (timerFD) Dump(f *Found, s *Scene, rec *image.File) error {
	t := f.Info.TimerFD
	if t == nil {
		return fmt.Errorf("%s: its fdinfo tells no time", f.Link)
	}
	r := timerFDRec{Clock: int32(t.Clock), Flags: t.Flags & tfdFlags, Ticks: t.Ticks, Value: t.Value, Interval: t.Interval}
	if r.Value == 0 && r.Interval > 0 && r.Ticks > 0 {
		var err error
		if r.Value, r.Ticks, err = nextExpiry(f); err != nil {
			return fmt.Errorf("%s: %w", f.Link, err)
		}
	}
	if r.Value > 0 && r.wall() {
		r.Value += time.Now().UnixNano()
	}
	return encodeRec(rec, &r)
}

// nextExpiry is how long a periodic timer has left that has expired, and how often it has.
func nextExpiry(f *Found) (left int64, ticks uint64, err error) {
	var spec unix.ItimerSpec
	if err := unix.TimerfdGettime(f.FD, &spec); err != nil {
		return 0, 0, fmt.Errorf("timerfd_gettime: %w", err)
	}
	b, err := quickread.File("/proc/self/fdinfo/" + strconv.Itoa(f.FD))
	if err != nil {
		return 0, 0, err
	}
	info, err := procfs.ParseFDInfo(b)
	if err != nil || info.TimerFD == nil {
		return 0, 0, fmt.Errorf("its fdinfo tells no time (%v)", err)
	}
	return max(1, spec.Value.Nano()), info.TimerFD.Ticks, nil
}

// Open makes a timer that is not set.
func (timerFD) Open(rec *image.File, e *Env) (int, error) {
	var r timerFDRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	if r.Value < 0 || r.Interval < 0 || r.Flags&^tfdFlags != 0 {
		return -1, fmt.Errorf("timerfd: the image sets it to %d ns every %d ns with flags %#x", r.Value, r.Interval, r.Flags)
	}
	fd, err := unix.TimerfdCreate(int(r.Clock), unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("timerfd_create of clock %d: %w", r.Clock, err)
	}
	if fd, err = finished(fd, rec.Flags, 0, 0); err != nil {
		return -1, fmt.Errorf("timerfd: %w", err)
	}
	return fd, nil
}

// Start is Starter.Start: it sets the timer in the process that has it.
func (timerFD) Start(rec *image.File, fd int, p Process) error {
	var r timerFDRec
	if err := decodeRec(rec, &r); err != nil {
		return err
	}
	value := r.Value
	if value > 0 && r.Flags&tfdAbsTime != 0 && !r.wall() {
		var now unix.Timespec
		if err := unix.ClockGettime(r.Clock, &now); err != nil {
			return fmt.Errorf("timerfd: clock_gettime of clock %d: %w", r.Clock, err)
		}
		value += now.Nano()
	}
	spec := unix.ItimerSpec{Interval: unix.NsecToTimespec(r.Interval), Value: unix.NsecToTimespec(value)}
	at, err := p.Put(append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&spec)), unsafe.Sizeof(spec))...))
	if err != nil {
		return err
	}
	if _, err := p.Syscall(unix.SYS_TIMERFD_SETTIME, uint64(fd), uint64(r.Flags), at, 0); err != nil {
		return fmt.Errorf("timerfd_settime: %w", err)
	}
	if r.Ticks == 0 {
		return nil
	}
	if at, err = p.Put(binary.NativeEndian.AppendUint64(nil, r.Ticks)); err != nil {
		return err
	}
	if _, err := p.Syscall(unix.SYS_IOCTL, uint64(fd), tfdIOCSetTicks, at); err != nil {
		return fmt.Errorf("timerfd: set its unread expirations to %d (TFD_IOC_SET_TICKS): %w", r.Ticks, err)
	}
	return nil
}
