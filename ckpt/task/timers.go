package task

import (
	"fmt"
	"sort"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

const (
	itimervalSize  = 32 // struct itimerval and struct itimerspec: interval, value
	sigeventSize   = 64
	sigevNone      = 1 // SIGEV_NONE
	sigevThreadID  = 4 // SIGEV_THREAD_ID
	maxTimerProbes = 256
)

var itimerNames = [3]string{"ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"}

// readITimers queues getitimer(2) for the three of them; only the process itself can ask.
func readITimers(q *queue, t *image.Task) {
	buf := q.b.Alloc(3 * itimervalSize)
	for i := range t.ITimers {
		q.b.Call(unix.SYS_GETITIMER, uint64(i), buf.Addr()+uint64(i*itimervalSize)).Label("read " + itimerNames[i])
	}
	q.then(func() error {
		for i := range t.ITimers {
			p := buf.Bytes()[i*itimervalSize:]
			t.ITimers[i] = image.ITimer{
				Interval: int64(le.Uint64(p))*1e6 + int64(le.Uint64(p[8:])),
				Value:    int64(le.Uint64(p[16:]))*1e6 + int64(le.Uint64(p[24:])),
			}
		}
		return nil
	})
}

// writeITimers queues setitimer(2). A periodic ITIMER_REAL whose signal is pending is not armed:
// the kernel arms it when the signal is taken. A queued signal of ours does not do that, so it
// is armed here, for one period. To the others, which count CPU time, the kernel adds a tick, so
// that they never fire early; that is taken off before, or they would grow with each restore.
func writeITimers(b *ptrace.Batch, t *image.Task) {
	tick := tickMicros()
	for i, it := range t.ITimers {
		if it == (image.ITimer{}) {
			continue
		}
		if it.Value == 0 {
			it.Value = it.Interval
		} else if i != unix.ITIMER_REAL {
			it.Value = max(1, it.Value-tick)
		}
		p := make([]byte, itimervalSize)
		putMicros(p, it.Interval)
		putMicros(p[16:], it.Value)
		b.Call(unix.SYS_SETITIMER, uint64(i), b.Put(p).Addr(), 0).Label("set " + itimerNames[i])
	}
}

// tickMicros is the period of the kernel's tick, which the resolution of the coarse clocks tells.
func tickMicros() int64 {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0 // timers then fire up to a tick late, as the kernel has it anyway
	}
	return ts.Nano() / 1e3
}

// putMicros writes a struct timeval.
func putMicros(p []byte, us int64) {
	le.PutUint64(p, uint64(us/1e6))
	le.PutUint64(p[8:], uint64(us%1e6))
}

// putNanos writes a struct timespec.
func putNanos(p []byte, ns int64) {
	le.PutUint64(p, uint64(ns/1e9))
	le.PutUint64(p[8:], uint64(ns%1e9))
}

// readTimers queues what /proc/PID/timers does not tell: the time left and the overrun count.
func readTimers(q *queue, list []procfs.Timer, t *image.Task) {
	t.Timers = make([]image.POSIXTimer, len(list))
	if len(list) == 0 {
		t.Timers = nil
		return
	}
	buf := q.b.Alloc(len(list) * itimervalSize)
	for i, pt := range list {
		t.Timers[i] = image.POSIXTimer{
			ID: int32(pt.ID), Clock: int32(pt.Clock), Notify: int32(pt.Notify),
			Signal: int32(pt.Signal), SigValue: pt.SigValue, TID: int32(pt.TID),
		}
		q.b.Call(unix.SYS_TIMER_GETTIME, uint64(pt.ID), buf.Addr()+uint64(i*itimervalSize)).
			Label(fmt.Sprintf("read POSIX timer %d", pt.ID))
		over := q.b.Call(unix.SYS_TIMER_GETOVERRUN, uint64(pt.ID)).Label(fmt.Sprintf("read the overrun of POSIX timer %d", pt.ID))
		q.then(func() error {
			p, dst := buf.Bytes()[i*itimervalSize:], &t.Timers[i]
			dst.Interval = int64(le.Uint64(p))*1e9 + int64(le.Uint64(p[8:]))
			dst.Value = int64(le.Uint64(p[16:]))*1e9 + int64(le.Uint64(p[24:]))
			dst.Overrun = int32(over.Val())
			return nil
		})
	}
	q.then(func() error {
		sort.Slice(t.Timers, func(i, j int) bool { return t.Timers[i].ID < t.Timers[j].ID })
		return nil
	})
}

// exactTimerIDs says whether this kernel makes timers with a wanted id (since Linux 6.15).
func exactTimerIDs() bool {
	_, err := unix.PrctlRetInt(unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_GET, 0, 0, 0)
	return err == nil
}

// checkTimerIDs says why the timers cannot get their ids back, if so.
func checkTimerIDs(t *image.Task, exact bool) error {
	if exact {
		return nil
	}
	for _, pt := range t.Timers {
		if pt.ID >= maxTimerProbes {
			return fmt.Errorf("pid %d: its POSIX timer has the id %d, and this kernel gives out ids only from 0 upwards: restore on Linux 6.15 or later", t.PID, pt.ID)
		}
	}
	return nil
}

// writeTimers queues making the timers and arming them for the time that was left.
//
// Without exact ids a fresh process gets 0, 1, 2 …: numbers that are not wanted are made and
// deleted again. If an id still comes out differently, arming it fails with EINVAL.
func writeTimers(b *ptrace.Batch, t *image.Task, exact bool) {
	if len(t.Timers) == 0 {
		return
	}
	if exact {
		b.Call(unix.SYS_PRCTL, unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_ON).Label("ask for exact timer ids")
	}
	next := int32(0)
	for i := range t.Timers {
		pt := &t.Timers[i]
		if !exact {
			for ; next < pt.ID && next < maxTimerProbes; next++ {
				createTimer(b, &image.POSIXTimer{ID: next, Clock: unix.CLOCK_MONOTONIC, Notify: sigevNone})
				b.Call(unix.SYS_TIMER_DELETE, uint64(next)).Label(fmt.Sprintf("pass over timer id %d", next))
			}
			next = pt.ID + 1
		}
		createTimer(b, pt)
		if pt.Value != 0 {
			p := make([]byte, itimervalSize)
			putNanos(p, pt.Interval)
			putNanos(p[16:], pt.Value)
			b.Call(unix.SYS_TIMER_SETTIME, uint64(pt.ID), 0, b.Put(p).Addr(), 0).Label(fmt.Sprintf("arm POSIX timer %d", pt.ID))
		} else {
			b.Call(unix.SYS_TIMER_GETOVERRUN, uint64(pt.ID)).Label(fmt.Sprintf("find POSIX timer %d", pt.ID))
		}
	}
	if exact {
		b.Call(unix.SYS_PRCTL, unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_OFF).Label("end exact timer ids")
	}
}

// createTimer queues timer_create(2).
func createTimer(b *ptrace.Batch, pt *image.POSIXTimer) {
	ev := make([]byte, sigeventSize+8)
	le.PutUint64(ev, pt.SigValue)
	le.PutUint32(ev[8:], uint32(pt.Signal))
	le.PutUint32(ev[12:], uint32(pt.Notify))
	le.PutUint32(ev[16:], uint32(pt.TID))
	le.PutUint32(ev[sigeventSize:], uint32(pt.ID))
	a := b.Put(ev).Addr()
	b.Call(unix.SYS_TIMER_CREATE, uint64(uint32(pt.Clock)), a, a+sigeventSize).Label(fmt.Sprintf("make POSIX timer %d", pt.ID))
}
