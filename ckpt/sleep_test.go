package ckpt

import (
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

func TestWaitsIn(t *testing.T) {
	for _, c := range []struct {
		wchan string
		arg   uint64
		want  uint32
	}{
		{"futex_do_wait", 0x7fff0000, unix.SYS_FUTEX},
		{"futex_wait_queue", 0x7fff0000, unix.SYS_FUTEX},
		{"poll_schedule_timeout.constprop.0", 0x7fff0000, unix.SYS_POLL},
		{"hrtimer_nanosleep", 0x7fff0000, unix.SYS_NANOSLEEP},
		{"do_syscall_64", unix.CLOCK_BOOTTIME, unix.SYS_CLOCK_NANOSLEEP},
		{"pipe_read", 3, 0},
	} {
		if got := waitsIn(c.wchan, &procfs.Syscall{Args: [6]uint64{c.arg}}); got != c.want {
			t.Errorf("waitsIn(%s, %#x) = %d, want %d", c.wchan, c.arg, got, c.want)
		}
	}
}

// TestClaim: two sleeps that both fit one timer; the nearer one gets it.
func TestClaim(t *testing.T) {
	a, b, lone := &sleeper{}, &sleeper{}, &sleeper{}
	claim([]match{{a, 100, 50}, {a, 200, 90}, {b, 100, 10}, {lone, 100, 70}})
	if b.expiry != 100 || a.expiry != 200 || lone.expiry != 0 {
		t.Errorf("expiries %d, %d, %d; want 200, 100 and none", a.expiry, b.expiry, lone.expiry)
	}
}

func TestFits(t *testing.T) {
	nap, poll := &sleeper{nr: unix.SYS_NANOSLEEP}, &sleeper{nr: unix.SYS_POLL}
	if !nap.fits(50000, 50000) || !nap.fits(0, 50000) || nap.fits(700, 50000) || !poll.fits(700, 50000) {
		t.Error("a timer's slack decides wrongly whether it is a sleep's")
	}
}

func TestUntimed(t *testing.T) {
	for _, c := range []struct {
		b    image.Blocked
		want bool
	}{
		{image.Blocked{NR: unix.SYS_POLL, Args: [6]uint64{0, 0, 0xffffffff}}, true},
		{image.Blocked{NR: unix.SYS_POLL, Args: [6]uint64{0, 0, 10}}, false},
		{image.Blocked{NR: unix.SYS_FUTEX, Args: [6]uint64{0, 0x80, 0, 0x1000}}, false},
		{image.Blocked{NR: unix.SYS_FUTEX, Args: [6]uint64{0, 0x89, 0, 0x1000}}, true},
		{image.Blocked{NR: unix.SYS_CLOCK_NANOSLEEP, Args: [6]uint64{1, unix.TIMER_ABSTIME}}, true},
		{image.Blocked{NR: unix.SYS_NANOSLEEP}, false},
	} {
		if got := untimed(&c.b); got != c.want {
			t.Errorf("untimed(%+v) = %v", c.b, got)
		}
	}
}

func TestTTYDev(t *testing.T) {
	for _, minor := range []uint32{0, 3, 255, 256, 70000} {
		nr := 136<<8 | minor&0xff | minor&^0xff<<12 // new_encode_dev of linux/kdev_t.h
		if got, want := ttyDev(int(nr)), unix.Mkdev(136, minor); got != want {
			t.Errorf("ttyDev(%#x) = %#x, want %#x", nr, got, want)
		}
	}
}
