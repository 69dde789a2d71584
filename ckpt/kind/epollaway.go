package kind

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// away finds the file that the nth entry of an epoll instance for number num watches, if a process that
// has the instance has the file too, under another number.
func (s *Scene) away(f *Found, num int32, nth int) (*Found, Slot) {
	for _, g := range s.Files {
		for _, sl := range g.Slots {
			if !slices.ContainsFunc(f.Slots, func(e Slot) bool { return e.PID == sl.PID }) {
				continue
			}
			if same, err := watches(f.FD, num, nth, g.FD); err != nil || !same {
				break // the next file
			}
			return g, sl
		}
	}
	return nil, Slot{}
}

// addAway adds an entry for a file that has another number now: it gets the old one for the time. What
// has that number now is put aside, and comes back to it with its close-on-exec flag.
func addAway(fd int, en *epollEntry, p Process) (err error) {
	num := uint64(en.Num)
	if int(en.Num) == fd || en.At == en.Num {
		return fmt.Errorf("its entry for fd %d cannot be made: the number is that of the epoll instance itself", en.Num)
	}
	flags, err := p.Syscall(unix.SYS_FCNTL, num, unix.F_GETFD, 0)
	taken := err == nil
	if err != nil && !errors.Is(err, unix.EBADF) {
		return fmt.Errorf("look at fd %d: %w", en.Num, err)
	}
	var aside uint64
	if taken {
		if aside, err = p.Syscall(unix.SYS_FCNTL, num, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return fmt.Errorf("put fd %d aside: %w", en.Num, err)
		}
	}
	if _, err := p.Syscall(unix.SYS_DUP2, uint64(en.At), num); err != nil {
		return fmt.Errorf("give fd %d the number %d for the time: %w", en.At, en.Num, err)
	}
	if en.disarmed() {
		err = addFired(fd, en, p)
	} else {
		err = addArmed(fd, []epollEntry{*en}, p)
	}
	if err != nil {
		return err
	}
	if !taken {
		if _, err := p.Syscall(unix.SYS_CLOSE, num); err != nil {
			return fmt.Errorf("close fd %d again: %w", en.Num, err)
		}
		return nil
	}
	cloexec := uint64(0)
	if flags&unix.FD_CLOEXEC != 0 {
		cloexec = unix.O_CLOEXEC
	}
	if _, err := p.Syscall(unix.SYS_DUP3, aside, num, cloexec); err != nil {
		return fmt.Errorf("put fd %d back: %w", en.Num, err)
	}
	if _, err := p.Syscall(unix.SYS_CLOSE, aside); err != nil {
		return fmt.Errorf("close what was put aside: %w", err)
	}
	return nil
}
