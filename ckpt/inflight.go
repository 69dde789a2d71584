package ckpt

import (
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

// maxInFlight bounds the files that are in no table: one in the queue of a socket that itself is
// in the queue of another is found after that.
const maxInFlight = 4096

// addInFlight adds the files that are under way in unix sockets and that no process has open.
func (s *fileSet) addInFlight(tracers []int) error {
	sc := &kind.Scene{Files: s.found, Still: true, Tracers: tracers}
	tables := len(s.found)
	for i := 0; i < len(s.found); i++ {
		f := s.found[i]
		at := f.Place()
		fds, _ := sc.InFlight(f) // what is wrong with the queue is refused when it is dumped
		var err error
		for n, fd := range fds {
			if err == nil {
				err = s.addFlying(f, fd)
			}
			if err != nil {
				closeFD(fds[n])
			}
		}
		if err == nil && len(s.found)-tables > maxInFlight {
			err = fmt.Errorf("more than %d open files are under way in unix sockets", maxInFlight)
		}
		if err != nil {
			return fmt.Errorf("pid %d fd %d (%s): %w", at.PID, at.Num, f.Link, err)
		}
	}
	return nil
}

// addFlying adds one of them, or closes our descriptor of one that is known.
func (s *fileSet) addFlying(carrier *kind.Found, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat of a file that is under way in it: %w", err)
	}
	for _, g := range s.found {
		if !sameStat(&g.Stat, &st) {
			continue
		}
		c, err := kcmp(g.FD, fd)
		if err != nil {
			return fmt.Errorf("compare a file that is under way in it: kcmp: %w", err)
		}
		if c == 0 {
			closeFD(fd)
			return nil
		}
	}
	f := &kind.Found{FD: fd, Stat: st, Carrier: carrier, Slots: []kind.Slot{{PID: int32(os.Getpid()), Num: int32(fd)}}}
	if err := describeOne(f, nil); err != nil {
		return err
	}
	s.found = append(s.found, f)
	f.Ref = image.ObjRef(len(s.found))
	return nil
}
