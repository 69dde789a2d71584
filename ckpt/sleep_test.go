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

// TestClaim: two sleeps that both fit one timer, where the nearer one gets it; one that no
// timer fits; one that was restarted.
func TestClaim(t *testing.T) {
	const s, ms = 1_000_000_000, 1_000_000
	near := &sleeper{expiry: 10*s + ms}
	other := &sleeper{expiry: 10*s + 9*ms}
	lone := &sleeper{expiry: 20 * s}
	again := &sleeper{expiry: 40 * s, again: true}
	unknown := &sleeper{}
	set := &sleepers{by: map[int]*sleeper{1: near, 2: other, 3: lone, 4: again, 5: unknown}}
	set.claim([]procfs.HRTimer{{SoftNS: 10 * s, HardNS: 10 * s}, {SoftNS: 10*s + 20*ms, HardNS: 10*s + 20*ms},
		{SoftNS: 21 * s, HardNS: 21 * s}, {SoftNS: 33 * s, HardNS: 33 * s}, {SoftNS: 39 * s, HardNS: 39*s + 7}})
	for _, c := range []struct {
		sl   *sleeper
		want int64
	}{{near, 10 * s}, {other, 10*s + 20*ms}, {lone, 20 * s}, {again, 33 * s}, {unknown, 0}} {
		if c.sl.expiry != c.want {
			t.Errorf("expiry %d, want %d", c.sl.expiry, c.want)
		}
	}
}

func TestFits(t *testing.T) {
	nap, poll := &sleeper{nr: unix.SYS_NANOSLEEP, slack: 50000}, &sleeper{nr: unix.SYS_POLL, slack: 50000}
	if !nap.fits(50000) || !nap.fits(0) || nap.fits(700) || !poll.fits(700) {
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
