package ckpt

import (
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

// ttyDev turns tty_nr of /proc/PID/stat into the device number that stat(2) gives.
func ttyDev(nr int) uint64 {
	n := uint32(nr)
	return unix.Mkdev(n>>8&0xfff, n&0xff|n>>12&0xfff00)
}

// foreground drops what the image cannot say of foreground process groups: one of a terminal that is made anew
// has to be in the tree.
func (c *Checkpoint) foreground() {
	groups := map[int32]int32{}
	for i := range c.m.Tasks {
		groups[c.m.Tasks[i].PGID] = c.m.Tasks[i].SID
	}
	for i := range c.m.Tasks {
		t := &c.m.Tasks[i]
		if t.Foreground == 0 || kind.PTY(c.m.Files, t.CtlTTY) == 0 || groups[t.Foreground] == t.SID {
			continue
		}
		c.m.Lost = append(c.m.Lost, image.Finding{Severity: image.Lose, PID: t.PID, FD: image.NoFD, Kind: "controlling terminal",
			What:   fmt.Sprintf("the foreground process group %d of its terminal has no process in the tree: that of the session's leader is it then", t.Foreground),
			Remedy: "none is needed: a shell takes the foreground when it waits for a command"})
		t.Foreground = 0
	}
}

// terminals are the open file descriptions of character devices, by device number.
func terminals(files []*kind.Found) map[uint64]image.ObjRef {
	out := map[uint64]image.ObjRef{}
	for _, f := range files {
		if f.Stat.Mode&unix.S_IFMT == unix.S_IFCHR && out[f.Stat.Rdev] == 0 {
			out[f.Stat.Rdev] = f.Ref
		}
	}
	return out
}

// checkSessions finds what ties the tree to sessions and terminals outside of it, and what
// of its zombies no process can be made to end with.
func (s *survey) checkSessions(files []*kind.Found, controlled map[int]image.ObjRef) {
	pids := s.treePIDs()
	lose := func(l *looked, kind, what, remedy string) {
		s.findings = append(s.findings, image.Finding{Severity: image.Lose, PID: int32(l.pid), FD: image.NoFD, Kind: kind, What: what, Remedy: remedy})
	}
	outside, ttys := map[int]bool{}, terminals(files)
	for _, l := range s.procs {
		sid := l.stat.SID
		if !slices.Contains(pids, sid) && !outside[sid] {
			outside[sid] = true
			lose(l, "session", fmt.Sprintf("its session is led by pid %d outside the tree, and a restore from anywhere else puts it into a new one", sid),
				"start it with setsid, or restore it from that session")
		}
		if l.stat.TTY != 0 && sid == l.pid && ttys[ttyDev(l.stat.TTY)] == 0 && controlled[sid] == 0 {
			lose(l, "controlling terminal", "nothing in the tree has the terminal open that controls its session, so the session comes back without one",
				"none is needed unless the program opens /dev/tty")
		}
		if l.zombie() && unix.WaitStatus(l.stat.ExitCode).CoreDump() {
			lose(l, "zombie", "that it dumped core cannot be put into a wait status again", "let its parent wait for it")
		}
	}
}
